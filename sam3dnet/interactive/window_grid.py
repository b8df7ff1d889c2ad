"""The windows of an image's fixed grid that prompts concern, and what of the prompts lies in each window.

Coordinates are voxels (z, y, x) of the image, padded to the window where it is smaller.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from sam3dnet.inference.windows import window_starts
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.types import Box, ClassPrompts, as_coordinates

EDGE_SHARE = 1 / 8  # of a window


@dataclass(frozen=True)
class WindowGrid:
    """Windows at the places where the whole image is predicted; an index counts them along each axis.

    Attributes:
        patch_size: Of every window.
        starts: First voxels of the windows along each axis.
    """

    patch_size: Voxel
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def over(cls, image_shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> "WindowGrid":
        """Lay windows over an image that is nowhere smaller than the patch."""
        depth, height, width = patch_size
        starts = window_starts(image_shape, patch_size, step_size)
        return cls((depth, height, width), tuple(tuple(int(start) for start in axis) for axis in starts))

    @property
    def image_shape(self) -> Voxel:
        """Shape of the image that the windows cover."""
        z, y, x = (axis[-1] + size for axis, size in zip(self.starts, self.patch_size, strict=True))
        return z, y, x

    def corner(self, index: Voxel) -> Voxel:
        """Give the first voxel of a window."""
        z, y, x = (axis[number] for axis, number in zip(self.starts, index, strict=True))
        return z, y, x

    def box(self, index: Voxel) -> tuple[slice, slice, slice]:
        """Give a window as slices."""
        z, y, x = (slice(first, first + size) for first, size in zip(self.corner(index), self.patch_size, strict=True))
        return z, y, x

    def from_the_middle(self) -> list[Voxel]:
        """List all windows, the nearest to the middle of the image first."""
        middle = np.array([(len(axis) - 1) / 2 for axis in self.starts])
        every = product(*(range(len(axis)) for axis in self.starts))
        return sorted(((z, y, x) for z, y, x in every), key=lambda index: float(np.abs(index - middle).max()))

    @property
    def edge(self) -> Voxel:
        """How many voxels at each face of a window, but at the border of the image, see too little around them."""
        z, y, x = (max(1, round(EDGE_SHARE * size)) for size in self.patch_size)
        return z, y, x

    def sees_well(self, index: Voxel, at: Sequence[float]) -> bool:
        """Tell whether a point lies in a window, and not at its edge."""
        for axis, (number, size, edge) in enumerate(zip(index, self.patch_size, self.edge, strict=True)):
            position = at[axis] - self.starts[axis][number]
            first = -0.5 if number == 0 else edge - 0.5
            stop = size - 0.5 if number + 1 == len(self.starts[axis]) else size - edge - 0.5
            if not first <= position < stop:
                return False
        return True

    def holds(self, index: Voxel, voxel: Voxel) -> bool:
        """Tell whether a voxel lies in a window."""
        return all(part.start <= at < part.stop for part, at in zip(self.box(index), voxel, strict=True))

    def are_close(self, one: Voxel, other: Voxel) -> bool:
        """Tell whether less than an edge lies between two windows along every axis."""
        corners = zip(self.corner(one), self.corner(other), self.patch_size, self.edge, strict=True)
        return all(abs(a - b) - size < edge for a, b, size, edge in corners)

    def neighbours(self, index: Voxel) -> Iterator[tuple[int, int, Voxel]]:
        """Yield axis, direction (-1 or 1) and index of every window that shares a direction with this one."""
        for axis, direction in product(range(3), (-1, 1)):
            other = list(index)
            other[axis] += direction
            if 0 <= other[axis] < len(self.starts[axis]):
                z, y, x = other
                yield axis, direction, (z, y, x)

    def nearest(self, axis: int, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Give the number of the window whose centre is nearest along one axis; of two the first."""
        starts = np.asarray(self.starts[axis])
        voxels = np.floor(np.asarray(positions, dtype=np.float64) + 0.5)
        away = np.abs(voxels[..., None] - starts - (self.patch_size[axis] - 1) / 2)
        return np.asarray(away.argmin(-1), dtype=np.int64)

    def span(self, axis: int, low: float, high: float) -> range:
        """Give the windows that see a stretch along one axis: one if it fits into the one nearest to its middle."""
        middle = int(self.nearest(axis, (low + high) / 2))
        start = self.starts[axis][middle]
        if start <= low and high <= start + self.patch_size[axis] - 1:
            return range(middle, middle + 1)
        return range(int(self.nearest(axis, low)), int(self.nearest(axis, high)) + 1)


def first_windows(grid: WindowGrid, prompts: ClassPrompts) -> list[Voxel]:
    """List the windows with which an answer begins, each once, in the order of the prompts.

    They are the windows whose centres are nearest to a box, to the parts of a previous mask, or to a click; of a click
    that a window before sees well there is no need of another one.
    """
    windows: list[Voxel] = []
    for box in prompts.boxes:
        windows += _all_of(grid, box.low, box.high)
    if prompts.mask is not None and prompts.mask.any():
        windows += _windows_of_mask(grid, prompts.mask)
    for point in prompts.points:
        if not any(grid.sees_well(window, point.at) for window in windows):
            windows += _all_of(grid, point.at, point.at)
    return list(dict.fromkeys(windows))


def _all_of(grid: WindowGrid, low: Sequence[float], high: Sequence[float]) -> list[Voxel]:
    depth, height, width = (grid.span(axis, low[axis], high[axis]) for axis in range(3))
    return list(product(depth, height, width))


def _windows_of_mask(grid: WindowGrid, mask_ZYX: Mask) -> list[Voxel]:
    """List the windows that are nearest to some voxel of the mask; one where the whole mask fits into it."""
    occupied = mask_ZYX
    numbers, low, high = [], [], []
    for axis in range(3):
        along = np.flatnonzero(mask_ZYX.any(axis=tuple(other for other in range(3) if other != axis)))
        low.append(int(along[0]))
        high.append(int(along[-1]))
        nearest = grid.nearest(axis, np.arange(mask_ZYX.shape[axis]))
        first_voxels = np.flatnonzero(np.diff(nearest, prepend=-1))
        numbers.append(nearest[first_voxels])
        occupied = np.logical_or.reduceat(occupied, first_voxels, axis=axis)
    around = _all_of(grid, low, high)
    if len(around) == 1:
        return around
    z, y, x = numbers
    return [(int(z[i]), int(y[j]), int(x[k])) for i, j, k in np.argwhere(occupied)]


def prompts_in_window(prompts: ClassPrompts, corner: Voxel, patch_size: Voxel) -> ClassPrompts:
    """Give what of the prompts lies in a window, in its own voxels: clicks inside, boxes and mask cut to it."""
    start, size = np.asarray(corner), np.asarray(patch_size)
    points = []
    for point in prompts.points:
        at = np.asarray(point.at) - start
        if np.all(at >= -0.5) and np.all(at < size - 0.5):
            points.append(type(point)(as_coordinates(at, "a point"), point.positive))
    boxes = []
    for box in prompts.boxes:
        low, high = np.asarray(box.low) - start, np.asarray(box.high) - start
        if np.all(high >= -0.5) and np.all(low < size - 0.5):
            ends = (as_coordinates(np.clip(end, 0, size - 1), "a box") for end in (low, high))
            boxes.append(Box(*ends))
    mask = None
    if prompts.mask is not None:
        mask = prompts.mask[tuple(slice(first, first + n) for first, n in zip(corner, patch_size, strict=True))]
    return ClassPrompts(tuple(points), tuple(boxes), mask)
