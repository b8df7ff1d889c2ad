"""The first step as a measurement: what does not fit is made smaller, kept for further folds, or refused."""

import json
import logging
import shutil

import pytest
import torch
from commands import train_fold
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from test_trainer import fold_folder, prepare, train

from sam3dnet.errors import PlanError
from sam3dnet.inference.models import load_model
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.planning.plan import planned_memory
from sam3dnet.planning.reducing import configuration_of, smaller_steps, step_of, with_step
from sam3dnet.training import first_step
from sam3dnet.training import trainer as trainer_module
from sam3dnet.training.asked import read_plan

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training


@pytest.fixture(autouse=True)
def loaders_in_this_process(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.fixture(scope="module")
def prepared(tiny_dataset):
    return tiny_dataset, prepare(tiny_dataset)


@pytest.fixture
def planned(prepared):
    """Forget what other tests trained."""
    shutil.rmtree(fold_folder(prepared).parent, ignore_errors=True)
    return prepared


@pytest.fixture
def small_card(monkeypatch):
    """Limit what a step may take, in voxels of a batch; recomputed activations count for a third."""
    limit = {"voxels": 10**9, "tried": []}
    features = SAM3D.features

    def allocate(network, x_BCzyx):
        voxels = x_BCzyx.numel() / (3 if network.image_encoder.checkpointing else 1)
        limit["tried"].append(tuple(x_BCzyx.shape))
        if voxels > limit["voxels"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return features(network, x_BCzyx)

    monkeypatch.setattr(SAM3D, "features", allocate)
    monkeypatch.setattr(trainer_module, "is_measured", lambda device: True)
    return limit


def plans_of(planned, folder):
    dataset, folders = planned
    return json.loads((folder(dataset, folders)).read_text())


def dataset_plan(planned):
    return plans_of(planned, lambda dataset, folders: folders.preprocessed / dataset / "SAM3DPlans.json")


def model_plan(planned):
    return json.loads((fold_folder(planned).parent / "plans.json").read_text())


def voxels_of(configuration):
    z, y, x = configuration["patch_size"]
    return configuration["batch_size"] * z * y * x


def test_a_step_that_fits_is_left_as_planned(planned, small_card):
    train(planned, epochs=1)
    assert model_plan(planned)["configurations"] == dataset_plan(planned)["configurations"]
    log = "".join(path.read_text() for path in fold_folder(planned).glob("training_log_*.txt"))
    assert f"planned {planned_memory(dataset_plan(planned), '3d_fullres')}" in log


def test_a_step_that_does_not_fit_is_made_smaller_and_stays_so(planned, small_card, caplog):
    before = dataset_plan(planned)["configurations"]["3d_fullres"]
    small_card["voxels"] = voxels_of(before) / 4
    with caplog.at_level(logging.INFO):
        output = train(planned, epochs=1)
    (warning,) = [r.message for r in caplog.records if r.levelno == logging.WARNING and "does not fit" in r.message]
    after = model_plan(planned)["configurations"]["3d_fullres"]
    assert step_of(after)["checkpointing"]
    assert 0 < voxels_of(after) / 3 <= small_card["voxels"]
    assert after["architecture"]["arch_kwargs"]["patch_size"] == after["patch_size"]
    assert f"crop {'x'.join(map(str, after['patch_size']))}, batch 2, activations recomputed" in warning
    assert dataset_plan(planned)["configurations"]["3d_fullres"] == before
    (decision,) = [d for d in model_plan(planned)["sam3d"]["decisions"] if d["name"] == "first step (3d_fullres)"]
    assert "did not fit cpu" in decision["reason"]
    assert load_model(output.parent).configuration.patch_size == after["patch_size"]
    caplog.clear()
    small_card["voxels"] = 10**9
    with caplog.at_level(logging.INFO):
        train(planned, epochs=2, continue_training=True)
    assert step_of(model_plan(planned)["configurations"]["3d_fullres"]) == step_of(after)
    assert any("As in earlier folds of this model: crop" in message for message in caplog.messages)


def test_a_fold_does_not_make_another_model_of_those_trained_before(planned, small_card):
    train(planned, epochs=1)
    dataset, folders = planned
    before = model_plan(planned)
    step = before["configurations"]["3d_fullres"]
    small_card["voxels"] = voxels_of(step) / 4
    with pytest.raises(
        PlanError, match=r"not even crop .*another model than that of fold\(s\) 0; train on a card like"
    ):
        train_fold(dataset, 1, folders, epochs=1, iterations_per_epoch=1, device="cpu", validate=False)
    assert model_plan(planned) == before
    small_card["voxels"] = voxels_of(step) / 2.5
    train_fold(dataset, 1, folders, epochs=1, iterations_per_epoch=1, device="cpu", validate=False)
    assert step_of(model_plan(planned)["configurations"]["3d_fullres"])["checkpointing"]
    assert len(load_model(fold_folder(planned).parent).weights) == 2


def test_the_measured_step_waits_for_no_other_process(planned, small_card, monkeypatch, tmp_path):
    """Memory may end in one process alone, and the others would wait for its gradients."""
    dataset, folders = planned
    exchanges = []
    monkeypatch.setattr(first_step, "fit_first_step", lambda trainer: None)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        plans, dataset_json = read_plan(dataset, folders, "SAM3DPlans")
        plans["configurations"]["3d_fullres"]["batch_dice"] = True
        plans["continue_training"] = False
        trainer = trainer_module.nnUNetTrainerSAM3D(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
        trainer.initialize()
        hook = lambda _, bucket: (exchanges.append("gradients"), done(bucket.buffer()))[1]  # noqa: E731
        trainer.network.register_comm_hook(None, hook)
        gather = AllGatherGrad.forward
        monkeypatch.setattr(AllGatherGrad, "forward", lambda *of: (exchanges.append("Dice"), gather(*of))[1])
        batch = first_step.make_batch(trainer)
        first_step._peak_of_step(trainer)
        assert exchanges == []
        trainer.accumulate_gradients(batch)
        assert {"gradients", "Dice"} == set(exchanges)
    finally:
        torch.distributed.destroy_process_group()


def done(tensor):
    future = torch.futures.Future()
    future.set_result(tensor)
    return future


def test_where_nothing_fits_one_sentence_says_what_to_do(planned, small_card):
    small_card["voxels"] = 0
    with pytest.raises(PlanError, match=r"does not fit cpu, not even crop .*, batch 2, activations recomputed; close"):
        train(planned, epochs=1)


def test_other_errors_are_not_taken_for_exhausted_memory(planned, small_card, monkeypatch):
    def break_down(_network, _x):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(SAM3D, "features", break_down)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(planned, epochs=1)


def test_the_measurement_leaves_weights_and_randomness_alone(planned, small_card, monkeypatch):
    def final_weights(is_measured):
        monkeypatch.setattr(trainer_module, "is_measured", lambda device: is_measured)
        torch.manual_seed(5)
        return torch.load(train(planned, epochs=1) / "checkpoint_final.pth", weights_only=True)["network_weights"]

    def seed_loaders():
        import random

        import numpy as np

        random.seed(7)
        np.random.seed(7)

    seed_loaders()
    with_it = final_weights(True)
    seed_loaders()
    without = final_weights(False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_a_configuration_that_inherits_shrinks_as_the_one_it_inherits_from(planned):
    dataset, folders = planned
    plans = dataset_plan(planned)
    fingerprint = json.loads((folders.preprocessed / dataset / "dataset_fingerprint.json").read_text())
    plans["configurations"]["larger_batch"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    assert step_of(configuration_of(plans, "larger_batch"))["batch_size"] == 4
    batches = [step["batch_size"] for step in smaller_steps(plans, "larger_batch", fingerprint)]
    assert batches[:3] == [3, 2, 2]


def test_an_inheriting_configuration_is_measured_and_made_smaller(planned, small_card):
    dataset, folders = planned
    file = folders.preprocessed / dataset / "SAM3DPlans.json"
    before, plans = file.read_text(), dataset_plan(planned)
    plans["configurations"]["larger_batch"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    file.write_text(json.dumps(plans))
    small_card["voxels"] = voxels_of(plans["configurations"]["3d_fullres"])
    try:
        output = train(planned, epochs=1, configuration="larger_batch")
    finally:
        file.write_text(before)
    after = json.loads((output.parent / "plans.json").read_text())
    shutil.rmtree(output.parent)
    assert step_of(configuration_of(after, "larger_batch"))["batch_size"] == 2


def test_steps_shrink_by_the_planners_rules(planned):
    dataset, folders = planned
    plans = dataset_plan(planned)
    fingerprint = json.loads((folders.preprocessed / dataset / "dataset_fingerprint.json").read_text())
    plans["configurations"]["3d_fullres"]["batch_size"] = 4
    steps = [step_of(step) for step in smaller_steps(plans, "3d_fullres", fingerprint)]
    assert [step["batch_size"] for step in steps[:2]] == [3, 2]
    assert not steps[1]["checkpointing"] and steps[2]["checkpointing"]
    assert steps[2]["patch_size"] == steps[1]["patch_size"]
    stride = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["token_stride"]
    voxels = [torch.tensor(step["patch_size"]).prod().item() for step in steps[2:]]
    assert voxels == sorted(voxels, reverse=True) and len(set(voxels)) == len(voxels)
    assert steps[-1]["patch_size"] == stride
    configuration = plans["configurations"]["3d_fullres"]
    assert step_of(with_step(configuration, steps[-1])) == steps[-1]
