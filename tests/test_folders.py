"""The three folders, dataset names, and files that are written whole or not at all."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.folders import (
    VARIABLES,
    Folders,
    activate_folders,
    find_dataset_name,
    whole_or_nothing,
    write_json,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring the three variables back after each test."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, os.environ[variable])


def make_folders(root: Path, *relative: str) -> Folders:
    for path in relative:
        (root / path).mkdir(parents=True)
    return Folders(*(root / variable for variable in VARIABLES))


def test_root_gives_the_three_folders_and_makes_those_that_are_written(tmp_path: Path) -> None:
    folders = activate_folders(tmp_path / "new")
    assert folders == Folders(*(tmp_path / "new" / variable for variable in VARIABLES))
    assert folders.preprocessed.is_dir()
    assert folders.results.is_dir()
    assert not folders.raw.exists()
    assert [os.environ[variable] for variable in VARIABLES] == [str(tmp_path / "new" / name) for name in VARIABLES]


def test_nnunet_reads_the_folders_that_were_activated(tmp_path: Path) -> None:
    from nnunetv2 import paths

    activate_folders(tmp_path)
    assert [str(getattr(paths, variable)) for variable in VARIABLES] == [str(tmp_path / name) for name in VARIABLES]


def test_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert activate_folders(Path("here")).raw == tmp_path / "here" / "nnUNet_raw"


def test_without_root_the_variables_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, variable in enumerate(VARIABLES):
        monkeypatch.setenv(variable, str(tmp_path / f"place_{index}"))
    assert activate_folders(None) == Folders(*(tmp_path / f"place_{index}" for index in range(3)))


@pytest.mark.parametrize("state", ["unset", "empty"])
def test_a_missing_variable_shows_the_lines_to_type(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    if state == "unset":
        monkeypatch.delenv("nnUNet_results")
    else:
        monkeypatch.setenv("nnUNet_results", "")
    with pytest.raises(DatasetError, match=r"^nnUNet_results: not set") as raised:
        activate_folders(None)
    assert all(f"export {variable}=" in str(raised.value) for variable in VARIABLES)
    assert "--root DIR" in str(raised.value)


def test_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match=r"file/nnUNet_preprocessed cannot be made \(Not a directory\).*--root"):
        activate_folders(tmp_path / "file")


def test_importing_the_folders_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'nnunetv2', 'SimpleITK'}"
    code = f"import sys, sam3dnet.preprocessing.folders; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("identifier", [501, "501", " 501 ", "Dataset501_Liver"])
@pytest.mark.parametrize("place", VARIABLES)
def test_dataset_is_found_by_number_and_name_wherever_it_lies(
    tmp_path: Path, identifier: int | str, place: str
) -> None:
    folders = make_folders(tmp_path, f"{place}/Dataset501_Liver", "nnUNet_raw/Dataset502_Kidney")
    assert find_dataset_name(identifier, folders) == "Dataset501_Liver"


def test_small_numbers_are_padded(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, "nnUNet_raw/Dataset007_Heart", "nnUNet_raw/Dataset070_Spleen")
    assert find_dataset_name(7, folders) == "Dataset007_Heart"


@pytest.mark.parametrize("identifier", [503, "Dataset503_X", "Liver", "50", ""])
def test_unknown_dataset_lists_what_there_is(tmp_path: Path, identifier: int | str) -> None:
    folders = make_folders(tmp_path, "nnUNet_raw/Dataset501_Liver", "nnUNet_results/Dataset502_B", "nnUNet_raw/notes")
    with pytest.raises(DatasetError, match=f"dataset '{identifier}': not found.*: Dataset501_Liver, Dataset502_B;"):
        find_dataset_name(identifier, folders)


def test_no_dataset_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there are: none"):
        find_dataset_name(501, make_folders(tmp_path))


@pytest.mark.parametrize("typed", ["Dataset501_Lver", "dataset501_liver", "liver", "Livr"])
def test_a_misspelt_dataset_is_suggested(typed: str, tmp_path: Path) -> None:
    folders = make_folders(tmp_path, "nnUNet_raw/Dataset501_Liver", "nnUNet_raw/Dataset007_Heart")
    with pytest.raises(DatasetError, match=r"\(did you mean Dataset501_Liver\?\); there are: "):
        find_dataset_name(typed, folders)


def test_one_number_for_two_datasets_is_refused(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, "nnUNet_raw/Dataset501_A", "nnUNet_results/Dataset501_B")
    with pytest.raises(DatasetError, match="2 datasets have this number: Dataset501_A, Dataset501_B; give the full"):
        find_dataset_name(501, folders)
    assert find_dataset_name("Dataset501_B", folders) == "Dataset501_B"


def test_json_is_written_into_a_new_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "file.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "new" / "file.json").read_text()) == {"a": [1, 2.5, None]}
    assert os.listdir(tmp_path / "new") == ["file.json"]


def test_json_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "file.json", {"a": object()})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "scan.nii.gz"
    target.write_text("old")
    with pytest.raises(ValueError, match="halfway"), whole_or_nothing(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == tmp_path
        temporary.write_text("ne")
        raise ValueError("halfway")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["scan.nii.gz"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_written_files_have_the_permissions_of_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_json(tmp_path / "file.json", {})
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "file.json")]
    assert modes[0] == modes[1]
