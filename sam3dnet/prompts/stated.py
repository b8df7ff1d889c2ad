"""Prompts as files state them: in the space that the file names, each with the place where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.geometry import Space
from sam3dnet.prompts.types import Box, Coordinates, Point, Scribble

Corners: TypeAlias = tuple[Coordinates, ...]  # the eight corners of a box, which may be rotated


@dataclass(frozen=True)
class Source:
    """Where something is stated: a file, and a case and a class in it."""

    file: Path
    case: str | None = None
    class_name: str | None = None

    def error(self, problem: object) -> PromptError:
        """Make the error that names the place and says what is wrong there."""
        parts = [f'case "{self.case}"'] * (self.case is not None)
        parts += [f'class "{self.class_name}"'] * (self.class_name is not None)
        return PromptError(": ".join([str(self.file), *([", ".join(parts)] if parts else []), str(problem)]))


@dataclass(frozen=True)
class StatedPrompts:
    """What one file states about one class of one case.

    Attributes:
        source: Where it is stated.
        space: Of the coordinates.
        points: At (x, y, z) in millimetres, or (i, j, k).
        boxes: The eight corners of each.
        mask_file: A previous mask, on the image's grid.
        instance: Whether only those objects of the class are wanted that prompts name.
        scribbles: Their places as of points.
    """

    source: Source
    space: Space
    points: tuple[Point, ...] = ()
    boxes: tuple[Corners, ...] = ()
    mask_file: Path | None = None
    instance: bool = False
    scribbles: tuple[Scribble, ...] = ()


CasePrompts: TypeAlias = Mapping[str, tuple[StatedPrompts, ...]]


@dataclass(frozen=True)
class FilePrompts:
    """All prompts of a file or a folder.

    Attributes:
        cases: By case and class; a class that more than one file states has more than one entry. Classes and cases of
            which nothing is stated are left out.
    """

    cases: Mapping[str, CasePrompts]

    def of_case(self, name: str) -> CasePrompts:
        """Give the prompts of a case by class; none if nothing is stated."""
        return self.cases.get(name, {})


def corners_of(box: Box) -> Corners:
    """Give the eight corners of a box along the axes of its space."""
    (x0, y0, z0), (x1, y1, z1) = box.low, box.high
    return tuple((x, y, z) for x in (x0, x1) for y in (y0, y1) for z in (z0, z1))
