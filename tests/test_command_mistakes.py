"""What users get wrong is one clear line of the command, and nothing is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam3dnet.cli import info


def run(command: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in which no variable of nnU-Net's is set but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    module = f"sam3dnet.cli.{command.removeprefix('sam3d_')}"
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, env=kept | variables, capture_output=True, text=True, check=False)


def assert_user_error(finished: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert exit status 2 and a message without traceback that names these parts."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    for part in parts:
        assert part in finished.stderr


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one raw dataset of which no case is read here."""
    folder = tmp_path / "root" / "nnUNet_raw" / "Dataset907_Bare"
    folder.mkdir(parents=True)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return tmp_path / "root"


@pytest.fixture
def planned_root(root: Path) -> Path:
    """The same, with a plan and the name of a preprocessed case."""
    folder = root / "nnUNet_preprocessed" / "Dataset907_Bare"
    (folder / "cases").mkdir(parents=True)
    for case in range(5):
        (folder / "cases" / f"case_{case}.pkl").touch()
    plans = {"plans_name": "SAM3DPlans", "dataset_name": "Dataset907_Bare"}
    plans |= {"configurations": {"3d_fullres": {"data_identifier": "cases"}}}
    (folder / "SAM3DPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_bytes((root / "nnUNet_raw" / "Dataset907_Bare" / "dataset.json").read_bytes())
    return root


LINES = {
    "sam3d_plan_and_preprocess": ["-d", "907"],
    "sam3d_train": ["907", "0"],
    "sam3d_predict": ["-i", "images", "-o", "out"],
}


@pytest.mark.parametrize("command", LINES)
def test_unset_variables(command: str) -> None:
    finished = run(command, *LINES[command], nnUNet_raw="somewhere")
    assert_user_error(finished, "export nnUNet_preprocessed=", "export nnUNet_results=", "--root")


@pytest.mark.parametrize("command", ["sam3d_plan_and_preprocess", "sam3d_train"])
def test_no_such_dataset(command: str, root: Path) -> None:
    before = files_below(root)
    line = [argument.replace("907", "908") for argument in LINES[command]]
    assert_user_error(run(command, *line, "--root", root), "908", "Dataset907_Bare")
    assert files_below(root) == before


def test_training_before_planning(root: Path) -> None:
    finished = run("sam3d_train", 907, "fold0", "--root", root)
    assert_user_error(finished, "Dataset907_Bare", "sam3d_plan_and_preprocess -d")
    assert files_below(root) == files_below(root / "nnUNet_raw")


def test_fold_9(planned_root: Path) -> None:
    before = files_below(planned_root)
    finished = run("sam3d_train", 907, "fold9", "--root", planned_root, "--device", "cpu")
    assert_user_error(finished, "fold 9", "0 to 4", "all")
    assert files_below(planned_root) == before


def test_predicting_without_a_model(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions"
    finished = run("sam3d_predict", "-i", tmp_path, "-o", output, "--root", root)
    assert_user_error(finished, "nnUNet_results", "sam3d_train")
    assert not output.exists()


def test_unwritable_root(root: Path) -> None:
    """A file where a folder should be: also the superuser cannot write there."""
    (root / "nnUNet_preprocessed").touch()
    finished = run("sam3d_plan_and_preprocess", "-d", 907, "--root", root)
    assert_user_error(finished, "nnUNet_preprocessed")
    assert files_below(root) == {*files_below(root / "nnUNet_raw"), root / "nnUNet_preprocessed"}


def test_unwritable_output_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finished = run("sam3d_demo", "--output", tmp_path / "file" / "demo")
    assert_user_error(finished, str(tmp_path / "file"))


def test_info_tells_versions_folders_and_models(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = root / "nnUNet_results" / "Dataset907_Bare" / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    for fold in ("fold_0", "fold_3"):
        (model / fold).mkdir(parents=True)
        (model / fold / "checkpoint_final.pth").touch()
    (model / "plans.json").write_text("{}", encoding="utf-8")
    lines = [" ".join(line.split()) for line in info.info(root=root)]
    assert f"nnUNet_raw {root / 'nnUNet_raw'}" in lines
    assert "Dataset907_Bare/nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres folds 0 3" in lines
    assert any(line.startswith("torch 2.") for line in lines)
    assert any(line.startswith("cpu ") for line in lines)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw not set" in [" ".join(line.split()) for line in info.info()]


def test_ext_trainer_is_one_line() -> None:
    finished = run("sam3d_info", "--ext-trainer")
    assert finished.stdout == f"{info.ext_trainer_folder()}\n"
    assert finished.stderr == ""
