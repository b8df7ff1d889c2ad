"""Prompts in our JSON, and in folders; what is wrong is refused with file, case and class."""

import json
from pathlib import Path
from typing import Any

import pytest

from sam3dnet.errors import PromptError
from sam3dnet.prompts.files import FORMAT, read_prompts
from sam3dnet.prompts.stated import FilePrompts, Source, StatedPrompts, corners_of
from sam3dnet.prompts.types import Box, Point, Scribble

CASES = ("kidney_1", "kidney_10")
CLASSES = ("kidney", "tumour")
FILE = "prompts.json"
POINT = {"at": [1, 2.5, -3]}


def write(folder: Path, cases: Any, name: str = FILE, **keys: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({"format": FORMAT, "space": "voxel", "cases": cases, **keys}), encoding="utf-8")
    return path


def write_class(folder: Path, content: Any) -> Path:
    return write(folder, {"kidney_1": {"tumour": content}})


def read(path: Path) -> FilePrompts:
    return read_prompts(path, CASES, CLASSES)


def test_everything_that_a_file_says_is_read(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask = tmp_path / "masks" / "previous.nii.gz"
    mask.touch()
    points = [{"at": [3, 4, 5], "positive": False}, {"at": [1, 2.5, -3]}, {"at": [7, 8, 9], "positive": True}]
    boxes = [{"min": [1, 2, 3], "max": [4, 5, 3]}]
    scribbles = [{"at": [[1, 2, 3], [1, 2, 4]]}, {"at": [[5, 5, 5]], "positive": False}]
    content = {
        "points": points,
        "scribbles": scribbles,
        "boxes": boxes,
        "mask": "masks/previous.nii.gz",
        "instance": True,
    }
    path = write(tmp_path, {"kidney_1": {"tumour": content, "kidney": {}}, "kidney_10": {}}, space="RAS")
    expected = StatedPrompts(
        Source(path, "kidney_1", "tumour"),
        "RAS",
        (Point((3, 4, 5), False), Point((1, 2.5, -3)), Point((7, 8, 9))),
        (corners_of(Box((1, 2, 3), (4, 5, 3))),),
        mask.resolve(),
        True,
        (Scribble(((1, 2, 3), (1, 2, 4))), Scribble(((5, 5, 5),), False)),
    )
    assert read(path).cases == {"kidney_1": {"tumour": (expected,)}}
    assert read(path).of_case("kidney_1") == {"tumour": (expected,)}
    assert read(path).of_case("kidney_10") == {}


def test_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
    path = tmp_path / FILE
    path.write_text(text.partition("```json\n")[2].partition("```")[0], encoding="utf-8")
    (tmp_path / "kidney_00001_previous.nii.gz").touch()
    stated = read_prompts(path, ["kidney_00001"], CLASSES).of_case("kidney_00001")
    (tumour,), (kidney,) = stated["tumour"], stated["kidney"]
    assert [point.positive for point in tumour.points] == [True, False]
    assert tumour.mask_file == (tmp_path / "kidney_00001_previous.nii.gz").resolve()
    assert (tumour.space, len(tumour.boxes), len(kidney.points)) == ("LPS", 1, 1)


def test_corners_of_a_box() -> None:
    corners = corners_of(Box((1, 2, 3), (4, 5, 6)))
    assert len(set(corners)) == 8
    assert {axis for axis, *_ in corners} == {1, 4}
    assert {axis for *_, axis in corners} == {3, 6}


def test_folder_merges_its_files_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"kidney_1": {"tumour": {"points": [POINT]}}}, "b.json", space="LPS")
    write(tmp_path, {"kidney_1": {"tumour": {"points": [{"at": [9, 9, 9]}]}, "kidney": {"points": [POINT]}}}, "a.json")
    markups = {"markups": [{"type": "Fiducial", "controlPoints": [{"label": "kidney", "position": [1, 2, 3]}]}]}
    (tmp_path / "kidney_10.mrk.json").write_text(json.dumps(markups), encoding="utf-8")
    (tmp_path / ".hidden.json").write_text("no JSON", encoding="utf-8")
    (tmp_path / "readme.txt").write_text("no JSON", encoding="utf-8")
    prompts = read(tmp_path)
    stated = prompts.of_case("kidney_1")["tumour"]
    assert [(one.source.file.name, one.space, one.points[0].at) for one in stated] == [
        ("a.json", "voxel", (9, 9, 9)),
        ("b.json", "LPS", (1, 2.5, -3)),
    ]
    assert {case: sorted(classes) for case, classes in prompts.cases.items()} == {
        "kidney_1": ["kidney", "tumour"],
        "kidney_10": ["kidney"],
    }


