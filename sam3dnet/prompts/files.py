"""Read prompts from our JSON, from 3D Slicer's markups, or from a folder of both; docs/prompts.md describes the files.

    {"format": "sam3dnet-prompts/1", "space": "LPS" | "RAS" | "voxel",
     "cases": {CASE: {CLASS: {"points": [{"at": [x, y, z], "positive": true}],
                              "boxes": [{"min": [x, y, z], "max": [x, y, z]}],
                              "mask": "file.nii.gz",
                              "instance": false}}}}

`read_prompts` reads; `sam3dnet.prompts.placing.place_case` brings what was read to a preprocessed image.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.geometry import Space
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.prompts.slicer import MARKUPS_ENDING, read_markups
from sam3dnet.prompts.stated import Corners, FilePrompts, Source, StatedPrompts, corners_of
from sam3dnet.prompts.types import Box, Point, as_coordinates

FORMAT = "sam3dnet-prompts/1"
SPACES: tuple[Space, ...] = get_args(Space)
ENDING = ".json"


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
    source = Source(file)
    if content.get("format") != FORMAT:
        raise source.error(
            f'"format" is {content.get("format")!r}, expected "{FORMAT}"; see docs/prompts.md, or update sam3dnet'
        )
    _require_keys(source, content, ("format", "space", "cases"), "the file")
    if content.get("space") not in SPACES:
        known = ", ".join(f'"{space}"' for space in SPACES)
        raise source.error(
            f'"space" is {content.get("space")!r}, expected one of {known}; say in which the numbers are'
        )
    space = cast(Space, content["space"])
    stated = []
    for case, by_class in _object(source, content.get("cases"), '"cases"').items():
        _require_known(Source(file), "case", case, case_names, "name it as its image, without _0000 and the ending")
        for class_name, given in _object(Source(file, case), by_class, "the case").items():
            _require_known(Source(file, case), "class", class_name, class_names, "give one of the model's classes")
            stated.append(_read_class(Source(file, case, class_name), given, space))
    return [one for one in stated if one.points or one.boxes or one.mask_file or one.instance]


def _read_class(source: Source, given: Any, space: Space) -> StatedPrompts:
    content = _object(source, given, "the class")
    _require_keys(source, content, ("points", "boxes", "mask", "instance"), "a class")
    points = [_read_point(source, entry, number) for number, entry in _entries(source, content, "points")]
    boxes = [_read_box(source, entry, number) for number, entry in _entries(source, content, "boxes")]
    instance = _yes_or_no(source, content, "instance", False, "")
    stated = StatedPrompts(source, space, tuple(points), tuple(boxes), instance=instance)
    return replace(stated, mask_file=_mask_file(source, content["mask"])) if "mask" in content else stated


def _read_point(source: Source, given: Any, number: int) -> Point:
    content = _object(source, given, f"point {number}")
    _require_keys(source, content, ("at", "positive"), f"point {number}")
    positive = _yes_or_no(source, content, "positive", True, f"point {number}: ")
    try:
        return Point(as_coordinates(content.get("at"), '"at"'), positive)
    except PromptError as error:
        raise source.error(f"point {number}: {error}") from None


def _read_box(source: Source, given: Any, number: int) -> Corners:
    content = _object(source, given, f"box {number}")
    _require_keys(source, content, ("min", "max"), f"box {number}")
    try:
        low, high = (as_coordinates(content.get(key), f'"{key}"') for key in ("min", "max"))
        return corners_of(Box(low, high))
    except PromptError as error:
        raise source.error(f"box {number}: {error}") from None


def _mask_file(source: Source, given: Any) -> Path:
    """Find a mask beside or below the file that names it; nothing outside of that folder is opened."""
    folder = source.file.resolve().parent
    if not isinstance(given, str) or not given:
        raise source.error(f'"mask" is {given!r}, expected the name of a file')
    file = (folder / given).resolve()
    if Path(given).is_absolute() or not file.is_relative_to(folder):
        raise source.error(f"mask {given!r} leads out of the folder {folder}; put it there and give its name alone")
    if not file.is_file():
        raise source.error(f"mask {given!r}: not found in {folder}; a mask's name is relative to the file of prompts")
    return file


def _object(source: Source, given: Any, what: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise source.error(f"{what} is {given!r:.80}, expected an object {{...}}; see docs/prompts.md")
    return given


def _yes_or_no(source: Source, content: dict[str, Any], key: str, unless_said: bool, where: str) -> bool:
    given = content.get(key, unless_said)
    if not isinstance(given, bool):
        raise source.error(f'{where}"{key}" is {given!r:.80}, expected true or false')
    return given


def _entries(source: Source, content: dict[str, Any], key: str) -> Iterable[tuple[int, Any]]:
    given = content.get(key, [])
    if not isinstance(given, list):
        raise source.error(f'"{key}" is {given!r:.80}, expected a list [...]; see docs/prompts.md')
    return enumerate(given, start=1)


def _require_keys(source: Source, content: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    unknown = [key for key in content if key not in known]
    if unknown:
        raise source.error(
            f"{what} has the key {', '.join(map(repr, unknown))}, expected {', '.join(map(repr, known))}; correct it"
        )


def _require_known(source: Source, what: str, name: str, known: Collection[str], remedy: str) -> None:
    if name not in known:
        raise source.error(f'there is no {what} "{name}", there are {shorten(sorted(known))}; {remedy}')
