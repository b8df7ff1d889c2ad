"""Arrays of one volume whose axes run in another order or backwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.preprocessing.geometry import Voxel

OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))


@dataclass(frozen=True)
class Turn:
    """The way from one array to another of the same volume.

    Attributes:
        order: Axis n of the second array is axis order[n] of the first.
        backwards: Which axes of the second array then run backwards.
    """

    order: Voxel = (0, 1, 2)
    backwards: tuple[bool, bool, bool] = (False, False, False)

    def forth(self, first: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the second array, a view; axes before the last three stay."""
        before = first.ndim - 3
        return first.transpose(*range(before), *(before + axis for axis in self.order))[self._steps()]

    def back(self, second: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the first array for the second, a view."""
        before = second.ndim - 3
        turned = second[self._steps()]
        return turned.transpose(*range(before), *(before + int(axis) for axis in np.argsort(self.order)))

    def place(self, first: Sequence[float], first_shape: Sequence[int]) -> tuple[float, float, float]:
        """Give the index in the second array of a place in the first; both may lie between voxels, or outside."""
        moved = [first[axis] for axis in self.order]
        sizes = [first_shape[axis] for axis in self.order]
        z, y, x = (size - 1 - at if back else at for at, size, back in zip(moved, sizes, self.backwards, strict=True))
        return z, y, x

    def spacing(self, first_mm: Sequence[float]) -> tuple[float, float, float]:
        """Give the spacing of the second array."""
        z, y, x = (first_mm[axis] for axis in self.order)
        return z, y, x

    def _steps(self) -> Any:
        return (..., *(slice(None, None, -1 if back else None) for back in self.backwards))


def turn_between(first: str, second: str) -> Turn:
    """Give the way between arrays whose axes run towards these sides of the patient, such as "SAR" and "SPL"."""
    order, backwards = [], []
    for letter in second:
        found = next(axis for axis, other in enumerate(first) if other in (letter, OPPOSITE[letter]))
        order.append(found)
        backwards.append(first[found] != letter)
    (z, y, x), (back_z, back_y, back_x) = order, backwards
    return Turn((z, y, x), (back_z, back_y, back_x))


def all_turns(first_shape: Sequence[int], second_shape: Sequence[int]) -> list[Turn]:
    """Give all that bring an array of the first shape to one of the second, fewest changes first."""
    found = [
        Turn((z, y, x), (back_z, back_y, back_x))
        for z, y, x in permutations((0, 1, 2))
        if (first_shape[z], first_shape[y], first_shape[x]) == tuple(second_shape)
        for back_z, back_y, back_x in product((False, True), repeat=3)
    ]
    return sorted(found, key=lambda turn: (turn.order != (0, 1, 2), sum(turn.backwards)))
