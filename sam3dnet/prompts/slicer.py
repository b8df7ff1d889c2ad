"""Read 3D Slicer's markups: point lists become clicks, regions of interest become boxes.

The format is that of Slicer's markups schema, versions 1.0.0 to 1.0.4.
"""

import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.geometry import Space
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.prompts.stated import Corners, Source, StatedPrompts
from sam3dnet.prompts.types import Point, as_coordinates

logger = logging.getLogger(__name__)

MARKUPS_ENDING = ".mrk.json"
NEGATIVE_MARK = "-"
NEGATIVE_WORD = re.compile(r"\bnegative\b", re.IGNORECASE)
# Slicer writes the name; files of its old versions and of other programs have its number.
_SPACES: dict[Any, Space] = {"LPS": "LPS", "RAS": "RAS", "1": "LPS", "0": "RAS"}
_LPS_FROM_RAS = (-1.0, -1.0, 1.0)
_POINT_LISTS = ("Fiducial", "PointList")
_REGION = "ROI"
_CASE_SEPARATORS = "_-. "
_NUMBERING = r"[-_ ]?\d+"


def read_markups(
    file: Path, content: dict[str, Any], case_names: Collection[str], class_names: Collection[str]
) -> list[StatedPrompts]:
    """Read a markups file.

    A control point's label is the class, with or without Slicer's numbering (tumour, tumour-1, tumour_2), after the
    case's name or not; a leading "-", or the word "negative" in its description, makes the click negative. Points that
    were not placed are left out, hidden ones count. The class of a region is its name, else the label of its control
    point, else what the file's name says after the case.

    Args:
        file: Named CASE.mrk.json, or CASE_anything.mrk.json.
        content: What it holds.
        case_names: The images to segment.
        class_names: Of the model.

    Raises:
        PromptError: If the case or a class is not known, or the file is malformed.
    """
    case, rest = _case_of(file, case_names)
    names = _ClassNames(Source(file, case), class_names, rest)
    markups = content["markups"]
    if not isinstance(markups, list):
        raise Source(file, case).error('"markups" is no list; save the markups again in 3D Slicer')
    found = [one for number, markup in enumerate(markups, start=1) for one in _read_markup(names, markup, number)]
    return [_as_itk_sees(stated) for stated in found]


def _as_itk_sees(stated: StatedPrompts) -> StatedPrompts:
    """Bring coordinates to LPS: Slicer reads images by ITK, in whatever system it writes down what was marked."""
    if stated.space == "LPS":
        return stated
    mirrored = [
        replace(point, at=as_coordinates(np.multiply(point.at, _LPS_FROM_RAS), "a point")) for point in stated.points
    ]
    boxes = [tuple(as_coordinates(np.multiply(at, _LPS_FROM_RAS), "a corner") for at in box) for box in stated.boxes]
    return replace(stated, space="LPS", points=tuple(mirrored), boxes=tuple(boxes))


def _case_of(file: Path, case_names: Collection[str]) -> tuple[str, str]:
    """Find the case in a file's name, the longest that fits, and what follows it."""
    name = file.name.removesuffix(".json").removesuffix(".mrk")
    starts = {case: tuple(case + separator for separator in _CASE_SEPARATORS) for case in case_names}
    fitting = [case for case in case_names if name == case or name.startswith(starts[case])]
    if not fitting:
        raise Source(file).error(
            f"the name fits no case, there are {shorten(sorted(case_names))}; name the file CASE{MARKUPS_ENDING} or "
            f"CASE_anything{MARKUPS_ENDING}"
        )
    case = max(fitting, key=len)
    return case, name[len(case) + 1 :]


class _ClassNames:
    """Finds classes in labels of one file."""

    def __init__(self, source: Source, class_names: Collection[str], rest_of_file_name: str) -> None:
        self.source = source
        self.class_names = class_names
        self.rest_of_file_name = rest_of_file_name

    def find(self, label: str) -> str | None:
        """Give the class that a label names: itself, or followed by a number, after the case's name or not."""
        label = label.strip()
        case = str(self.source.case)
        after_case = label[len(case) :].lstrip(_CASE_SEPARATORS) if label.startswith(case) else label
        for text in (label, after_case):
            if text in self.class_names:
                return text
            found = [name for name in self.class_names if re.fullmatch(re.escape(name) + _NUMBERING, text)]
            if len(found) > 1:
                raise self.source.error(
                    f'label "{label}" may mean {" or ".join(sorted(found))}; write the class, "-" and a number'
                )
            if found:
                return found[0]
        return None

    def require(self, labels: Iterable[str], what: str) -> str:
        """Give the class that the first label with one names.

        Raises:
            PromptError: If none does.
        """
        given = [label for label in labels if label]
        found = next((name for label in given if (name := self.find(label)) is not None), None)
        if found is None:
            came = shorten([f'"{label}"' for label in given]) or "no label"
            raise self.source.error(
                f"{what} has {came}, expected one of the classes {shorten(sorted(self.class_names))}; rename it in "
                "3D Slicer"
            )
        return found


