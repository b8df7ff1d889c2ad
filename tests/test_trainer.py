"""Training end to end on tiny data: files, resuming, regions, ignore label, stock nnU-Net's own command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import train_fold
from phantoms import make_raw_dataset

from sam3dnet.errors import CheckpointError, DatasetError, PlanError, Sam3dError
from sam3dnet.inference.calibration import FILE as CALIBRATION
from sam3dnet.inference.models import choose_checkpoint
from sam3dnet.inference.postprocessing import FILE as POSTPROCESSING
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.network.earlier_weights import REACH
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training.checkpoint import load_safely
from sam3dnet.training.epoch_log import carry_on
from sam3dnet.training.optimizer import LEARNING_RATE_NEW
from sam3dnet.training.run import without_pretrained_weights
from sam3dnet.training.schedule import learning_rate_factor
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training


@pytest.fixture(autouse=True)
def loaders_in_this_process(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def prepare(dataset, encoder="tiny"):
    folders = activate_folders(None)
    plan_dataset(
        dataset, folders, cost=training_cost, seconds=training_seconds, encoder=encoder, device="cpu", progress=False
    )
    preprocess_dataset(dataset, folders, num_processes=0, progress=False)
    return folders


@pytest.fixture(scope="module")
def planned(tiny_dataset):
    return tiny_dataset, prepare(tiny_dataset)


def train(planned, **options):
    dataset, folders = planned
    defaults = {"epochs": 2, "iterations_per_epoch": 2, "device": "cpu", "validate": False}
    return train_fold(dataset, 0, folders, **{**defaults, **options})


def seed(number=0):
    import random

    import numpy as np

    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def test_a_training_leaves_nnunet_s_files(planned):
    output = train(planned, validate=True)
    assert output.name == "fold_0"
    assert output.parent.name == "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    present = {path.name for path in output.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "validation"} <= present
    assert "checkpoint_latest.pth" not in present
    summary = json.loads((output / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    lines = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1]["iterations"] == 4
    assert len(lines[-1]["prompted_dice"]) == 2
    checkpoint = load_safely(output / "checkpoint_final.pth")
    assert checkpoint["trainer_name"] == "nnUNetTrainerSAM3D"
    assert checkpoint["current_epoch"] == 2
    assert checkpoint["inference_allowed_mirroring_axes"] == (2,)


def test_minutes_end_a_training_inside_an_epoch(planned):
    output = train(planned, epochs=None, minutes=0.02, iterations_per_epoch=100_000)
    last = json.loads((output / "training_log.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 0
    assert 1 <= last["iterations"] < 100_000


def fold_folder(planned):
    dataset, folders = planned
    return folders.results / dataset / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres" / "fold_0"


def rate_at(fraction):
    return LEARNING_RATE_NEW * learning_rate_factor(fraction)


class Interrupted(Exception):
    pass


def assert_same_state(one, other):
    """Compare nested dictionaries and lists of tensors and numbers, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_same_state(first, second)
    else:
        assert one == other


def test_resuming_equals_an_uninterrupted_training_bit_for_bit(planned, monkeypatch):
    seed()
    whole = load_safely(train(planned, epochs=3) / "checkpoint_final.pth")

    original = nnUNetTrainerSAM3D.on_epoch_end

    def interrupt_after_first(self):
        original(self)
        if self.current_epoch == 1:
            raise Interrupted

    seed()
    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainerSAM3D, "on_epoch_end", interrupt_after_first)
        with pytest.raises(Interrupted):
            train(planned, epochs=3)
    seed(99)
    resumed = load_safely(train(planned, epochs=3, continue_training=True) / "checkpoint_final.pth")
    for name, value in whole["network_weights"].items():
        assert torch.equal(value, resumed["network_weights"][name]), name
    assert resumed["logging"]["train_losses"] == whole["logging"]["train_losses"]
    assert_same_state(resumed["optimizer_state"], whole["optimizer_state"])
    for kept in ("random_state", "reach_counts", "good_masks", "class_shares"):
        assert_same_state(resumed["sam3d"][kept], whole["sam3d"][kept])
    assert whole["sam3d"]["good_masks"]
    assert resumed["sam3d"]["iterations"] == 6
    log = fold_folder(planned) / "training_log.jsonl"
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [0, 1, 2]


