"""The checks of labels, and of the grids of images and labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import FLIPPED, check, found, image_of, label_of, make, message_of, rewrite, set_voxels, truncate
from phantoms import LABELS

from sam3dnet.preprocessing.verify import require_sound

LABEL_FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
    "0/255": (lambda label: (label > 0).astype(np.uint8) * 255, "label 0/255", "expected 0, 1, 2; divide by 255"),
    "only 255": (lambda label: np.full_like(label, 255), "label 0/255", "divide by 255"),
    "undeclared": (
        lambda label: np.where(label == 2, 7, label).astype(np.uint8),
        "undeclared label value",
        "has the values 7, which dataset.json does not declare; expected 0, 1, 2; add them",
    ),
    "undeclared far away": (
        lambda label: np.where(label == 2, 9_000_000, label.astype(np.int32)),
        "undeclared label value",
        "has the values 9000000,",
    ),
    "negative": (
        lambda label: np.where(label == 2, -3, label.astype(np.int16)),
        "undeclared label value",
        "has the values -3,",
    ),
    "fractions": (
        lambda label: label.astype(np.float32) * 0.75,
        "non-integer label",
        "2 values are not whole numbers: 0.75, 1.5; expected label values",
    ),
    "empty": (lambda label: label * 0, "empty label", "has no labelled voxel"),
}


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
@pytest.mark.parametrize("what", LABEL_FAULTS)
def test_fault_in_a_label(tmp_path: Path, what: str, ending: str) -> None:
    change, check_name, message = LABEL_FAULTS[what]
    folder = make(tmp_path, file_ending=ending)
    rewrite(label_of(folder, 2), change)
    assert found(folder) == {("error", "case_2", check_name)}
    assert message in message_of(folder, check_name)


def test_label_with_nan(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rewrite(label_of(folder, 2), lambda label: set_voxels(label, np.nan))
    assert found(folder) == {("error", "case_2", "non-finite voxels")}


def test_label_with_nothing_but_ignore_is_empty(tmp_path: Path) -> None:
    folder = make(tmp_path, labels=LABELS | {"ignore": 3})
    rewrite(label_of(folder, 2), lambda label: (label == 3) * np.uint8(3))
    assert found(folder) == {("error", "case_2", "empty label")}


def test_empty_labels_can_be_accepted(tmp_path: Path) -> None:
    folder = make(tmp_path, sam3d_accept=["empty label"])
    rewrite(label_of(folder, 2), lambda label: label * 0)
    assert found(folder) == {("warning", "case_2", "empty label")}
    require_sound(check(folder))


def test_value_255_is_fine_where_it_is_declared(tmp_path: Path) -> None:
    labels = {"background": 0, **{f"class_{i}": i for i in range(1, 256)}}
    folder = make(tmp_path, labels=labels)
    rewrite(label_of(folder, 2), lambda label: (label > 0) * np.uint8(255))
    assert {problem[2] for problem in found(folder)} == {"class never occurs"}


def test_class_that_never_occurs(tmp_path: Path) -> None:
    folder = make(tmp_path, labels=LABELS | {"cyst": 3})
    assert found(folder) == {("warning", "dataset", "class never occurs")}
    assert "class 'cyst' (value 3)" in message_of(folder, "class never occurs")


def test_region_occurs_if_one_of_its_values_does(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "cyst": 3}
    folder = make(tmp_path, labels=labels, regions_class_order=[1, 3])
    assert "class 'cyst' (value 3)" in message_of(folder, "class never occurs")


def shorter(array: np.ndarray) -> np.ndarray:
    return array[:-1]


GRID_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "shape": ({"change": shorter}, "shape mismatch", "has shape (6, 8, 8), {name} (5, 8, 8)"),
    "spacing": (
        {"spacing_mm": (3.0, 0.7, 1.2)},
        "spacing mismatch",
        "has spacing (z, y, x) in mm (3.0, 0.7, 1.1), {name} (3.0, 0.7, 1.2)",
    ),
    "origin": (
        {"origin_mm": (-11.0, 23.5, 5.0)},
        "origin mismatch",
        "has origin (x, y, z) in mm (-11.0, 23.0, 5.0), {name} (-11.0, 23.5, 5.0)",
    ),
    "direction": (
        {"direction": FLIPPED},
        "direction mismatch",
        "has direction (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), {name} (-1.0,",
    ),
}


@pytest.mark.parametrize("kind", ["label", "channel"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("what", GRID_FAULTS)
def test_grids_that_differ(tmp_path: Path, what: str, ending: str, kind: str) -> None:
    geometry, check_name, message = GRID_FAULTS[what]
    folder = make(tmp_path, channel_names=("CT", "T2"), file_ending=ending)
    file = label_of(folder, 1) if kind == "label" else image_of(folder, 1, channel=1)
    rewrite(file, **geometry)
    assert found(folder) == {("error", "case_1", check_name)}
    name = f"label {file.name}" if kind == "label" else file.name
    assert message.format(name=name) in message_of(folder, check_name)


def test_grid_is_compared_although_a_file_is_truncated(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rewrite(label_of(folder, 1), spacing_mm=(3.0, 0.7, 1.2))
    truncate(label_of(folder, 1), 0.9)
    assert found(folder) == {("error", "case_1", "truncated file"), ("error", "case_1", "spacing mismatch")}


def test_mixed_orientations(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for file in (image_of(folder, 1), label_of(folder, 1)):
        rewrite(file, direction=FLIPPED)
    assert found(folder) == {("warning", "dataset", "mixed orientations")}
    assert "3 cases are oriented LPS, 1 otherwise: case_1 (RPS)" in message_of(folder, "mixed orientations")


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_outlying_spacing(tmp_path: Path, factor: float) -> None:
    folder = make(tmp_path)
    for file in (image_of(folder, 1), label_of(folder, 1)):
        rewrite(file, spacing_mm=(3.0, 0.7 * factor, 1.1))
    assert found(folder) == {("warning", "case_1", "outlying spacing")}
