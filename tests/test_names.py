"""Names that collide, and what is no file: refused before anything is written, or named as failed."""

import json
import os
from pathlib import Path, PurePath

import pytest
from phantoms import make_raw_dataset

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import find_cases
from sam3dnet.preprocessing.cases import list_training_cases, read_dataset_json
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.names import entries, fault_of_case, fault_of_output, not_a_file
from sam3dnet.preprocessing.verify import verify_dataset


def make(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset905_Names"
    make_raw_dataset(folder, num_cases=3)
    return folder


def names_of(folder: Path) -> list[str]:
    return [case.name for case in list_training_cases(folder, read_dataset_json(folder))]


def rename_case(folder: Path, old: str, new: str) -> None:
    (folder / "imagesTr" / f"{old}_0000.nii.gz").rename(folder / "imagesTr" / f"{new}_0000.nii.gz")
    (folder / "labelsTr" / f"{old}.nii.gz").rename(folder / "labelsTr" / f"{new}.nii.gz")


def errors_of(folder: Path) -> dict[str, str]:
    return {p.case: p.message for p in verify_dataset(folder, 0, progress=False) if p.severity == "error"}


def test_a_case_called_as_nnunet_calls_labels_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path)
    first = names_of(folder)[0]
    rename_case(folder, first, f"{first}_seg")
    assert list(errors_of(folder)) == [f"{first}_seg"]
    with pytest.raises(DatasetError, match=f'case "{first}_seg": ends in _seg, .* stores the labels of {first}'):
        names_of(folder)


@pytest.mark.parametrize("name", ["a b", "Ärztin 1", "p.1", "dataset", "-x", "a_0000", "seg"])
def test_other_names_are_right(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    rename_case(folder, names_of(folder)[0], name)
    assert not errors_of(folder)
    assert name in names_of(folder)
    assert fault_of_output(name, ".nii.gz") is None


@pytest.mark.parametrize("name", ["dataset", "plans", "summary", "sam3d_prediction"])
def test_a_label_map_must_not_bring_a_file_that_overwrites_ours(tmp_path: Path, name: str) -> None:
    assert "would overwrite" in str(fault_of_output(name, ".tif"))
    assert "rename its files" in str(fault_of_case(name, ".tiff"))
    (tmp_path / f"{name}_0000.tif").write_bytes(b"an image")
    (tmp_path / "other_0000.tif").write_bytes(b"an image")
    cases, failed = find_cases(tmp_path, ".tif", 1)
    assert [case.name for case in cases] == ["other"]
    assert f"overwrite {name}.json" in failed[name]


def test_companions_of_file_managers_are_no_images(tmp_path: Path) -> None:
    folder = make(tmp_path)
    before = names_of(folder)
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / part / f"._{before[0]}{ending}").write_bytes(b"Mac OS X")
        (folder / part / ".DS_Store").write_bytes(b"")
        (folder / part / "Thumbs.db").write_bytes(b"")
    assert not verify_dataset(folder, 0, progress=False)
    assert names_of(folder) == before
    assert [case.name for case in find_cases(folder / "imagesTr", ".nii.gz", 1)[0]] == before


def test_endings_in_upper_case_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path)
    first = names_of(folder)[0]
    file = folder / "imagesTr" / f"{first}_0000.nii.gz"
    file.rename(file.with_name(f"{first}_0000.NII.GZ"))
    assert any("expected the ending .nii.gz; rename it" in message for message in errors_of(folder).values())
    cases, failed = find_cases(folder / "imagesTr", ".nii.gz", 1)
    assert first not in [case.name for case in cases]
    assert "expected the ending .nii.gz" in failed[f"{first}_0000.NII.GZ"]


def make_all_but_files(folder: Path) -> dict[str, str]:
    """Put what is no file under names of images; give what each is."""
    (folder / "link_0000.nii.gz").symlink_to(folder / "nowhere")
    (folder / "loop_0000.nii.gz").symlink_to(folder / "loop_0000.nii.gz")
    (folder / "folder_0000.nii.gz").mkdir()
    os.mkfifo(folder / "pipe_0000.nii.gz")
    return {"link": "a link to", "loop": "a link to", "folder": "a folder", "pipe": "a pipe or a device"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "real_0000.nii.gz").write_bytes(b"an image")
    expected = make_all_but_files(tmp_path)
    cases, failed = find_cases(tmp_path, ".nii.gz", 1)
    assert [case.name for case in cases] == ["real"]
    assert failed.keys() == expected.keys()
    for name, what in expected.items():
        assert what in failed[name]
        (problem,) = check_bytes(name, tmp_path / f"{name}_0000.nii.gz")
        assert what in problem.message
        assert what in str(not_a_file(tmp_path / f"{name}_0000.nii.gz"))
    assert not_a_file(tmp_path / "real_0000.nii.gz") is None
    assert not_a_file(tmp_path / "missing") == "not there"
    assert len(entries(tmp_path)) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_verification_names_them(tmp_path: Path) -> None:
    folder = make(tmp_path)
    make_all_but_files(folder / "imagesTr")
    found = errors_of(folder)
    for name in ("link", "loop", "folder", "pipe"):
        assert name in found


def test_names_of_the_key_dataset_are_checked_too(tmp_path: Path) -> None:
    folder = make(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    first = names_of(folder)[0]
    files = {"images": [f"imagesTr/{first}_0000.nii.gz"], "label": f"labelsTr/{first}.nii.gz"}
    content["dataset"] = {"x_seg": files}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match='case "x_seg": ends in _seg'):
        names_of(folder)


def test_images_are_not_compared_each_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        (tmp_path / f"case_{number:03d}_0000.nii.gz").touch()
    (tmp_path / "case_000.png").touch()
    compared, as_it_is = [], PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda self, other: compared.append(0) or as_it_is(self, other))
    assert len(find_cases(tmp_path, ".nii.gz", 1)[0]) == 300
    assert len(compared) < 3000


def test_a_label_map_beside_its_image_is_told_by_its_own_name(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    cases, failed = find_cases(tmp_path, ".nii.gz", 1)
    assert [case.name for case in cases] == ["a"]
    assert failed == {
        "a.nii.gz": "a.nii.gz has no channel number, and there is a_0000.nii.gz; move it away",
        "b": "b.nii.gz has no channel number; name it b_0000.nii.gz",
    }