def epochs_of(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("length", [{"epochs": 2}, {"epochs": None, "minutes": 1e-3}])
def test_a_training_that_is_done_is_not_trained_again(planned, monkeypatch, capsys, length):
    folder = train(planned, **length)
    before = {file.name: file.read_bytes() for file in folder.glob("checkpoint_*.pth")}
    log = epochs_of(folder)
    capsys.readouterr()
    validated = []
    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainerSAM3D, "get_dataloaders", lambda _: pytest.fail("it was trained"))
        patch.setattr(nnUNetTrainerSAM3D, "perform_actual_validation", lambda self, npz: validated.append(npz))
        train(planned, **length, continue_training=True, validate=True)
    assert validated == [False]
    done = "2 epochs" if "minutes" not in length else "0."
    assert f"the training is done already, after {done}" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in folder.glob("checkpoint_*.pth")} == before
    shutil.copy(
        folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    )  # as when it was killed at its very end
    (folder / "checkpoint_final.pth").write_bytes(b"of a shorter training before")
    train(planned, **length, continue_training=True)
    assert epochs_of(folder) == log
    assert load_safely(folder / "checkpoint_final.pth") and not (folder / "checkpoint_latest.pth").exists()


def test_a_longer_budget_goes_on_from_the_end_where_its_schedule_is_by_then(planned):
    log = epochs_of(train(planned))
    assert [line["learning_rate"] for line in log] == pytest.approx([rate_at(0), rate_at(1 / 2)])
    folder = train(planned, epochs=5, continue_training=True)
    longer = epochs_of(folder)
    assert longer[:2] == log
    assert [line["epoch"] for line in longer] == [0, 1, 2, 3, 4]
    assert [line["iterations"] for line in longer] == [2, 4, 6, 8, 10]
    assert longer[2]["seconds"] > log[1]["seconds"]
    assert load_safely(folder / "checkpoint_final.pth")["current_epoch"] == 5
    rates = [line["learning_rate"] for line in longer[2:]]
    assert rates == pytest.approx([rate_at(epoch / 5) for epoch in (2, 3, 4)])


def test_more_minutes_go_on_from_the_end(planned):
    folder = train(planned, epochs=None, minutes=1e-3)
    before = load_safely(folder / "checkpoint_final.pth")["sam3d"]
    train(planned, epochs=None, minutes=before["seconds"] / 60 + 1e-3, continue_training=True)
    after = load_safely(folder / "checkpoint_final.pth")["sam3d"]
    assert after["seconds"] > before["seconds"] and after["iterations"] > before["iterations"]


def interrupted(planned, monkeypatch, step, **options):
    """Train, and end before a step is taken, as by Ctrl-C."""

    def interrupt(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainerSAM3D, step, interrupt)
        with pytest.raises(Interrupted):
            train(planned, **options)


def leave_decisions(folder):
    files = (folder.parent / POSTPROCESSING, folder / POSTPROCESSING, folder / CALIBRATION)
    for file in files:
        file.write_text("{}")
    return files


def test_a_training_that_does_not_come_to_an_epoch_changes_nothing_of_the_one_before(planned, monkeypatch, capsys):
    folder = train(planned)
    files = [*leave_decisions(folder), *folder.glob("checkpoint_*.pth"), folder / "training_log.jsonl"]
    before = {file: file.read_bytes() for file in files}
    train(planned, continue_training=True)  # which is done already
    for step in ("initialize", "_validate_epoch"):
        interrupted(planned, monkeypatch, step, epochs=3)
        assert {file: file.read_bytes() for file in files} == before
    with pytest.raises(CheckpointError, match=r"begun anew and ended before its first epoch.*remove begun_anew.txt"):
        train(planned, epochs=3, continue_training=True)
    (folder / "begun_anew.txt").unlink()
    train(planned, epochs=3, continue_training=True)
    assert [line["epoch"] for line in epochs_of(folder)] == [0, 1, 2]
    assert not any(file.exists() for file in files[:3])


