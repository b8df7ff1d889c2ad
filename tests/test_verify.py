"""Verification as a whole: sound datasets have no problem, and no fault hides another."""

import os
import signal
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from faults import (
    ENDINGS,
    check,
    edit_json,
    found,
    image_of,
    label_of,
    make,
    message_of,
    read,
    rewrite,
    set_voxels,
    truncate,
)
from phantoms import LABELS, ORIGIN_MM, SPACING_MM, write_volume

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing import progress, verify
from sam3dnet.preprocessing.checks_case import CaseReport, check_case
from sam3dnet.preprocessing.checks_description import Description
from sam3dnet.preprocessing.checks_files import CaseFiles
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.verify import Problem, require_sound, verify_dataset


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sound_dataset_has_no_problem(tmp_path: Path, ending: str) -> None:
    assert check(make(tmp_path, file_ending=ending, channel_names=("CT", "T2"), num_test=1)) == []


def test_regions_and_ignore_label_are_sound(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}
    assert check(make(tmp_path, labels=labels, regions_class_order=[1, 2])) == []


def test_a_sound_dataset_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BEFORE_FIRST_LINE", 0.0)
    with caplog.at_level("INFO"):
        assert verify_dataset(make(tmp_path), num_processes=2) == []
    assert "verify: 4/4 cases" in caplog.text


def test_float_labels_with_whole_values_are_sound(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rewrite(label_of(folder, 1), lambda label: label.astype(np.float32))
    assert check(folder) == []


def test_grids_that_differ_by_rounding_are_sound(tmp_path: Path) -> None:
    folder = make(tmp_path)
    spacing_mm = tuple(mm * (1 + 1e-4) for mm in SPACING_MM)
    origin_mm = tuple(mm + 0.01 for mm in ORIGIN_MM)
    rewrite(label_of(folder, 1), spacing_mm=spacing_mm, origin_mm=origin_mm)
    assert check(folder) == []


def test_cases_listed_in_dataset_json_are_sound(tmp_path: Path) -> None:
    folder = make(tmp_path)
    listed: dict[str, Any] = {
        f"c{i}": {"images": [str(image_of(folder, i))], "label": f"labelsTr/case_{i}.nii.gz"} for i in range(4)
    }
    edit_json(folder, dataset=listed)
    assert check(folder) == []
    listed["c1"]["images"] = ["nowhere.nii.gz"]
    listed["c2"]["label"] = "nowhere.nii.gz"
    listed["c3"]["images"] *= 2
    edit_json(folder, dataset=listed)
    expected = {("error", "c1", "missing channel"), ("error", "c2", "missing label"), ("error", "c3", "extra channel")}
    assert expected <= found(folder)
    edit_json(folder, dataset={**listed, "c4": {"images": "one.nii.gz"}})
    assert '"dataset": c4: expected {"images": [one a channel], "label": file}' in message_of(folder, "dataset.json")


@pytest.mark.parametrize(("stored", "is_right"), [(".nii", True), (".nrrd", False)])
def test_listed_labels_in_another_format_than_the_dataset(tmp_path: Path, stored: str, is_right: bool) -> None:
    folder = make(tmp_path, num_cases=2)
    listed = {}
    for case in range(2):
        label = label_of(folder, case)
        sitk.WriteImage(sitk.ReadImage(str(label)), str(folder / "labelsTr" / f"case_{case}{stored}"))
        label.unlink()
        listed[f"case_{case}"] = {"images": [str(image_of(folder, case))], "label": f"labelsTr/case_{case}{stored}"}
    edit_json(folder, dataset=listed)
    assert found(folder) == (set() if is_right else {("error", f"case_{case}", "file name") for case in range(2)})


def test_no_fault_hides_another(tmp_path: Path) -> None:
    folder = make(tmp_path, num_cases=9, channel_names=("CT", "T2"))
    edit_json(folder, numTraining=99, labels=LABELS | {"cyst": 3})
    truncate(image_of(folder, 0), 0.5)
    rewrite(label_of(folder, 0), lambda label: label * 255)
    rewrite(image_of(folder, 1, 1), lambda image: image * 0, spacing_mm=(3.0, 0.7, 1.3))
    rewrite(label_of(folder, 1), lambda label: label[:-1], origin_mm=(0.0, 0.0, 0.0))
    rewrite(image_of(folder, 2), lambda image: set_voxels(image, np.inf))
    image_of(folder, 3, 1).unlink()
    label_of(folder, 4).unlink()
    write_volume(read(image_of(folder, 5)), image_of(folder, 6))
    image_of(folder, 7).write_text("no image")
    rewrite(label_of(folder, 7), lambda label: label * 0)
    expected = {
        ("error", "dataset", "numTraining"),
        ("warning", "dataset", "class never occurs"),
        ("error", "case_0", "truncated file"),
        ("error", "case_0", "undeclared label value"),
        ("error", "case_1", "all-zero image"),
        ("error", "case_1", "spacing mismatch"),
        ("error", "case_1", "shape mismatch"),
        ("error", "case_1", "origin mismatch"),
        ("error", "case_2", "non-finite voxels"),
        ("error", "case_3", "missing channel"),
        ("error", "case_4", "missing label"),
        ("error", "case_5", "duplicate image"),
        ("error", "case_7", "truncated file"),
        ("error", "case_7", "empty label"),
    }
    problems = found(folder)
    # case_6 is a copy of another shape's case_5, so its grid differs from its label's.
    assert {problem for problem in problems if problem[1] != "case_6"} == expected
    with pytest.raises(DatasetError, match=r"the dataset has \d+ problems; nothing was written") as raised:
        require_sound(check(folder))
    text = str(raised.value)
    assert all((f"{check_name}:" in text) == (severity == "error") for severity, _, check_name in problems)
    assert all(f'case "case_{case}":' in text for case in (0, 1, 2, 3, 4, 5, 7))


def test_verification_changes_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    check(folder)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


def check_or_fail(description: Description, reader: DatasetReader, case: CaseFiles) -> CaseReport:
    if case.name == "case_1":
        raise zlib.error("a bug")
    return check_case(description, reader, case)


def check_or_die(description: Description, reader: DatasetReader, case: CaseFiles) -> CaseReport:
    if case.name == "case_1":
        os.kill(os.getpid(), signal.SIGKILL)
    return check_case(description, reader, case)


def faults_with(folder: Path, checker: Callable, num_processes: int, patch: pytest.MonkeyPatch) -> Collection[Problem]:
    rewrite(image_of(folder, 2), lambda image: image * 0)
    patch.setattr(verify, "check_case", checker)
    return verify_dataset(folder, num_processes, progress=False)


def test_a_check_that_fails_costs_its_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = faults_with(make(tmp_path), check_or_fail, 0, monkeypatch)
    assert {(p.case, p.check) for p in problems} == {("case_1", "verification failed"), ("case_2", "all-zero image")}
    assert any("error: a bug" in problem.message for problem in problems)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_file_that_kills_its_process_costs_its_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = faults_with(make(tmp_path), check_or_die, 2, monkeypatch)
    assert {(p.case, p.check) for p in problems} == {("case_1", "verification failed"), ("case_2", "all-zero image")}
    assert any("its process was killed" in problem.message for problem in problems)


def test_warnings_alone_are_sound() -> None:
    require_sound([Problem("warning", "dataset", "mixed orientations", "look")])
    require_sound([])


def test_one_error_is_counted_as_one() -> None:
    with pytest.raises(DatasetError, match=r'has 1 problem; nothing was written:\n  case "a": dimension: odd$'):
        require_sound([Problem("error", "a", "dimension", "odd"), Problem("warning", "b", "x", "y")])
