"""The checks of file names: missing, skipped and foreign files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import check, edit_json, found, image_of, label_of, make, message_of, rewrite_as

FILE_FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, str, str], str]] = {
    "channel missing": (
        lambda f: image_of(f, 1, 1).unlink(),
        ("error", "case_1", "missing channel"),
        "case_1_0001.nii.gz: not found; expected 2 channels, there are 0000",
    ),
    "channel skipped": (
        lambda f: image_of(f, 1, 0).unlink(),
        ("error", "case_1", "skipped channel"),
        "case_1_0000.nii.gz: not found; expected 2 channels, there are 0001",
    ),
    "channel too many": (
        lambda f: rewrite_as(f, image_of(f, 1, 1), "case_1_0002.nii.gz"),
        ("error", "case_1", "extra channel"),
        "case_1_0002.nii.gz: expected 2 channels, numbered from 0000",
    ),
    "label missing": (
        lambda f: label_of(f, 1).unlink(),
        ("error", "case_1", "missing label"),
        "labelsTr/case_1.nii.gz: not found; add the label",
    ),
    "image missing": (
        lambda f: rewrite_as(f, label_of(f, 1), "case_9.nii.gz"),
        ("error", "case_9", "label without image"),
        "expected an image",
    ),
    "image without channel number": (
        lambda f: rewrite_as(f, image_of(f, 1), "extra.nii.gz"),
        ("error", "extra", "file name"),
        "extra.nii.gz: has no channel number; expected extra_0000.nii.gz",
    ),
    "other ending": (
        lambda f: (f / "imagesTr" / "case_7_0000.nii").write_text("x"),
        ("warning", "dataset", "other files"),
        "1 files do not end with .nii.gz and are ignored: case_7_0000.nii",
    ),
    "test image without a channel": (
        lambda f: (f / "imagesTs" / "test_0_0001.nii.gz").unlink(),
        ("warning", "test_0", "missing channel"),
        "test_0_0001.nii.gz: not found",
    ),
}


@pytest.mark.parametrize("what", FILE_FAULTS)
def test_fault_in_the_file_names(tmp_path: Path, what: str) -> None:
    break_it, expected, message = FILE_FAULTS[what]
    folder = make(tmp_path, channel_names=("CT", "T2"), num_test=1)
    break_it(folder)
    assert found(folder) == {expected}
    assert message in message_of(folder, expected[2])


def test_dataset_without_cases(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for file in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        file.unlink()
    assert found(folder) == {("error", "dataset", "no cases")}
    assert "expected images such as liver_07_0000.nii.gz there" in message_of(folder, "no cases")


def test_dataset_without_folders(tmp_path: Path) -> None:
    folder = make(tmp_path, num_cases=0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).rmdir()
    missing = [problem.message for problem in check(folder) if problem.check == "missing folder"]
    assert [message.split(":")[0].rsplit("/")[-1] for message in missing] == ["imagesTr", "labelsTr"]


def test_names_that_differ_only_by_case(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rewrite_as(folder, image_of(folder, 1), "CASE_1_0000.nii.gz")
    (folder / "labelsTr" / "CASE_1.nii.gz").write_bytes(label_of(folder, 1).read_bytes())
    if len(list((folder / "imagesTr").iterdir())) == 4:
        pytest.skip("this file system does not tell upper from lower case")
    edit_json(folder, numTraining=5)
    assert {problem[2] for problem in found(folder)} == {"names differ only by case"}
    assert "CASE_1, case_1 differ only" in message_of(folder, "names differ only by case")


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for links")
def test_broken_link_is_not_overlooked(tmp_path: Path) -> None:
    folder = make(tmp_path)
    image = image_of(folder, 1)
    image.unlink()
    image.symlink_to(tmp_path / "nowhere")
    assert ("error", "case_1", "unreadable file") in found(folder)
    assert f"is a link to {tmp_path / 'nowhere'}, where there is no file" in message_of(folder, "unreadable file")
