"""The answers of windows, stitched together for as long as the mask grows, each kept to its object."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy.ndimage import binary_dilation, uniform_filter1d

from sam3dnet.inference.windows import importance
from sam3dnet.interactive.correction import CorrectedBox, Correction, Floats, Slices
from sam3dnet.interactive.window_grid import WindowGrid
from sam3dnet.preprocessing.geometry import Mask, Voxel, nearest_voxel
from sam3dnet.prompts.components import connected
from sam3dnet.prompts.types import ClassPrompts

REACH_VOXELS = 2  # around a click that lies in no object, before or after


def within_named_objects(corrected: CorrectedBox, lead_zyx: Floats, named: ClassPrompts) -> CorrectedBox:
    """Take back what a correction changes in objects that no prompt names.

    An object is what hangs together by corners in the mask before and after taken together, so an object that grows,
    falls apart or merges with another is one.

    Args:
        corrected: What is added in a box.
        lead_zyx: In the box, logit of the class minus the highest other before that.
        named: Clicks that ask for a change, boxes and mask, in voxels as the box.
    """
    before_zyx, after_zyx = lead_zyx > 0, lead_zyx + corrected.values_zyx > 0
    changed_zyx = before_zyx ^ after_zyx
    if not changed_zyx.any():
        return corrected
    objects_zyx, _ = connected(before_zyx | after_zyx)
    kept = _named(objects_zyx, corrected, named)
    kept[0] = True
    others_zyx = ~kept[objects_zyx]
    if not (others_zyx & changed_zyx).any():
        return corrected
    around_zyx = binary_dilation(others_zyx) & (others_zyx | (objects_zyx == 0))
    return CorrectedBox(corrected.low, np.where(around_zyx, np.float32(0), corrected.values_zyx))


def _named(objects_zyx: np.ndarray, corrected: CorrectedBox, named: ClassPrompts) -> Mask:
    """Tell of each number of an object whether a prompt names it."""
    found = np.zeros(int(objects_zyx.max()) + 1, bool)
    for point in named.points:
        voxel = corrected.place(nearest_voxel(point.at, corrected.high))
        if all(0 <= at < size for at, size in zip(voxel, objects_zyx.shape, strict=True)):
            found[objects_zyx[voxel] or _around(objects_zyx, voxel)] = True
    for box in named.boxes:
        low = np.floor(np.subtract(box.low, corrected.low) + 0.5).astype(int).clip(min=0)
        stop = np.floor(np.subtract(box.high, corrected.low) + 1.5).astype(int).clip(min=0)
        found[objects_zyx[tuple(slice(*side) for side in zip(low, stop, strict=True))]] = True
    if named.mask is not None:
        found[objects_zyx[named.mask[corrected.box]]] = True
    return found


def _around(objects_zyx: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    return objects_zyx[tuple(slice(max(0, at - REACH_VOXELS), at + REACH_VOXELS + 1) for at in voxel)]


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


class Stitching:
    """Weighted mean of the corrections of the windows looked at so far.

    A window weighs most in its middle (`windows.importance`) and next to nothing at its faces.

    Args:
        grid: Of the windows.
    """

    def __init__(self, grid: WindowGrid):
        self._grid = grid
        self._importance = importance(grid.patch_size, torch.device("cpu")).numpy()
        self._groups: list[WindowGroup] = []

    def __len__(self) -> int:
        return sum(len(group.indices) for group in self._groups)

    def add(self, index: Voxel, correction_zyx: Floats, lead_zyx: Floats) -> None:
        """Take the correction of a window.

        Args:
            index: Of the window; each comes once.
            correction_zyx: What is added to the logit of the class.
            lead_zyx: Logit of the class minus the highest other before that; the class is where it is above 0.
        """
        touching = [group for group in self._groups if group.touches(index)] or [WindowGroup(self._grid)]
        self._groups = [group for group in self._groups if group not in touching] + touching[:1]
        for other in touching[1:]:
            touching[0].join(other)
        touching[0].add(index, correction_zyx, self._importance * self._ramp(index), lead_zyx)

    def mask_in(self, index: Voxel, lead_zyx: Floats) -> Mask:
        """Give the mask so far in a window that was not looked at: corrected where another window was."""
        mask = lead_zyx > 0
        for group in self._groups:
            group.correct(mask, self._grid.corner(index))
        return mask

    def next_windows(self) -> list[Voxel]:
        """List the windows into which a changed mask grows: it was changed where the correction begins to fade."""
        known = {index for group in self._groups for index in group.indices}
        return sorted({other for group in self._groups for other in group.windows_beyond(known)})

    def mask_around(self, voxel: Voxel) -> tuple[Voxel, Mask]:
        """Give the mask in the box around the windows that touch the one at a voxel, and the first voxel of the box."""
        for group in self._groups:
            if any(self._grid.holds(index, voxel) for index in group.indices):
                return group.mask()
        raise ValueError(f"no window was looked at around {voxel}; add one first")

    def result(self, named: ClassPrompts | None = None) -> Correction:
        """Give the correction, fading to 0 towards what was not looked at.

        Args:
            named: What names the objects that may change, see `within_named_objects`; None: all may.
        """
        return Correction(tuple(group.result(named) for group in self._groups))

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
