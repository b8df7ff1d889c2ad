"""sam3d_convert refuses what is no sound task in a sentence, before anything is written, and overwrites nothing."""

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tasks import (
    convert_below,
    describe,
    edit,
    files_below,
    left_in,
    make_decathlon,
    make_first_version,
    write_nifti,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def rename_case(task: Path, old: str, new: str) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (task / folder / f"{old}.nii.gz").rename(task / folder / f"{new}.nii.gz")
    content = (task / "dataset.json").read_text()
    (task / "dataset.json").write_text(content.replace(f"{old}.nii.gz", f"{new}.nii.gz"))


def entry(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def truncate(file: Path, lost: int) -> None:
    os.truncate(file, file.stat().st_size - lost)


def spoil_checksum(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)


def shorten_before_packing(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two labels of one name": (
        lambda task: edit(task, labels={"0": "background", "1": "a", "2": "a"}),
        'labels 1, 2 are all called "a"; give each a name of its own',
    ),
    "a gap": (lambda task: edit(task, labels={"0": "background", "2": "a"}), "the values are 0, 2; expected consec"),
    "no labels": (lambda task: edit(task, labels=None), '"labels" is missing; expected names by whole numbers'),
    "labels that are no numbers": (lambda task: edit(task, labels={"x": "a"}), "\"labels\" is {'x': 'a'}; expected"),
    "no modality": (lambda task: edit(task, modality=None), '"modality" is missing; expected names of channels by'),
    "a channel number left out": (lambda task: edit(task, modality={"0": "a", "2": "b"}), "has the numbers 0, 2;"),
    "an image missing": (lambda task: (task / "imagesTr" / "p_00.nii.gz").unlink(), "p_00.nii.gz: not found; add it"),
    "a label missing": (lambda task: (task / "labelsTr" / "p_00.nii.gz").unlink(), "p_00.nii.gz: not found; add it"),
    "listed twice": (
        lambda task: edit(task, training=[entry("p_00"), entry("p_01"), entry("p_00")]),
        "lists p_00 more than once; leave one",
    ),
    "a line that is none": (lambda task: edit(task, training=[entry("p_00"), "p_01"]), "holds 'p_01'; expected {"),
    "no list": (lambda task: edit(task, training="p_01", modality={"0": "a"}), "\"training\" is 'p_01'; expected a"),
    "outside": (
        lambda task: edit(task, training=[entry("p_00"), {"image": "../x.nii.gz", "label": "/etc/x.nii.gz"}]),
        "lists ../x.nii.gz, which lies outside of",
    ),
    "a name that collides": (lambda task: rename_case(task, "p_00", "p_01_seg"), "ends in _seg, as the file in which"),
    "names that differ by case": (lambda task: rename_case(task, "p_00", "P_01"), "P_01, p_01 differ only in upper"),
    "other channels": (
        lambda task: edit(task, modality={"0": "a"}),
        "p_00.nii.gz: holds 2 volumes; expected 1, one for each channel that dataset.json names",
    ),
    "a label with channels": (
        lambda task: write_nifti(task / "labelsTr" / "p_00.nii.gz", 0, 2),
        "p_00.nii.gz: holds 2 volumes; expected 1, a label has no channels",
    ),
    "no NIfTI": (
        lambda task: (task / "imagesTr" / "p_00.nii.gz").write_bytes(b"x" * 1000),
        "p_00.nii.gz: is no NIfTI image",
    ),
    "empty": (lambda task: (task / "imagesTr" / "p_00.nii.gz").write_bytes(b""), "p_00.nii.gz: is no NIfTI image"),
    "truncated": (lambda task: truncate(task / "imagesTr" / "p_00.nii.gz", 100), "damaged or end too early"),
    "a flipped bit": (
        lambda task: spoil_checksum(task / "imagesTr" / "p_00.nii.gz"),
        "1 files could not be converted; nothing is left behind: ",
    ),
    "one byte too few": (
        lambda task: shorten_before_packing(task / "imagesTr" / "p_00.nii.gz"),
        "p_00.nii.gz: is incomplete; get it anew",
    ),
    "another ending": (
        lambda task: write_nifti(task / "imagesTs" / "q.nii", 0, 2),
        "q.nii: expected the ending .nii.gz, as the others have",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_sentence_and_nothing_is_left(tmp_path: Path, root: Path, name: str, capsys: Any) -> None:
    spoil, message = FAULTS[name]
    spoil(task := make_decathlon(tmp_path / "Task05_X"))
    before = files_below(task)
    assert convert_below(root, task) == 2
    assert message in capsys.readouterr().err
    assert left_in(root) == []
    assert files_below(task) == before


def test_all_faults_are_told_at_once(tmp_path: Path, root: Path, capsys: Any) -> None:
    task = make_decathlon(tmp_path / "Task05_X")
    (task / "labelsTr" / "p_00.nii.gz").unlink()
    (task / "imagesTr" / "p_01.nii.gz").write_bytes(b"x" * 1000)
    edit(task, labels={"0": "background", "1": "a", "2": "a"})
    assert convert_below(root, task) == 2
    said = capsys.readouterr().err
    assert said.startswith("sam3d_convert: the dataset has 3 problems; nothing was written:\n")
    assert all(part in said for part in ('case "p_00": missing label', 'case "p_01": unreadable', "are all called"))


def test_channels_of_the_first_version_are_counted(tmp_path: Path, root: Path, capsys: Any) -> None:
    task = make_first_version(tmp_path / "Task015_X")
    (task / "imagesTr" / "p_01_0001.nii.gz").unlink()
    for channel in range(2):
        (task / "imagesTr" / f"p_02_000{channel}.nii.gz").unlink()
    assert convert_below(root, task) == 2
    said = capsys.readouterr().err
    assert 'case "p_01": channels: has the channels 0; expected 0, 1, which dataset.json names' in said
    assert "p_02_0000.nii.gz: not found" in said
    assert left_in(root) == []


def make_second_version(folder: Path) -> Path:
    edit(make_first_version(folder), file_ending=".nii.gz")
    return folder


def make_nested(folder: Path) -> Path:
    make_decathlon(folder / folder.name)
    return folder


def make_empty(folder: Path) -> Path:
    folder.mkdir()
    return describe(folder, ["p_00"], [], 1)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (make_second_version, "Dataset005_X", "is in the format of nnU-Net v2 already"),
        (make_nested, "Task05_X", "Task05_X/dataset.json: not found; .* did you mean .*Task05_X/Task05_X?"),
        (make_empty, "Task05_X", "no training image is there; expected such as .*p_00.nii.gz .* or p_00_0000.nii.gz"),
        (lambda folder: folder, "Task05_X", "there is no such folder"),
        (
            make_decathlon,
            "Prostate",
            "is not called TaskXX_Name, so the dataset's number is not known; give",
        ),
    ],
)
def test_what_is_no_task_is_said(tmp_path: Path, root: Path, make: Any, name: str, message: str, capsys: Any) -> None:
    assert convert_below(root, make(tmp_path / name)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert left_in(root) == []


@pytest.mark.parametrize("folder", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_no_dataset_is_overwritten(tmp_path: Path, root: Path, folder: str, capsys: Any) -> None:
    task = make_decathlon(tmp_path / "Task05_X")
    (root / folder / "Dataset005_Other").mkdir(parents=True)
    assert convert_below(root, task) == 2
    assert (
        "there is Dataset005_Other already, and nothing is overwritten; choose another number with -d, such as -d 500"
        in (capsys.readouterr().err)
    )
    assert convert_below(root, task, "-d", "500", "--name", "Mine") == 0
    assert "Dataset500_Mine" in left_in(root)
    assert convert_below(root, task, "-d", "500") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [(["-d", "1000"], "-d 1000: expected a number from 0 to 999"), (["--name", "a/b"], "--name a/b: expected a plain")],
)
def test_numbers_and_names_that_cannot_be(
    tmp_path: Path, root: Path, options: list[str], message: str, capsys: Any
) -> None:
    assert convert_below(root, make_decathlon(tmp_path / "Task05_X"), *options) == 2
    assert message in capsys.readouterr().err