def _read_markup(names: _ClassNames, markup: Any, number: int) -> list[StatedPrompts]:
    source, what = names.source, f"markup {number}"
    _require_object(source, markup, what)
    kind = markup.get("type")
    if kind not in _POINT_LISTS and kind != _REGION:
        logger.warning("%s: %s is of type %s, which is no prompt, and left out", source.file, what, kind)
        return []
    space = _space_of(source, markup, what)
    points = markup.get("controlPoints", [])
    if not isinstance(points, list):
        raise source.error(f'{what}: "controlPoints" is no list; save it again in 3D Slicer')
    for point_number, point in enumerate(points, start=1):
        _require_object(source, point, f"{what}, point {point_number}")
    if kind == _REGION:
        return [_read_region(names, markup, points, space, what)]
    return [
        _read_point(names, point, space, f"{what}, point {point_number}")
        for point_number, point in enumerate(points, start=1)
        if point.get("positionStatus", "defined") == "defined"
    ]


def _require_object(source: Source, given: Any, what: str) -> None:
    if not isinstance(given, dict):
        raise source.error(f"{what} is {given!r:.80}, expected an object {{...}}; save it again in 3D Slicer")


def _space_of(source: Source, markup: dict[str, Any], what: str) -> Space:
    given = markup.get("coordinateSystem", "LPS")
    space = _SPACES.get(str(given).upper())
    if space is None:
        raise source.error(f'{what}: "coordinateSystem" is {given!r}, expected "LPS" or "RAS"; save it again in one')
    units = markup.get("coordinateUnits", "mm")
    unit = units[0] if isinstance(units, list) and units else units
    if unit != "mm":
        raise source.error(f"{what}: coordinates are in {unit!r}, expected millimetres; set Slicer's length unit to mm")
    return space


def _read_point(names: _ClassNames, point: dict[str, Any], space: Space, what: str) -> StatedPrompts:
    label, description = _text(names.source, point, "label", what), _text(names.source, point, "description", what)
    has_mark = label.startswith(NEGATIVE_MARK) and names.find(label) is None
    class_name = names.require([label.removeprefix(NEGATIVE_MARK) if has_mark else label], what)
    positive = not has_mark and NEGATIVE_WORD.search(description) is None
    at = _numbers(names.source, point.get("position"), 3, f'{what}: "position"')
    return StatedPrompts(
        Source(names.source.file, names.source.case, class_name),
        space,
        points=(Point(as_coordinates(at, what), positive),),
    )


def _read_region(
    names: _ClassNames, markup: dict[str, Any], points: list[dict[str, Any]], space: Space, what: str
) -> StatedPrompts:
    source = names.source
    labels = [_text(source, markup, "name", what), *(_text(source, point, "label", what) for point in points)]
    class_name = names.require([*labels, names.rest_of_file_name], what)
    if markup.get("insideOut") is True:
        raise source.error(f"{what} is inside out, expected a box around the object; clear its box Inside out")
    return StatedPrompts(
        Source(source.file, source.case, class_name), space, boxes=(_corners_of_region(source, markup, what),)
    )


def _corners_of_region(source: Source, markup: dict[str, Any], what: str) -> Corners:
    """Give the corners of a region: its centre, and half its size along each of its own axes, which are columns."""
    centre = _numbers(source, markup.get("center"), 3, f'{what}: "center"')
    size = _numbers(source, markup.get("size"), 3, f'{what}: "size"')
    axes = _numbers(source, markup.get("orientation", np.eye(3).ravel().tolist()), 9, f'{what}: "orientation"')
    if (size < 0).any() or not size.any():
        raise source.error(f"{what} is empty, its size is {size.tolist()} mm; draw it around the object")
    signs = np.stack(np.meshgrid((-1, 1), (-1, 1), (-1, 1), indexing="ij"), axis=-1).reshape(8, 3)
    corners = centre + (signs * size / 2) @ axes.reshape(3, 3).T
    return tuple(as_coordinates(corner, what) for corner in corners)


def _numbers(source: Source, given: Any, count: int, what: str) -> np.ndarray:
    try:
        if not isinstance(given, list) or len(given) != count:
            raise PromptError(f"{what} is {given!r:.80}, expected {count} numbers")
        return np.ravel([as_coordinates(given[start : start + 3], what) for start in range(0, count, 3)])
    except PromptError as error:
        raise source.error(f"{error}; save it again in 3D Slicer") from None


def _text(source: Source, content: dict[str, Any], key: str, what: str) -> str:
    given = content.get(key, "")
    if not isinstance(given, str):
        raise source.error(f'{what}: "{key}" is {given!r:.80}, expected a text; save it again in 3D Slicer')
    return given
