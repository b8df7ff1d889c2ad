"""3D Slicer's markups: labels, numbering, polarity, regions, both coordinate systems."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam3dnet.errors import PromptError
from sam3dnet.prompts.files import read_prompts
from sam3dnet.prompts.stated import StatedPrompts
from sam3dnet.prompts.types import Point

CASES = ("case_1", "case_1_late", "case_10")
CLASSES = ("kidney", "tumour", "lobe1", "lobe", "-shadow")
HALF = np.sqrt(0.5)


def point(label: Any = "tumour", position: Any = (1, 2, 3), **keys: Any) -> dict[str, Any]:
    return {"label": label, "position": list(position) if isinstance(position, tuple) else position, **keys}


def fiducials(*points: Any, **keys: Any) -> dict[str, Any]:
    return {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points, **keys}


def region(**keys: Any) -> dict[str, Any]:
    """A box of 2 x 4 x 6 mm around (10, 20, 30)."""
    given = {"type": "ROI", "coordinateSystem": "LPS", "center": [10, 20, 30], "size": [2, 4, 6], "name": "tumour"}
    return {**given, "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1], **keys}


def read(folder: Path, *markups: Any, name: str = "case_1.mrk.json") -> dict[str, list[StatedPrompts]]:
    """Write a file, read it, and give what is stated by case and class."""
    path = folder / name
    path.write_text(json.dumps({"@schema": "markups-schema-v1.0.3.json#", "markups": markups}), encoding="utf-8")
    cases = read_prompts(path, CASES, CLASSES).cases
    path.unlink()
    return {f"{case}/{label}": list(stated) for case, classes in cases.items() for label, stated in classes.items()}


@pytest.mark.parametrize(
    ("label", "class_name", "positive"),
    [
        ("tumour", "tumour", True),
        ("tumour-1", "tumour", True),
        ("tumour_12", "tumour", True),
        ("tumour 3", "tumour", True),
        ("tumour7", "tumour", True),
        (" tumour ", "tumour", True),
        ("-tumour", "tumour", False),
        ("- tumour-4", "tumour", False),
        ("lobe1", "lobe1", True),
        ("lobe1-2", "lobe1", True),
        ("lobe-1", "lobe", True),
        ("-shadow", "-shadow", True),
        ("-shadow-1", "-shadow", True),
        ("--shadow", "-shadow", False),
        ("case_1_tumour-1", "tumour", True),
    ],
)
def test_label_names_class_and_polarity(tmp_path: Path, label: str, class_name: str, positive: bool) -> None:
    (stated,) = read(tmp_path, fiducials(point(label)))[f"case_1/{class_name}"]
    assert stated.points == (Point((1, 2, 3), positive),)


@pytest.mark.parametrize(
    ("description", "positive"), [("Negative", False), ("a negative click", False), ("nonnegative", True), ("", True)]
)
def test_description_makes_a_click_negative(tmp_path: Path, description: str, positive: bool) -> None:
    stated = read(tmp_path, fiducials(point(description=description), point("-tumour", description=description)))
    assert [one.points[0].positive for one in stated["case_1/tumour"]] == [positive, False]


@pytest.mark.parametrize("label", ["F-1", "tumours", "Tumour", "", "-", "background"])
def test_label_that_names_no_class_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(PromptError, match=r'"case_1": markup 1, point 2 has .* expected one of the classes -shadow,'):
        read(tmp_path, fiducials(point(), point(label)))


def test_label_that_may_mean_two_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match='label "lobe13" may mean lobe or lobe1'):
        read(tmp_path, fiducials(point("lobe13")))


def test_points_that_were_not_placed_are_left_out(tmp_path: Path) -> None:
    points = [
        point("nothing", None, positionStatus="undefined"),
        point(position=(4, 5, 6), positionStatus="preview"),
        point(positionStatus="defined", visibility=False),
        point(position=(7, 8, 9)),
    ]
    stated = read(tmp_path, fiducials(*points))["case_1/tumour"]
    assert [one.points[0].at for one in stated] == [(1, 2, 3), (7, 8, 9)]


@pytest.mark.parametrize(
    ("given", "space"), [("LPS", "LPS"), ("RAS", "RAS"), ("ras", "RAS"), (1, "LPS"), (0, "RAS"), ("1", "LPS")]
)
def test_coordinates_are_brought_to_those_of_itk_by_which_slicer_reads(tmp_path: Path, given: Any, space: str) -> None:
    markups = [(fiducials(point(), coordinateSystem=name), region(coordinateSystem=name)) for name in ("LPS", given)]
    in_lps, stated = (read(tmp_path, *both)["case_1/tumour"] for both in markups)
    sign = (-1, -1, 1) if space == "RAS" else (1, 1, 1)
    assert [one.space for one in stated] == ["LPS", "LPS"]
    np.testing.assert_allclose(stated[0].points[0].at, np.multiply(in_lps[0].points[0].at, sign))
    np.testing.assert_allclose(stated[1].boxes[0], np.multiply(in_lps[1].boxes[0], sign))


def test_coordinate_system_is_lps_unless_said(tmp_path: Path) -> None:
    markup = fiducials(point(), coordinateUnits=["mm", "UCUM", "millimeter"])
    del markup["coordinateSystem"]
    assert read(tmp_path, markup)["case_1/tumour"][0].space == "LPS"


def test_region_becomes_the_corners_of_its_box(tmp_path: Path) -> None:
    (stated,) = read(tmp_path, region())["case_1/tumour"]
    corners = np.array(stated.boxes[0])
    assert corners.shape == (8, 3)
    assert corners.min(axis=0).tolist() == [9, 18, 27]
    assert corners.max(axis=0).tolist() == [11, 22, 33]


def test_axes_of_a_rotated_region_are_columns(tmp_path: Path) -> None:
    """Turned by 90 degrees the sides are swapped; by 45 degrees a corner lies half a diagonal from the centre."""
    (stated,) = read(tmp_path, region(orientation=[0, 0, 1, 1, 0, 0, 0, 1, 0]))["case_1/tumour"]
    assert np.ptp(np.array(stated.boxes[0]), axis=0).tolist() == [6, 2, 4]
    (stated,) = read(tmp_path, region(orientation=[HALF, -HALF, 0, HALF, HALF, 0, 0, 0, 1]))["case_1/tumour"]
    corners = np.array(stated.boxes[0]) - (10, 20, 30)
    assert np.isclose(corners, (HALF * (1 - 2), HALF * (1 + 2), 3)).all(axis=1).any()
    np.testing.assert_allclose(np.ptp(corners, axis=0), (6 * HALF, 6 * HALF, 6))


@pytest.mark.parametrize(
    ("keys", "file_name"),
    [
        ({"name": "kidney"}, "case_1.mrk.json"),
        ({"name": "kidney_2"}, "case_1.mrk.json"),
        ({"name": "R", "controlPoints": [point("kidney-1")]}, "case_1.mrk.json"),
        ({"name": ""}, "case_1_kidney.mrk.json"),
        ({"name": "case_1_kidney"}, "case_1_box.mrk.json"),
    ],
)
def test_class_of_a_region(tmp_path: Path, keys: dict[str, Any], file_name: str) -> None:
    assert list(read(tmp_path, region(**keys), name=file_name)) == ["case_1/kidney"]


@pytest.mark.parametrize(
    ("file_name", "case"),
    [
        ("case_1.mrk.json", "case_1"),
        ("case_1.json", "case_1"),
        ("case_1_clicks.mrk.json", "case_1"),
        ("case_1_0000.mrk.json", "case_1"),
        ("case_1_late.mrk.json", "case_1_late"),
        ("case_1_late-2.mrk.json", "case_1_late"),
        ("case_1_later.mrk.json", "case_1"),
        ("case_10.mrk.json", "case_10"),
        ("case_1 tumour.mrk.json", "case_1"),
    ],
)
def test_case_is_the_longest_that_the_file_name_fits(tmp_path: Path, file_name: str, case: str) -> None:
    assert list(read(tmp_path, fiducials(point()), name=file_name)) == [f"{case}/tumour"]


def test_file_of_no_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"case_2.mrk.json: the name fits no case, there are case_1, case_10,"):
        read(tmp_path, fiducials(point()), name="case_2.mrk.json")


def test_other_markups_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, {"type": "Line", "controlPoints": []}) == {}
    assert "markup 1 is of type Line, which is no prompt" in caplog.text


@pytest.mark.parametrize(
    ("markup", "message"),
    [
        (5, "markup 1 is 5, expected an object"),
        (fiducials(5), "markup 1, point 1 is 5, expected an object"),
        ({"type": "Fiducial", "controlPoints": {}}, 'markup 1: "controlPoints" is no list'),
        (fiducials(point(7)), 'markup 1, point 1: "label" is 7, expected a text'),
        (fiducials(point(position=(1, 2))), r'point 1: "position" is \[1, 2\], expected 3 numbers; save it again'),
        (fiducials(point(position=(1, 2, float("inf")))), 'point 1: "position" is .*, expected three finite numbers'),
        (fiducials(point(), coordinateSystem="IJK"), '"coordinateSystem" is .IJK., expected "LPS" or "RAS"'),
        (fiducials(point(), coordinateSystem=2), '"coordinateSystem" is 2, expected'),
        (fiducials(point(), coordinateUnits="um"), "coordinates are in .um., expected millimetres"),
        (region(size=[2, -4, 6]), r"markup 1 is empty, its size is \[2.0, -4.0, 6.0\] mm"),
        (region(size=[0, 0, 0]), "markup 1 is empty"),
        (region(size=None), 'markup 1: "size" is None, expected 3 numbers'),
        (region(orientation=[1, 0, 0]), 'markup 1: "orientation" is .*, expected 9 numbers'),
        (region(insideOut=True), "markup 1 is inside out, expected a box around the object"),
        (region(name="-tumour"), 'markup 1 has "-tumour", expected one of the classes'),
        (region(name=""), "markup 1 has no label, expected one of the classes"),
    ],
)
def test_malformed_markup_is_refused(tmp_path: Path, markup: Any, message: str) -> None:
    with pytest.raises(PromptError, match=f'case_1.mrk.json: case "case_1": .*{message}'):
        read(tmp_path, markup)


def test_markups_that_are_no_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "case_1.mrk.json"
    path.write_text('{"markups": {}}', encoding="utf-8")
    with pytest.raises(PromptError, match='"markups" is no list'):
        read_prompts(path, CASES, CLASSES)
