"""Corrections of some windows become one correction without seams, which fades towards what no window looked at.

Coordinates are voxels (z, y, x) of the padded image, as in `window_grid`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter1d

from sam3dnet.inference.window_grid import WindowGrid
from sam3dnet.inference.windows import importance
from sam3dnet.preprocessing.geometry import Mask, Voxel

Floats = npt.NDArray[np.float32]
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Correction:
    """What prompts add to the logits of one class, in a box; elsewhere it is 0.

    Attributes:
        low: First voxel (z, y, x) of the box.
        values_zyx: In logits.
    """

    low: Voxel
    values_zyx: Floats

    @property
    def high(self) -> Voxel:
        """One beyond the last voxel of the box."""
        z, y, x = (first + size for first, size in zip(self.low, self.values_zyx.shape, strict=True))
        return z, y, x

    @property
    def box(self) -> Slices:
        """The box as slices."""
        z, y, x = (slice(first, stop) for first, stop in zip(self.low, self.high, strict=True))
        return z, y, x


class Stitching:
    """Weighted mean of the corrections of the windows looked at so far, in a box around them.

    A window weighs most in its middle (`windows.importance`) and next to nothing at its faces.

    Args:
        grid: Of the windows.
    """

    def __init__(self, grid: WindowGrid):
        self._grid = grid
        self._importance = importance(grid.patch_size, torch.device("cpu")).numpy()
        self._indices: set[Voxel] = set()
        self._low: Voxel = (0, 0, 0)
        nothing: Floats = np.zeros((0, 0, 0), np.float32)
        self._sum = self._weight = self._lead = nothing

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, index: Voxel, correction_zyx: Floats, lead_zyx: Floats) -> None:
        """Take the correction of a window.

        Args:
            index: Of the window; each comes once.
            correction_zyx: What is added to the logit of the class.
            lead_zyx: Logit of the class minus the highest other before that; the class is where it is above 0.
        """
        self._make_room(index)
        box = self._box(index)
        weight = self._importance * self._ramp(index)
        self._sum[box] += correction_zyx * weight
        self._weight[box] += weight
        self._lead[box] = lead_zyx
        self._indices.add(index)

    def mask_in(self, index: Voxel, lead_zyx: Floats) -> Mask:
        """Give the mask so far in a window that was not looked at: corrected where another window was."""
        mask = lead_zyx > 0
        corner = self._grid.corner(index)
        inside = [
            slice(max(first, low), min(first + size, low + length))
            for first, size, low, length in zip(
                corner, self._grid.patch_size, self._low, self._weight.shape, strict=True
            )
        ]
        if any(part.start >= part.stop for part in inside):
            return mask
        ours = _shifted(inside, self._low)
        corrected = self._lead[ours] + self._mean(ours) > 0
        theirs = _shifted(inside, corner)
        mask[theirs] = np.where(self._weight[ours] > 0, corrected, mask[theirs])
        return mask

    def next_windows(self) -> list[Voxel]:
        """List the windows into which a changed mask grows: it was changed where the correction begins to fade."""
        faces = [
            (index, axis, direction, other)
            for index in sorted(self._indices)
            for axis, direction, other in self._grid.neighbours(index)
            if other not in self._indices
        ]
        if not faces:
            return []
        lead = self._lead
        unfinished = ((lead + self._mean() > 0) != (lead > 0)) & (self._fade() < 1)
        found = {
            other: None
            for index, axis, direction, other in faces
            if unfinished[self._face(index, axis, direction)].any()
        }
        return sorted(found)

    def mask(self) -> tuple[Voxel, Mask]:
        """Give the first voxel of the box around what was looked at, and the mask in it."""
        return self._low, self._lead + self._mean() > 0

    def result(self) -> Correction:
        """Give the correction, fading to 0 towards what was not looked at."""
        return Correction(self._low, self._mean() * self._fade())

    def _mean(self, box: Slices | None = None) -> Floats:
        part = box or (slice(None),) * 3
        weight = self._weight[part]
        return np.divide(self._sum[part], weight, out=np.zeros_like(weight), where=weight > 0)

    def _fade(self) -> Floats:
        """Return 1 deep inside of what was looked at, 0 at its faces, except at the border of the image."""
        looked_at = (self._weight > 0).astype(np.float32)
        if looked_at.all():  # a box: a product of one profile along each axis
            along = [self._smooth(np.ones(size, np.float32), axis, 0) for axis, size in enumerate(looked_at.shape)]
            share = along[0][:, None, None] * along[1][:, None] * along[2]
        else:
            share = looked_at
            for axis in range(3):
                share = self._smooth(share, axis, axis)
        return np.clip(2 * share - 1, 0, 1)

    def _smooth(self, values: Floats, axis: int, values_axis: int) -> Floats:
        """Average along an axis; beyond the image all is as at its border, elsewhere nothing was looked at."""
        reach = self._grid.edge[axis]
        size = values.shape[values_axis]
        first, stop = self._low[axis], self._low[axis] + size
        at_border = (first == 0, stop == self._grid.image_shape[axis])
        for before, is_border in zip(((reach, 0), (0, reach)), at_border, strict=True):
            widths = [before if other == values_axis else (0, 0) for other in range(values.ndim)]
            values = np.pad(values, widths, mode="edge" if is_border else "constant")
        smooth = uniform_filter1d(values, 2 * reach + 1, axis=values_axis, mode="constant")
        # running sums leave rounding errors, which would fade what lies deep inside
        return np.round(np.take(smooth, range(reach, reach + size), axis=values_axis), 5)

    def _ramp(self, index: Voxel) -> Floats:
        """Return what makes a window's weight fall at those faces that are not the border of the image."""
        along = []
        for axis, (number, size, reach) in enumerate(zip(index, self._grid.patch_size, self._grid.edge, strict=True)):
            from_face = (np.arange(size, dtype=np.float32) + 0.5) / reach
            ramp = np.ones(size, np.float32)
            if number > 0:
                ramp = np.minimum(ramp, from_face)
            if number + 1 < len(self._grid.starts[axis]):
                ramp = np.minimum(ramp, from_face[::-1])
            along.append(ramp)
        return np.asarray(along[0][:, None, None] * along[1][:, None] * along[2])

    def _box(self, index: Voxel) -> Slices:
        return _shifted(self._grid.box(index), self._low)

    def _face(self, index: Voxel, axis: int, direction: int) -> Slices:
        """Give the part of a window's box in which its correction fades towards a neighbour."""
        box = list(self._box(index))
        side, reach = box[axis], self._grid.edge[axis]
        box[axis] = slice(side.start, side.start + reach) if direction < 0 else slice(side.stop - reach, side.stop)
        return box[0], box[1], box[2]

    def _make_room(self, index: Voxel) -> None:
        """Enlarge the box until it holds a window."""
        corner = self._grid.corner(index)
        stop = [first + size for first, size in zip(corner, self._grid.patch_size, strict=True)]
        low, held = corner, self._box_held()
        if self._indices:
            low = _voxel(min(a, part.start) for a, part in zip(corner, held, strict=True))
            stop = [max(a, part.stop) for a, part in zip(stop, held, strict=True)]
        shape = tuple(b - a for a, b in zip(low, stop, strict=True))
        if shape == self._weight.shape:
            return
        inside = _shifted(held, low)
        enlarged: list[Floats] = []
        for values in (self._sum, self._weight, self._lead):
            larger: Floats = np.zeros(shape, np.float32)
            if self._indices:
                larger[inside] = values
            enlarged.append(larger)
        self._sum, self._weight, self._lead = enlarged
        self._low = low

    def _box_held(self) -> Slices:
        sides = zip(self._low, self._weight.shape, strict=True)
        z, y, x = (slice(first, first + size) for first, size in sides)
        return z, y, x


def _shifted(box: Iterable[slice], origin: Voxel) -> Slices:
    z, y, x = (slice(part.start - first, part.stop - first) for part, first in zip(box, origin, strict=True))
    return z, y, x


def _voxel(values: Iterable[int]) -> Voxel:
    z, y, x = values
    return z, y, x
