"""What a user says about one class of one image: points, scribbles, boxes and a previous mask.

The function that takes or gives them says in which space they are. Inside (engine, network) they are float voxel
coordinates (z, y, x) of the preprocessed array, voxel centres at integers.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import PromptError

Coordinates: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Point:
    """A click: the class is there, or it is not.

    Args:
        at: Where, three finite numbers in the space that the caller says.
        positive: Whether the class is there.

    Raises:
        PromptError: If `at` is not three finite numbers.
    """

    at: Coordinates
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", as_coordinates(self.at, "a point"))

    @property
    def voxel(self) -> tuple[int, int, int]:
        """The voxel that holds the point, whose coordinates are in voxels; between two it is the higher one."""
        first, second, third = (math.floor(at + 0.5) for at in self.at)
        return first, second, third


@dataclass(frozen=True)
class Scribble:
    """A stroke of a pencil: the class is, or is not, at each of its places.

    Args:
        at: Its places, at least one, in the space that the caller says; nothing is drawn between them.
        positive: Whether the class is there.

    Raises:
        PromptError: If there is none, or one is not three finite numbers.
    """

    at: tuple[Coordinates, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        places = tuple(as_coordinates(one, "a place of a scribble") for one in self.at)
        if not places:
            raise PromptError("a scribble has no places; give at least one")
        object.__setattr__(self, "at", places)

    @property
    def points(self) -> tuple[Point, ...]:
        """Its places as so many clicks."""
        return tuple(Point(one, self.positive) for one in self.at)


@dataclass(frozen=True)
class Box:
    """A box around the object; in voxels, both corners are centres of voxels that belong to it.

    A box in one slice has equal entries of `low` and `high` along one axis.

    Args:
        low: The lowest corner.
        high: The highest corner, nowhere below `low`.

    Raises:
        PromptError: If a corner is not three finite numbers, or the box is empty.
    """

    low: Coordinates
    high: Coordinates

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", as_coordinates(self.low, "a box's lowest corner"))
        object.__setattr__(self, "high", as_coordinates(self.high, "a box's highest corner"))
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise PromptError(
                f"a box from {format_coordinates(self.low)} to {format_coordinates(self.high)} is empty; its lowest "
                "corner must not lie above its highest along any axis"
            )


@dataclass(frozen=True, eq=False)
class ClassPrompts:
    """All prompts of one class; compared by identity, since a mask is an array.

    Args:
        points: In the order in which they were made; of two on one voxel the later counts.
        boxes: Each holds a part of the object, or all of it.
        mask: A previous mask on the grid of the space, bool, (Z, Y, X).
        scribbles: In the order in which they were made, all after the points.

    Raises:
        PromptError: If the mask is not a bool array with three axes.
    """

    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: npt.NDArray[np.bool_] | None = None
    scribbles: tuple[Scribble, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))
        object.__setattr__(self, "scribbles", tuple(self.scribbles))
        object.__setattr__(self, "boxes", tuple(self.boxes))
        if self.mask is not None and (self.mask.dtype != bool or self.mask.ndim != 3):
            raise PromptError(
                f"a previous mask is an array of {self.mask.dtype} with {self.mask.ndim} axes, expected bool with 3 "
                "(Z, Y, X); compare it with 0 first"
            )

    def __bool__(self) -> bool:
        """Whether anything is said at all."""
        return bool(self.points or self.scribbles or self.boxes or self.mask is not None)

    def counts(self) -> dict[str, int]:
        """Count what is said by kind, without kinds of which there is nothing."""
        masks = () if self.mask is None else (self.mask,)
        kinds = {"points": self.points, "boxes": self.boxes, "scribbles": self.scribbles, "masks": masks}
        return {kind: len(said) for kind, said in kinds.items() if said}

    @property
    def clicks(self) -> tuple[Point, ...]:
        """The points, and the places of scribbles as so many more."""
        if not self.scribbles:
            return self.points
        return (*self.points, *(point for one in self.scribbles for point in one.points))


def counts_by_class(said: Iterable[tuple[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up what was said of each class, by kind; see `ClassPrompts.counts`."""
    found: dict[str, dict[str, int]] = {}
    for class_name, counts in said:
        of_class = found.setdefault(class_name, {})
        for kind, number in counts.items():
            of_class[kind] = of_class.get(kind, 0) + number
    return found


def as_coordinates(given: Any, what: str) -> Coordinates:
    """Take three finite numbers, numpy's too, as Python floats.

    Args:
        given: What should be three numbers.
        what: Its name in the message of an error.

    Raises:
        PromptError: If it is not a sequence of three finite numbers; a bool is no number.
    """
    items = list(given) if isinstance(given, list | tuple | np.ndarray) else None
    if items is None or len(items) != 3 or not all(_is_number(item) for item in items):
        raise PromptError(f"{what} is {given!r}, expected three finite numbers")
    return float(items[0]), float(items[1]), float(items[2])


def format_coordinates(coordinates: Coordinates) -> str:
    """Write coordinates for a message, such as (12, 7.5, -30)."""
    return f"({', '.join(f'{value:g}' for value in coordinates)})"


def _is_number(item: Any) -> bool:
    if isinstance(item, bool) or not isinstance(item, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(item)
    except OverflowError:
        return False