def test_a_class_of_which_only_named_objects_are_wanted_may_have_its_prompts_elsewhere(tmp_path: Path) -> None:
    wanted = {"kidney_1": {"tumour": {"instance": True}, "kidney": {"instance": False}}}
    write(tmp_path, wanted, "a.json")
    write(tmp_path, {"kidney_1": {"tumour": {"points": [POINT]}}}, "b.json")
    stated = read(tmp_path).of_case("kidney_1")
    assert [(one.instance, len(one.points)) for one in stated["tumour"]] == [(True, 0), (False, 1)]
    assert list(stated) == ["tumour"]


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="nowhere: not found; give a file"):
        read(tmp_path / "nowhere")
    with pytest.raises(PromptError, match=r"no file ends in .json or .mrk.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds a list, expected an object"),
        ('{"space": "LPS", "space": "RAS"}', "the key 'space' stands twice"),
        ("[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
    ],
)
def test_malformed_file_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / FILE
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PromptError, match=f"{FILE}: .*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"format": "sam3dnet-prompts/2"},
            "format must be 'sam3dnet-prompts/1' .or update sam3dnet., not 'sam3dnet-prompts/2'; see",
        ),
        ({"format": None}, "format must be a string, not None"),
        ({"space": "ras"}, "space must be 'LPS', 'RAS' or 'voxel', not 'ras'"),
        ({"space": ["LPS"]}, "space must be .*, not .'LPS'."),
        ({"cases": [1]}, r"cases must be an object, not \[1\]"),
        ({"units": "mm"}, "an object with no other keys than 'format', 'space', 'cases', 'images', not {.*'units'"),
        ({"cases": {"kidney_1": 5}}, "cases.kidney_1 must be an object, not 5"),
        (
            {"cases": {"kidney_2": {}}},
            'there is no case "kidney_2", there are kidney_1, kidney_10; name it as its image',
        ),
        (
            {"cases": {"kidney_1": {"background": {}}}},
            'case "kidney_1": there is no class "background", there are kidney, tumour; give one of the model',
        ),
    ],
)
def test_wrong_key_of_the_file_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=f"{FILE}: .*{message}"):
        read(write(tmp_path, **{"cases": {}, **keys}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], " must be an object, not "),
        (
            {"point": [POINT]},
            "an object with no other keys than 'points', 'scribbles', 'boxes', 'mask', 'instance', not {'point'",
        ),
        ({"points": POINT}, ".points must be a list, not {"),
        ({"points": [[1, 2, 3]]}, r"points\[0\] must be an object, not \[1, 2, 3\]"),
        ({"points": [POINT, {}]}, r"points\[1\].at is missing"),
        ({"points": [{"at": [1, 2, True]}]}, r"points\[0\].at must be three finite numbers, not"),
        ({"points": [{"at": [1, 2, float("nan")]}]}, r"points\[0\].at must be three finite numbers, not"),
        ({"points": [{"at": [1, 2, "3"]}]}, r"points\[0\].at must be three finite numbers, not"),
        ({"points": [{**POINT, "positive": 1}]}, r"points\[0\].positive must be true or false, not 1"),
        (
            {"points": [{**POINT, "label": 1}]},
            r"points\[0\] must be an object with no other keys than 'at', 'positive', not",
        ),
        ({"boxes": [{"min": [1, 2, 3]}]}, r"boxes\[0\].max is missing"),
        ({"boxes": [{"min": [1, 2, 3], "max": [1, 1, 4]}]}, r"box 1: a box from \(1, 2, 3\) to \(1, 1, 4\) is empty"),
        ({"points": [POINT], "instance": "yes"}, "instance must be true or false, not 'yes'"),
        ({"mask": 5}, "mask must be a string, not 5"),
        ({"mask": "absent.nii.gz"}, "mask 'absent.nii.gz': not found in"),
        ({"mask": "../outside.nii.gz"}, "mask '../outside.nii.gz' leads out of the folder"),
        ({"mask": "link.nii.gz"}, "mask 'link.nii.gz' leads out of the folder"),
    ],
)
def test_wrong_prompt_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (tmp_path / "outside.nii.gz").touch()
    (folder / "link.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    with pytest.raises(PromptError, match=f"{FILE}: .*kidney_1.*tumour.*{message}"):
        read(write_class(folder, content))


def test_absolute_mask_is_refused_even_inside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mask.nii.gz").touch()
    assert read(write_class(tmp_path, {"mask": "mask.nii.gz"}))
    with pytest.raises(PromptError, match=r"leads out of the folder .* give its name alone"):
        read(write_class(tmp_path, {"mask": str(tmp_path / "mask.nii.gz")}))
