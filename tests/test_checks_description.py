"""The checks of dataset.json: each fault is found by name, with what to do."""

from pathlib import Path
from typing import Any

import pytest
from faults import check, edit_json, found, image_of, make, message_of, rewrite
from phantoms import LABELS


def test_no_such_folder(tmp_path: Path) -> None:
    assert found(tmp_path / "Dataset904_Verify") == {("error", "dataset", "missing folder")}


@pytest.mark.parametrize("content", [None, "{'labels'", "[]"])
def test_broken_dataset_json_hides_no_broken_case(tmp_path: Path, content: str | None) -> None:
    folder = make(tmp_path, file_ending=".nrrd")
    rewrite(image_of(folder, 2), lambda image: image * 0)
    path = folder / "dataset.json"
    path.unlink() if content is None else path.write_text(content)
    assert found(folder) == {("error", "dataset", "dataset.json"), ("error", "case_2", "all-zero image")}


@pytest.mark.parametrize("key", ["channel_names", "labels", "numTraining", "file_ending"])
def test_missing_key_of_dataset_json_is_named(tmp_path: Path, key: str) -> None:
    folder = make(tmp_path)
    edit_json(folder, **{key: None})
    assert f'the key "{key}" is missing; add it' in message_of(folder, "dataset.json")
    assert len(found(folder)) == 1


BAD_JSON: dict[str, tuple[dict[str, Any], str, str]] = {
    "ending unknown": ({"file_ending": ".jpg"}, "dataset.json", "\"file_ending\" is '.jpg'; expected one of .nii.gz"),
    "channels no names": ({"channel_names": ["CT"]}, "dataset.json", "expected names by number"),
    "channel numbers": ({"channel_names": {"1": "CT"}}, "dataset.json", "has the numbers 1; expected 0"),
    "number no number": ({"numTraining": "4"}, "numTraining", "expected a whole number"),
    "number wrong": ({"numTraining": 5}, "numTraining", '"numTraining" is 5, but there are 4 training cases'),
    "labels missing": ({"labels": {}}, "labels", "expected values by name"),
    "labels swapped": ({"labels": {"0": "background", "1": "organ"}}, "labels", "swap them"),
    "label no number": ({"labels": LABELS | {"lesion": "2"}}, "labels", "lesion: '2'; expected a whole number"),
    "label negative": ({"labels": LABELS | {"lesion": -2}}, "labels", "lesion: -2; expected a whole number"),
    "labels with a gap": (
        {"labels": LABELS | {"other": 4}},
        "labels",
        "the values are 0, 1, 2, 4; expected consecutive ones, 0, 1, 2, 3",
    ),
    "no background": ({"labels": {"organ": 1, "lesion": 2}}, "labels", '"background" is missing'),
    "background not 0": ({"labels": {"background": 2, "organ": 1}}, "labels", '"background" is 2'),
    "ignore not highest": ({"labels": LABELS | {"ignore": 7}}, "labels", '"ignore" is 7; expected 3'),
    "ignore a list": ({"labels": LABELS | {"ignore": [3]}}, "labels", r'"ignore" is [3]; expected 3'),
    "regions without order": (
        {"labels": {"background": 0, "whole": [1, 2], "lesion": 2}},
        "labels",
        '"regions_class_order" is None; expected a list of 2 label values, one for each of whole, lesion',
    ),
    **{
        f"regions with order {order}": (
            {"labels": {"background": 0, "organ": [1, 2], "lesion": 2}, "regions_class_order": order},
            "labels",
            message,
        )
        for order, message in (
            (["1", "2"], "is ['1', '2']; expected a list of 2 label values"),
            (
                [7, 9],
                "is [7, 9]: painted over each other, organ, lesion give other labels than there were (1 becomes 7",
            ),
            ([2, 1], "(1 becomes 2, 2 becomes 1)"),
            ([1, 1], "(2 becomes 1)"),
        )
    },
    "accepted no list": ({"sam3d_accept": "empty label"}, "dataset.json", "expected a list of names of checks"),
    "dataset no object": ({"dataset": []}, "dataset.json", '"dataset" is a list; expected cases by name'),
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_bad_entry_of_dataset_json(tmp_path: Path, what: str) -> None:
    changes, check_name, message = BAD_JSON[what]
    folder = make(tmp_path)
    edit_json(folder, **changes)
    problems = [problem for problem in check(folder) if problem.case == "dataset" and problem.check == check_name]
    assert any(message in problem.message for problem in problems), problems
    assert all(problem.severity == "error" for problem in problems)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "organ": [1, 2], "lesion": 2}, [1, 2]),
        ({"background": 0, "organ": [1, 2], "lesion": [2]}, [1, 2]),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, [1, 2, 3]),
        ({"background": 0, "both": [1, 2], "other": 3}, [2, 3]),  # 1 and 2 are one to the network
    ],
)
def test_orders_that_paint_the_labels_again(tmp_path: Path, labels: dict, order: list) -> None:
    folder = make(tmp_path)
    edit_json(folder, labels=labels, regions_class_order=order)
    assert not [problem for problem in check(folder) if "regions_class_order" in problem.message]
