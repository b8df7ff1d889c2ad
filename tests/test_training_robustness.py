"""Training that is killed, continued from damaged files, or robbed of its processes."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import train_fold
from faults import disk_that_ends_after, truncate
from test_trainer import prepare

from sam3dnet.errors import PlanError, Sam3dError
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.training import trainer
from sam3dnet.training.checkpoint import load_safely
from sam3dnet.training.epoch_log import keep_epochs_before
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training

FOLD = 2
SECONDS_TO_GIVE_UP_AFTER = 3600  # a guard, far above what a busy machine needs
TRAINING = """
import sys
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training.run import train_fold
options = {"epochs": 100_000, "iterations_per_epoch": 1, "device": "cpu"}
settings = TrainingSettings(sys.argv[1], sys.argv[2], continue_training=sys.argv[3] == "continue", **options)
train_fold(settings, activate_folders(None), validate=False)
"""


@pytest.fixture(autouse=True)
def loaders_in_this_process(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.fixture(scope="module")
def dataset(tiny_dataset):
    prepare(tiny_dataset)
    return tiny_dataset


def train(dataset, **options):
    defaults = {"epochs": 2, "iterations_per_epoch": 1, "device": "cpu", "validate": False}
    return train_fold(dataset, FOLD, activate_folders(None), **{**defaults, **options})


def epochs_in(log):
    """Epochs of which the log has a whole line."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return [json.loads(line)["epoch"] for line in lines if line.endswith("}")]


def kill_after_an_epoch(process, log, first_new_epoch):
    """Wait until this run has finished an epoch, checkpoint and all, and one more, then a random moment; kill it."""
    give_up = time.monotonic() + SECONDS_TO_GIVE_UP_AFTER
    while first_new_epoch + 1 not in epochs_in(log):
        assert process.poll() is None, f"the training ended by itself, with status {process.returncode}"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_loses_one_epoch_at_most(dataset, kills):
    folder = train(dataset, epochs=1)
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    log = folder / "training_log.jsonl"
    for _ in range(kills):
        begins_at = load_safely(folder / "checkpoint_latest.pth")["current_epoch"]
        keep_epochs_before(begins_at, log)
        process = subprocess.Popen([sys.executable, "-c", TRAINING, dataset, str(FOLD), "continue"])
        try:
            kill_after_an_epoch(process, log, begins_at)
        finally:
            process.kill()
        finished = epochs_in(log)
        kept = load_safely(folder / "checkpoint_latest.pth")["current_epoch"]
        assert finished == list(range(len(finished)))
        assert kept in (len(finished) - 1, len(finished))  # the line of the log comes before the checkpoint
        assert kept > begins_at
    train(dataset, epochs=kept + 1, continue_training=True)
    assert epochs_in(log) == list(range(kept + 1))
    assert not list(folder.glob(".partial-*"))


def test_damaged_and_foreign_checkpoints_are_named_and_the_one_before_is_used(dataset, caplog):
    folder = train(dataset, epochs=2)
    best, latest = folder / "checkpoint_best.pth", folder / "checkpoint_latest.pth"
    (folder / "checkpoint_final.pth").unlink()
    foreign = load_safely(best)
    foreign["network_weights"]["of_another_network"] = torch.zeros(3)
    epoch = load_safely(best)["current_epoch"]
    for reason, spoil in (
        ("not a whole checkpoint", lambda: (latest.write_bytes(best.read_bytes()), truncate(latest, 0.7))),
        ("weights of another network", lambda: torch.save(foreign, latest)),
    ):
        spoil()
        with caplog.at_level("INFO"):
            assert train(dataset, epochs=epoch + 1, continue_training=True) == folder
        assert f"{latest}: " in caplog.text
        assert reason in caplog.text
        assert f"continuing from {best}" in caplog.text
        assert load_safely(folder / "checkpoint_final.pth")["current_epoch"] == epoch + 1
        (folder / "checkpoint_final.pth").unlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_loader_that_is_killed_is_told_and_not_waited_for(dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    original = nnUNetTrainerSAM3D.train_step

    def step_and_kill(self, batch):
        for process in multiprocessing.active_children():
            process.kill()
        return original(self, batch)

    monkeypatch.setattr(nnUNetTrainerSAM3D, "train_step", step_and_kill)
    try:
        with pytest.raises(
            Sam3dError, match=r"a process that loads or exports images has ended.*--continue.*--workers"
        ):
            train(dataset, epochs=100, iterations_per_epoch=100)
    finally:
        for process in multiprocessing.active_children():
            process.kill()


def test_a_full_disk_ends_a_training_with_what_to_do(dataset, monkeypatch):
    real = trainer.save_atomically

    def save_on_a_full_disk(checkpoint, path):
        with disk_that_ends_after(100_000 if checkpoint["current_epoch"] > 1 else 1 << 40):
            real(checkpoint, path)

    monkeypatch.setattr(trainer, "save_atomically", save_on_a_full_disk)
    with pytest.raises(Sam3dError, match=r"checkpoint_(best|latest).pth: the .* could not be written .*free space"):
        train(dataset, epochs=3)
    folder = Path(activate_folders(None).results) / dataset / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    assert load_safely(folder / f"fold_{FOLD}" / "checkpoint_latest.pth")["current_epoch"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plans: plans.update(dataset_name="../../elsewhere"),
            r"expected a plan of Dataset901_Tiny .* plan again",
        ),
        (lambda plans: plans.update(plans_name="../x"), r"has \.\./x, SAM3DPlans_3d_fullres; plan again"),
        (
            lambda plans: plans["configurations"]["3d_fullres"].update(data_identifier="../../x"),
            r"whose names lead to no other folder.*\.\./\.\./x",
        ),
    ],
)
def test_a_plan_leads_to_no_other_folder(dataset, change, message):
    plans_file = activate_folders(None).preprocessed / dataset / "SAM3DPlans.json"
    plans = json.loads(plans_file.read_text())
    change(plans)
    other = plans_file.with_name("Leads.json")
    other.write_text(json.dumps(plans))
    with pytest.raises(PlanError, match=message):
        train(dataset, plans="Leads")
    other.unlink()


def test_a_split_names_cases_only(dataset):
    splits = activate_folders(None).preprocessed / dataset / "splits_final.json"
    before = splits.read_text() if splits.is_file() else None
    splits.write_text(json.dumps([{"train": ["case_0"], "val": ["../../case_1"]}] * 5))
    try:
        with pytest.raises(PlanError, match=r"splits_final.json: .*val.0. must be the name of a case, not .*case_1"):
            train(dataset)
    finally:
        splits.unlink() if before is None else splits.write_text(before)
