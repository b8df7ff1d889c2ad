"""What prompts add to the logits of one class: in a few boxes, not in the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3dnet.preprocessing.geometry import Voxel

Floats = npt.NDArray[np.float32]
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class CorrectedBox:
    """What is added in one box.

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

    def room_around(self, voxel: Voxel) -> int:
        """How many voxels it is from a voxel to the nearest face of the box; below 0 outside."""
        sides = zip(voxel, self.low, self.high, strict=True)
        return min(min(at - first, stop - 1 - at) for at, first, stop in sides)

    def add_to(self, values_zyx: Floats, low: Voxel) -> None:
        """Add what lies in a box that begins at a voxel to its values, in place."""
        ours, theirs = [], []
        for part, first, size in zip(self.box, low, values_zyx.shape, strict=True):
            start, stop = max(part.start, first), min(part.stop, first + size)
            if start >= stop:
                return
            ours.append(slice(start - part.start, stop - part.start))
            theirs.append(slice(start - first, stop - first))
        values_zyx[tuple(theirs)] += self.values_zyx[tuple(ours)]

    def place(self, voxel: Voxel) -> Voxel:
        """Give a voxel of the image as one of the box."""
        z, y, x = (position - first for position, first in zip(voxel, self.low, strict=True))
        return z, y, x


@dataclass(frozen=True, eq=False)
class Correction:
    """The sum of what is added in some boxes, which may overlap; elsewhere it is 0."""

    boxes: tuple[CorrectedBox, ...]

    def around(self, voxel: Voxel) -> CorrectedBox:
        """Give the box that reaches farthest around a voxel that was looked at."""
        return max(self.boxes, key=lambda one: one.room_around(voxel))

    def looked_at(self, voxel: Voxel) -> bool:
        """Tell whether a voxel lies in one of the boxes."""
        return any(one.room_around(voxel) >= 0 for one in self.boxes)

    def at(self, voxel: Voxel) -> float:
        """Give what is added at a voxel."""
        holding = (one for one in self.boxes if one.room_around(voxel) >= 0)
        return float(sum(one.values_zyx[one.place(voxel)] for one in holding))

    def values_in(self, low: Voxel, shape: Sequence[int]) -> Floats:
        """Give what is added in the box of a shape that begins at a voxel, which may lie beyond the image."""
        values: Floats = np.zeros(tuple(shape), np.float32)
        for one in self.boxes:
            one.add_to(values, low)
        return values


NO_CORRECTION = Correction(())
