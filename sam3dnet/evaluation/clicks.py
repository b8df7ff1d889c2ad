"""A simulated user: the first click on the object, every further one on the largest error that is left."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from sam3dnet.evaluation.lesions import CONNECTIVITY
from sam3dnet.prompts.components import connected
from sam3dnet.prompts.sampling import corrective_click, innermost_voxel, margin_voxel
from sam3dnet.prompts.types import Box, ClassPrompts, Coordinates, Point, Scribble
from sam3dnet.settings.evaluation import FirstClick

Mask = npt.NDArray[np.bool_]
T = TypeVar("T")

# What a negative click may leave of a false positive that counts as removed.
MOST_LEFT = 0.1
# Smaller ones vanish with the clicked voxel, whatever the model does.
FEWEST_VOXELS = 8
MOST_FALSE_POSITIVES = 5


class Session(Protocol):
    """What the simulated user needs of a PromptSession that holds an image; places are voxels (i, j, k)."""

    def mask(self, class_name: str) -> Mask:
        """Give the present mask of a class, (Z, Y, X) on the image's grid."""
        ...

    def click(self, at: tuple[float, float, float], positive: bool, class_name: str) -> Mask:
        """Click, and give the mask after it."""
        ...

    def prompt(self, prompts: ClassPrompts, class_name: str) -> Mask:
        """Say several things at once, and give the mask after them."""
        ...

    def reset(self) -> None:
        """Forget all clicks."""
        ...


@dataclass(frozen=True)
class Step:
    """The mask after a number of clicks, the last of them (None without, or of several), and the seconds it took."""

    mask: Mask
    point: Point | None
    seconds: float


@dataclass(frozen=True)
class Removal:
    """A false positive of the automatic mask: its voxels, and the share of them left after one negative click."""

    voxels: int
    left: float

    @property
    def removed(self) -> bool:
        """Whether at most a tenth is left."""
        return self.left <= MOST_LEFT


def click_through(
    session: Session,
    truth_ZYX: Mask,
    class_name: str,
    spacing_mm: Sequence[float],
    num_clicks: int,
    first_click: FirstClick,
    rng: Generator,
) -> Iterator[Step]:
    """Click one object until it is right or the clicks are used up.

    Args:
        session: Holds the image; its clicks are forgotten first.
        truth_ZYX: Where the class is, not empty, on the image's grid.
        class_name: Of the class.
        spacing_mm: (Z, Y, X).
        num_clicks: How often to click at most.
        first_click: Where the first one goes: to the innermost voxel of the object, or near its margin.
        rng: Draws the place near the margin.

    Yields:
        The step after 0, 1, ... clicks; fewer than asked for once nothing is wrong any more.
    """
    session.reset()
    step = _step(lambda: session.mask(class_name), None)
    yield step
    for number in range(num_clicks):
        if number:
            point = corrective_click(step.mask, truth_ZYX, spacing_mm)
        else:
            point = Point(_first_voxel(truth_ZYX, spacing_mm, first_click, rng))
        if point is None:
            return
        step = click_at(session, point, class_name)
        yield step


def remove_false_positives(
    session: Session, truth_ZYX: Mask, class_name: str, spacing_mm: Sequence[float]
) -> list[Removal]:
    """Click once, negatively, into each false positive of the automatic mask: a component without a true voxel.

    Args:
        session: Holds the image; its clicks are forgotten before each click.
        truth_ZYX: Where the class is, on the image's grid.
        class_name: Of the class.
        spacing_mm: (Z, Y, X).

    Returns:
        What became of the largest five that have at least eight voxels.
    """
    session.reset()
    removals = []
    for component in false_positives(session.mask(class_name), truth_ZYX):
        session.reset()
        step = click_at(session, Point(innermost_voxel(component, spacing_mm), positive=False), class_name)
        voxels = int(np.count_nonzero(component))
        removals.append(Removal(voxels, int(np.count_nonzero(step.mask & component)) / voxels))
    session.reset()
    return removals


def false_positives(predicted_ZYX: Mask, truth_ZYX: Mask) -> list[Mask]:
    """Find the components of a mask, by 26 neighbours, without a true voxel; the largest first."""
    components, count = connected(predicted_ZYX, CONNECTIVITY)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[np.unique(components[truth_ZYX])] = 0
    sizes[0] = 0
    by_size = np.argsort(-sizes, kind="stable")[:MOST_FALSE_POSITIVES]
    return [components == number for number in by_size if sizes[number] >= FEWEST_VOXELS]


def _first_voxel(
    truth_ZYX: Mask, spacing_mm: Sequence[float], first_click: FirstClick, rng: Generator
) -> tuple[int, int, int]:
    if first_click == "centre":
        return innermost_voxel(truth_ZYX, spacing_mm)
    return margin_voxel(truth_ZYX, spacing_mm, rng)


def click_at(session: Session, point: Point, class_name: str) -> Step:
    """Click at a voxel (z, y, x), and measure how long the mask takes."""
    at = _reversed(point.at)
    return _step(lambda: session.click(at, positive=point.positive, class_name=class_name), point)


def prompt_session(session: Session, prompts: ClassPrompts, class_name: str) -> Step:
    """Say several things at once, in voxels (z, y, x), and measure how long the mask takes; nothing gives it as is."""
    if not prompts:
        return _step(lambda: session.mask(class_name), None)
    points = tuple(Point(_reversed(point.at), point.positive) for point in prompts.points)
    boxes = tuple(Box(_reversed(box.low), _reversed(box.high)) for box in prompts.boxes)
    scribbles = tuple(Scribble(tuple(map(_reversed, one.at)), one.positive) for one in prompts.scribbles)
    return _step(lambda: session.prompt(ClassPrompts(points, boxes, prompts.mask, scribbles), class_name), None)


def _reversed(at: Coordinates) -> Coordinates:
    return at[2], at[1], at[0]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Do something; give what came of it, and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _step(work: Callable[[], Mask], point: Point | None) -> Step:
    mask, seconds = timed(work)
    return Step(mask, point, seconds)
