"""Read prompts from our JSON, from 3D Slicer's markups, or from a folder of both; docs/prompts.md describes the files.

    {"format": "sam3dnet-prompts/1", "space": "LPS" | "RAS" | "voxel",
     "cases": {CASE: {CLASS: {"points": [{"at": [x, y, z], "positive": true}],
                              "scribbles": [{"at": [[x, y, z], ...], "positive": true}],
                              "boxes": [{"min": [x, y, z], "max": [x, y, z]}],
                              "mask": "file.nii.gz",
                              "instance": false}}},
     "images": {CASE: SHA-256 of the image's files}}

`read_prompts` reads; `sam3dnet.prompts.placing.place_case` brings what was read to a preprocessed image.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, field_validator

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.geometry import Space
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.schemas import ClosedPart, checked
from sam3dnet.prompts.slicer import MARKUPS_ENDING, read_markups
from sam3dnet.prompts.stated import Corners, FilePrompts, Source, StatedPrompts, corners_of
from sam3dnet.prompts.types import Box, Coordinates, Point, Scribble, as_coordinates

FORMAT = "sam3dnet-prompts/1"
ENDING = ".json"


def _three_numbers(given: Any) -> Coordinates:
    try:
        return as_coordinates(given, "")
    except PromptError:
        raise ValueError("three finite numbers") from None


Place = Annotated[Coordinates, BeforeValidator(_three_numbers)]


class PointEntry(ClosedPart):
    """A click."""

    at: Place
    positive: StrictBool = True


class ScribbleEntry(ClosedPart):
    """A stroke: many places of one polarity."""

    at: Annotated[tuple[Place, ...], Field(min_length=1)]
    positive: StrictBool = True


class BoxEntry(ClosedPart):
    """A box by two opposite corners."""

    min: Place
    max: Place


class ClassEntry(ClosedPart):
    """What is said about one class of one case; `mask` is the name of a file beside or below the one that names it."""

    points: tuple[PointEntry, ...] = ()
    scribbles: tuple[ScribbleEntry, ...] = ()
    boxes: tuple[BoxEntry, ...] = ()
    mask: Annotated[StrictStr, Field(min_length=1)] | None = None
    instance: StrictBool = False


class PromptFile(ClosedPart):
    """A file of prompts, by case and class; `images` says by what digests the images are known again."""

    format: StrictStr
    space: Space
    cases: dict[str, dict[str, ClassEntry]]
    images: dict[str, StrictStr] = Field(default_factory=dict)

    @field_validator("format")
    @classmethod
    def _is_ours(cls, given: str) -> str:
        if given != FORMAT:
            raise ValueError(f"{FORMAT!r} (or update sam3dnet)")
        return given


def read_prompts(path: Path | str, case_names: Collection[str], class_names: Collection[str]) -> FilePrompts:
    """Read the prompts of a file, or of all files of a folder that end in .json or .mrk.json.

    Args:
        path: A file in our format, markups of 3D Slicer named after the case (CASE.mrk.json, CASE_anything.mrk.json),
            or a folder of such files.
        case_names: The images to segment.
        class_names: Of the model, without the background.

    Returns:
        What is stated, by case and class, in the order of the files' names.

    Raises:
        PromptError: If nothing is there, a file is malformed, or a case, class, space or format is unknown.
    """
    path = Path(path)
    cases: dict[str, dict[str, tuple[StatedPrompts, ...]]] = {}
    for file in _list_files(path):
        for stated in _read_file(file, case_names, class_names):
            case, class_name = str(stated.source.case), str(stated.source.class_name)
            by_class = cases.setdefault(case, {})
            by_class[class_name] = (*by_class.get(class_name, ()), stated)
    return FilePrompts(cases)


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PromptError(f"{path}: not found; give a file of prompts, or a folder with some")
    files = sorted(file for file in path.iterdir() if _is_prompt_file(file))
    if not files:
        raise PromptError(f"{path}: no file ends in {ENDING} or {MARKUPS_ENDING}; put the prompts there")
    return files


def _is_prompt_file(file: Path) -> bool:
    return file.name.endswith(ENDING) and not file.name.startswith(".") and file.is_file()


def _read_file(file: Path, case_names: Collection[str], class_names: Collection[str]) -> list[StatedPrompts]:
    content = read_json(file, PromptError, "see docs/prompts.md")
    if "markups" in content:
        return read_markups(file, content, case_names, class_names)
    return _read_ours(file, content, case_names, class_names)


def _read_ours(
    file: Path, content: dict[str, Any], case_names: Collection[str], class_names: Collection[str]
) -> list[StatedPrompts]:
    read, stated = checked(PromptFile, content, file, PromptError, "see docs/prompts.md"), []
    for case, by_class in read.cases.items():
        _require_known(Source(file), "case", case, case_names, "name it as its image, without _0000 and the ending")
        for class_name, given in by_class.items():
            _require_known(Source(file, case), "class", class_name, class_names, "give one of the model's classes")
            stated.append(_as_stated(Source(file, case, class_name), given, read.space))
    return [one for one in stated if one.points or one.scribbles or one.boxes or one.mask_file or one.instance]


def _as_stated(source: Source, given: ClassEntry, space: Space) -> StatedPrompts:
    points = tuple(Point(entry.at, entry.positive) for entry in given.points)
    boxes = tuple(_corners(source, entry, number) for number, entry in enumerate(given.boxes, start=1))
    mask_file = None if given.mask is None else _mask_file(source, given.mask)
    scribbles = tuple(Scribble(entry.at, entry.positive) for entry in given.scribbles)
    return StatedPrompts(source, space, points, boxes, mask_file, given.instance, scribbles)


def _corners(source: Source, given: BoxEntry, number: int) -> Corners:
    try:
        return corners_of(Box(given.min, given.max))
    except PromptError as error:
        raise source.error(f"box {number}: {error}") from None


def _mask_file(source: Source, given: str) -> Path:
    """Find a mask beside or below the file that names it; nothing outside of that folder is opened."""
    folder = source.file.resolve().parent
    file = (folder / given).resolve()
    if Path(given).is_absolute() or not file.is_relative_to(folder):
        raise source.error(f"mask {given!r} leads out of the folder {folder}; put it there and give its name alone")
    if not file.is_file():
        raise source.error(f"mask {given!r}: not found in {folder}; a mask's name is relative to the file of prompts")
    return file


def _require_known(source: Source, what: str, name: str, known: Collection[str], remedy: str) -> None:
    if name not in known:
        raise source.error(f'there is no {what} "{name}", there are {shorten(sorted(known))}; {remedy}')