def test_a_new_training_that_is_interrupted_is_not_taken_for_the_one_before(planned, monkeypatch, capsys, caplog):
    folder = train(planned, epochs=3)
    final = (folder / "checkpoint_final.pth").read_bytes()
    decisions = leave_decisions(folder)
    interrupted(planned, monkeypatch, "_plot", epochs=2)
    earlier = folder / "checkpoint_earlier.pth"
    assert f"the checkpoint of the training before is kept as {earlier}" in capsys.readouterr().out
    assert earlier.read_bytes() == final and not any(file.exists() for file in decisions)
    assert choose_checkpoint(folder)[1]["current_epoch"] == 1
    assert "is of a training that began anew and has not ended; --checkpoint earlier" in caplog.text
    assert choose_checkpoint(folder, "earlier")[1]["current_epoch"] == 3
    interrupted(planned, monkeypatch, "_plot", epochs=2)  # anew once more
    assert earlier.read_bytes() == final
    train(planned, epochs=2, continue_training=True)
    assert len(epochs_of(folder)) == 2
    assert {file.name for file in folder.glob("checkpoint_*.pth")} == {"checkpoint_best.pth", "checkpoint_final.pth"}
    assert not (folder / "begun_anew.txt").exists()


def test_the_latest_checkpoint_knows_how_good_the_best_one_is(planned, monkeypatch):
    shutil.rmtree(fold_folder(planned), ignore_errors=True)
    interrupted(planned, monkeypatch, "_plot")
    best, latest = (load_safely(fold_folder(planned) / f"checkpoint_{name}.pth") for name in ("best", "latest"))
    assert latest["_best_ema"] is not None and latest["_best_ema"] == best["_best_ema"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("iterations_per_epoch", 0),
        ("iterations_per_epoch", -5),
        ("minutes", 0.0),
        ("minutes", -1.0),
        ("minutes", float("nan")),
    ],
)
def test_a_training_without_length_is_refused(option, value):
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(Sam3dError, match=rf"{name}: expected .*, got {value}; leave it out"):
        TrainingSettings(dataset="501", fold=0, **{option: value})
    with pytest.raises(Sam3dError, match=rf"--validate-only trains nothing; leave out {name}"):
        TrainingSettings(dataset="501", fold=0, validate_only=True, **{option: value})


def test_continuing_without_a_checkpoint_is_an_error(planned):
    dataset, folders = planned
    shutil.rmtree(folders.results / dataset, ignore_errors=True)
    with pytest.raises(CheckpointError, match="train without --continue"):
        train(planned, continue_training=True)


def test_a_checkpoint_of_another_network_is_refused(planned):
    output = train(planned, epochs=1)
    checkpoint = load_safely(output / "checkpoint_final.pth")
    checkpoint["network_weights"].pop("decoder.merge.weight")
    torch.save(checkpoint, output / "checkpoint_latest.pth")
    for name in ("final", "best"):  # which would be used in its place
        (output / f"checkpoint_{name}.pth").unlink()
    with pytest.raises(CheckpointError, match="weights of another network"):
        train(planned, continue_training=True)
    (output / "checkpoint_latest.pth").unlink()


def test_a_training_from_before_there_was_a_reach_goes_on(planned):
    output = train(planned, epochs=1)
    checkpoint = load_safely(output / "checkpoint_final.pth")
    del checkpoint["network_weights"][REACH]
    torch.save(checkpoint, output / "checkpoint_latest.pth")
    for name in ("final", "best"):
        (output / f"checkpoint_{name}.pth").unlink()
    resumed = load_safely(train(planned, epochs=2, continue_training=True) / "checkpoint_final.pth")
    assert resumed["current_epoch"] == 2
    assert REACH in resumed["network_weights"]


