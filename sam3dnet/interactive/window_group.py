"""Windows that touch each other, and the mean of their corrections in the box around them.

Coordinates are voxels (z, y, x) of the padded image, as in `window_grid`.
"""

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import uniform_filter1d

from sam3dnet.interactive.correction import CorrectedBox, Floats, Slices
from sam3dnet.interactive.locality import within_named_objects
from sam3dnet.interactive.window_grid import WindowGrid
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.types import ClassPrompts


class WindowGroup:
    """Weighted mean of the corrections of windows, in a box around them.

    Args:
        grid: Of the windows.

    Attributes:
        indices: Of the windows.
    """

    def __init__(self, grid: WindowGrid):
        self._grid = grid
        self.indices: set[Voxel] = set()
        self._low: Voxel = (0, 0, 0)
        nothing: Floats = np.zeros((0, 0, 0), np.float32)
        self._sum = self._weight = self._lead = nothing

    def touches(self, index: Voxel) -> bool:
        """Tell whether a window is so near that what it sees matters to how the correction of this group fades."""
        return any(self._grid.are_close(index, other) for other in self.indices)

    def add(self, index: Voxel, correction_zyx: Floats, weight_zyx: Floats, lead_zyx: Floats) -> None:
        """Take the correction of a window, with a weight for each of its voxels; see `Stitching.add`."""
        self._make_room(self._grid.box(index))
        box = _shifted(self._grid.box(index), self._low)
        self._sum[box] += correction_zyx * weight_zyx
        self._weight[box] += weight_zyx
        self._lead[box] = lead_zyx
        self.indices.add(index)

    def join(self, other: "WindowGroup") -> None:
        """Take the windows of another group, none of which is in this one."""
        held = other._box_held()
        self._make_room(held)
        box = _shifted(held, self._low)
        self._sum[box] += other._sum
        self._weight[box] += other._weight
        np.copyto(self._lead[box], other._lead, where=other._weight > 0)
        self.indices |= other.indices

    def correct(self, mask_zyx: Mask, corner: Voxel) -> None:
        """Put the mask so far into that of a window which begins at a corner, where windows of this group were."""
        inside = [
            slice(max(first, part.start), min(first + size, part.stop))
            for first, size, part in zip(corner, mask_zyx.shape, self._box_held(), strict=True)
        ]
        if any(part.start >= part.stop for part in inside):
            return
        ours = _shifted(inside, self._low)
        corrected = self._lead[ours] + self._mean(ours) > 0
        np.copyto(mask_zyx[_shifted(inside, corner)], corrected, where=self._weight[ours] > 0)

    def windows_beyond(self, known: set[Voxel]) -> set[Voxel]:
        """Give the windows, but known ones, into which a mask grows that was changed where the correction fades."""
        faces = [
            (index, axis, direction, other)
            for index in self.indices
            for axis, direction, other in self._grid.neighbours(index)
            if other not in known
        ]
        if not faces:
            return set()
        lead = self._lead
        unfinished = ((lead + self._mean() > 0) != (lead > 0)) & (self._fade() < 1)
        return {
            other for index, axis, direction, other in faces if unfinished[self._face(index, axis, direction)].any()
        }

    def mask(self) -> tuple[Voxel, Mask]:
        """Give the first voxel of the box around what was looked at, and the mask in it."""
        return self._low, self._lead + self._mean() > 0

    def result(self, named: ClassPrompts | None = None) -> CorrectedBox:
        """Give the correction, see `Stitching.result`."""
        corrected = CorrectedBox(self._low, self._mean() * self._fade())
        return corrected if named is None else within_named_objects(corrected, self._lead, named)

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

    def _face(self, index: Voxel, axis: int, direction: int) -> Slices:
        """Give the part of a window's box in which its correction fades towards a neighbour."""
        box = list(_shifted(self._grid.box(index), self._low))
        side, reach = box[axis], self._grid.edge[axis]
        box[axis] = slice(side.start, side.start + reach) if direction < 0 else slice(side.stop - reach, side.stop)
        return box[0], box[1], box[2]

    def _make_room(self, box: Slices) -> None:
        """Enlarge the box that is held until it holds another."""
        held = self._box_held() if self.indices else box
        low = _voxel(min(one.start, other.start) for one, other in zip(box, held, strict=True))
        shape = tuple(max(a.stop, b.stop) - first for a, b, first in zip(box, held, low, strict=True))
        if shape == self._weight.shape:
            return
        inside = _shifted(held, low)
        enlarged: list[Floats] = []
        for values in (self._sum, self._weight, self._lead):
            larger: Floats = np.zeros(shape, np.float32)
            if self.indices:
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
