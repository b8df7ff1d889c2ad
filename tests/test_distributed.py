"""Training in several processes: torchrun with gloo on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cascades import CASCADE, LOWRES, plan_cascade
from commands import validate_fold
from test_trainer import prepare

from sam3dnet.errors import PlanError
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.training import distributed
from sam3dnet.training.distributed import agreed, check_batch_size, gathered, joined_processes, share_of_batch
from sam3dnet.training.next_stage import FOLDER

SCRIPT = Path(__file__).with_name("distributed_steps.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_alone_nothing_changes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined_processes(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert not distributed.are_joined() and distributed.is_first_process()
    assert gathered("x") == ["x"]
    assert share_of_batch(2, 2) == 1.0
    check_batch_size(1)


def test_devices_that_cannot_work_together_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with pytest.raises(PlanError, match="train together on cpu or cuda"), joined_processes(torch.device("mps")):
        pass


@pytest.fixture
def group_of_one(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_group_of_one_agrees_with_itself(group_of_one):
    assert agreed(0.1, torch.device("cpu")) == 0.1
    assert gathered([1]) == [[1]]


def test_every_image_counts_the_same(group_of_one, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert share_of_batch(2, 3) + share_of_batch(1, 3) == pytest.approx(2)
    assert share_of_batch(2, 3) == pytest.approx(2 * share_of_batch(1, 3))
    with pytest.raises(PlanError, match="2 processes for a batch of 1"):
        check_batch_size(1)


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_dataset, tmp_path):
    prepare(tiny_dataset)
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        line = [*command, str(SCRIPT), tiny_dataset, str(tmp_path / name)]
        run = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=3000)
        assert run.returncode == 0, run.stderr[-4000:]
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    # AdamW divides rounding by rounding where a gradient is almost 0: 1e-5 is 0.3 % of the longest step it can take
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_processes_train_and_validate_both_stages_of_a_cascade(nnunet_root):
    name, folders = "Dataset943_TwoProcesses", activate_folders(None)
    plan_cascade(folders, name, num_cases=5)
    preprocess_dataset(name, folders, num_processes=0, progress=False)
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    for configuration, fold in ((LOWRES, "all"), (CASCADE, "0")):
        line = [*TORCHRUN, "-m", "sam3dnet.cli.train", name, fold, "-c", configuration, "--device", "cpu"]
        line += ["--epochs", "1", "--iterations-per-epoch", "6"]
        run = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=3000)
        assert run.returncode == 0, run.stderr[-4000:]
    models = folders.results / name
    maps = list(models.glob(f"*__{LOWRES}/{FOLDER}/{CASCADE}/*.b2nd"))
    assert sorted(file.stem for file in maps) == [f"case_{number}" for number in range(5)]
    validation = next(models.glob(f"*__{CASCADE}/fold_0")) / "validation"
    by_two = {file.name: file.read_bytes() for file in validation.glob("*.nii.gz")}
    assert by_two and (validation / "summary.json").is_file()
    shutil.rmtree(validation)
    validate_fold(name, 0, folders, configuration=CASCADE, device="cpu")
    assert {file.name: file.read_bytes() for file in validation.glob("*.nii.gz")} == by_two