def test_wrong_requests_are_refused_before_anything_is_written(planned, nnunet_root):
    dataset, folders = planned
    with pytest.raises(PlanError, match="has the folds 0 to 4"):
        train_fold(dataset, 9, folders, device="cpu")
    with pytest.raises(PlanError, match=r"configuration '2d': the plan of .* has 3d_fullres"):
        train_fold(dataset, 0, folders, configuration="2d", device="cpu")
    make_raw_dataset(nnunet_root / "nnUNet_raw" / "Dataset907_Unplanned", num_cases=2)
    with pytest.raises(PlanError, match="run sam3d_plan_and_preprocess -d Dataset907_Unplanned first"):
        train_fold("Dataset907_Unplanned", 0, folders, device="cpu")
    assert not (folders.results / dataset / "fold_9").exists()


def test_a_plan_without_cases_is_refused(planned, tmp_path):
    dataset, folders = planned
    other = type(folders)(folders.raw, tmp_path, folders.results)
    shutil.copytree(folders.preprocessed / dataset, tmp_path / dataset, ignore=shutil.ignore_patterns("*.pkl"))
    with pytest.raises(DatasetError, match="holds no preprocessed case"):
        train_fold(dataset, 0, other, device="cpu")


def test_a_plan_that_wants_sam_needs_its_weights_or_from_scratch(planned, monkeypatch, tmp_path):
    dataset, folders = planned
    plans_file = folders.preprocessed / dataset / "SAM3DPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["plans_name"] = "WantsSAM"
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(pretrained=True, encoder="vit_b")
    (plans_file.parent / "WantsSAM.json").write_text(json.dumps(plans))
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path / "nowhere.pth"))
    with pytest.raises(CheckpointError, match="--from-scratch"):
        train(planned, plans="WantsSAM")
    arch = without_pretrained_weights(plans)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arch["pretrained"] is False
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["pretrained"] is True


def wanting_sam(planned, name, record):
    """Write the plan again as one of vit_b with SAM's weights, which it was made for."""
    dataset, folders = planned
    plans_file = folders.preprocessed / dataset / "SAM3DPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["plans_name"], plans["sam3d"]["weights"] = name, record
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(pretrained=True, encoder="vit_b")
    (plans_file.parent / f"{name}.json").write_text(json.dumps(plans))
    return name


def test_training_asks_for_the_weights_that_the_plan_was_made_for(planned, tmp_path):
    name = wanting_sam(planned, "OfOthers", {"family": "others", "digest": "sha256:0"})
    with pytest.raises(CheckpointError, match=r"weights 'others': known are sam, medsam; .*--from-scratch"):
        train(planned, plans=name)
    own = tmp_path / "own.pth"
    own.write_bytes(b"changed")
    name = wanting_sam(planned, "OfMine", {"family": None, "path": str(own), "digest": f"sha256:{'0' * 64}"})
    with pytest.raises(CheckpointError, match=r"own.pth .*is not the file that the plan was made for, sha256:000"):
        train(planned, plans=name)


def test_a_named_file_is_checked_before_anything_is_made(planned, tmp_path):
    name = wanting_sam(planned, "Named", None)
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w.pth: expected a checkpoint in SAM's format"):
        train(planned, plans=name, sam_checkpoint=str(tmp_path / "w.pth"))
    dataset, folders = planned
    assert not list((folders.results / dataset).glob("*__Named__*"))


def test_from_scratch_is_accepted_where_the_plan_is_from_scratch_anyway(planned):
    output = train(planned, epochs=1, from_scratch=True)
    assert (output / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (
            908,
            {
                "labels": {"background": 0, "whole": [1, 2], "lesion": [2]},
                "regions_class_order": [1, 2],
            },
        ),
        (909, {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}),
    ],
)
def test_regions_and_ignore_label_train(number, options, nnunet_root):
    name = f"Dataset{number}_Special"
    make_raw_dataset(nnunet_root / "nnUNet_raw" / name, num_cases=5, **options)
    output = train((name, prepare(name)), epochs=1, validate=True)
    summary = json.loads((output / "validation" / "summary.json").read_text())
    assert len(summary["mean"]) == 2
    assert torch.isfinite(torch.tensor(load_safely(output / "checkpoint_final.pth")["logging"]["train_losses"])).all()


def test_prompts_in_validation_are_answered_where_the_target_says_something(nnunet_root, monkeypatch):
    name, ignored = "Dataset910_Ignored", []
    labels = {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}
    make_raw_dataset(nnunet_root / "nnUNet_raw" / name, num_cases=5, labels=labels)
    prepare_loader = nnUNetTrainerSAM3D.get_dataloaders

    def ignoring(loader):
        for batch in loader:
            for target in batch["target"]:
                target[:, :, 0] = 3
            yield batch

    def note(self, batch, prompter):
        ignored.append(bool((batch["target"][0] == 3).any()))
        ignored.append(not prompter.prompter._valid_Qzyx[:, 0].any())
        return answer(self, batch, prompter)

    answer = nnUNetTrainerSAM3D._answer_prompts
    monkeypatch.setattr(nnUNetTrainerSAM3D, "_answer_prompts", note)
    monkeypatch.setattr(nnUNetTrainerSAM3D, "get_dataloaders", lambda self: tuple(map(ignoring, prepare_loader(self))))
    train((name, prepare(name)), epochs=1)
    assert ignored and all(ignored)


def test_rare_classes_weigh_more_at_first_and_never_in_scores(planned, monkeypatch):
    weights = {"train_step": [], "validation_step": []}

    def note(step):
        original = getattr(nnUNetTrainerSAM3D, step)

        def noting(self, batch):
            result = original(self, batch)
            weights[step].append(self.loss.loss.ce.weight)
            return result

        monkeypatch.setattr(nnUNetTrainerSAM3D, step, noting)

    note("train_step")
    note("validation_step")
    train(planned, epochs=2, iterations_per_epoch=4)
    first, *_, last = weights["train_step"]
    assert first[1:].min() > 1.5 * first[0]  # background is the most frequent
    assert last.tolist() == [1.0, 1.0, 1.0]
    assert weights["validation_step"] and all(one is None for one in weights["validation_step"])


def test_a_loss_that_is_not_a_number_stops_and_names_the_cases(planned, monkeypatch):
    original = SAM3D.forward

    def poisoned(self, *arguments):
        answer = original(self, *arguments)
        logits, *rest = answer if isinstance(answer, tuple) else (answer,)
        logits = [level * float("nan") for level in logits]
        return (logits, *rest) if rest else logits

    monkeypatch.setattr(SAM3D, "forward", poisoned)
    with pytest.raises(PlanError, match=r"loss became nan in epoch 0 on cases .*case_"):
        train(planned)


def test_stock_nnunet_trains_our_plan(planned):
    dataset, folders = planned
    ext = Path(__file__).resolve().parents[1] / "sam3dnet" / "nnunet_ext"
    environment = {**os.environ, "nnUNet_extTrainer": str(ext), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    code = (
        "import torch\n"
        "from nnunetv2.run.run_training import get_trainer_from_args\n"
        f"t = get_trainer_from_args({dataset!r}, '3d_fullres', 1, 'nnUNetTrainerSAM3D', 'SAM3DPlans', "
        "device=torch.device('cpu'))\n"
        "t.num_epochs, t.num_iterations_per_epoch, t.num_val_iterations_per_epoch = 1, 2, 1\n"
        "t.run_training()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    output = folders.results / dataset / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres" / "fold_1"
    assert (output / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize(
    ("moving", "mean", "expected"),
    [
        ([0.5, 0.54], 0.9, 0.54),
        ([0.5, np.nan], np.nan, 0.5),  # nothing to score in this epoch
        ([np.nan, np.nan], 0.9, 0.9),  # nor in the one before
        ([np.nan], np.nan, np.nan),
        ([np.nan, np.nan], np.nan, np.nan),
    ],
)
def test_an_epoch_without_objects_does_not_stay_in_the_moving_average(moving, mean, expected):
    carry_on(moving, mean)
    np.testing.assert_equal(moving[-1], expected)
