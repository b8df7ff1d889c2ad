"""Every method goes through one planner, trainer and predictor: trains, saves, resumes, and stock nnU-Net predicts."""

import json

import numpy as np
import pytest
import torch
from commands import train_fold

from sam3dnet.cli.plan_and_preprocess import plan_and_preprocess
from sam3dnet.inference.model_folders import find_model
from sam3dnet.inference.models import load_model
from sam3dnet.planning.methods import MethodChoice, Text
from sam3dnet.planning.plan import load_plan
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.cases import output_names, read_dataset_json
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.training.checkpoint import load_safely

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training

WORDS = [[[0.5, -0.25, 0.1]], [[0.1, 0.9, -0.4]], [[-0.7, 0.3, 0.6]]]
CHOICES = {
    "3dsam-adapter": MethodChoice("3dsam-adapter"),
    "3dsam-adapter, as published": MethodChoice("3dsam-adapter", "as-published"),
    "refsam3d": MethodChoice("refsam3d"),
    "refsam3d with words": MethodChoice("refsam3d", text=Text(("nothing", "organ", "lesion"), "a model", WORDS)),
    "3dmedsam": MethodChoice("3dmedsam"),
    "a user's network": MethodChoice("network", network="test_peers:OneConv"),
}


@pytest.fixture(autouse=True)
def loaders_in_this_process(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def plan_and_train(dataset, choice, **options):
    folders = activate_folders(None)
    if not options.get("continue_training"):
        plan_dataset(
            dataset,
            folders,
            cost=lambda *_: 1,
            seconds=lambda *_: 0.1,
            encoder="tiny",
            choice=choice,
            progress=False,
        )
        preprocess_dataset(dataset, folders, choice.plans_name, num_processes=0, progress=False)
    settings = {"iterations_per_epoch": 1, "device": "cpu", "validate": False, "plans": choice.plans_name}
    return folders, train_fold(dataset, 0, folders, **{**settings, **options})


@pytest.mark.parametrize("name", CHOICES)
def test_every_method_trains_saves_resumes_and_predicts(name, tiny_dataset):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    choice = CHOICES[name]
    _, fold = plan_and_train(tiny_dataset, choice, epochs=1)
    assert fold.parent.name == f"nnUNetTrainerSAM3D__{choice.plans_name}__3d_fullres"
    before = load_safely(fold / "checkpoint_final.pth")["network_weights"]
    folders, _ = plan_and_train(tiny_dataset, choice, epochs=2, continue_training=True)
    after = load_safely(fold / "checkpoint_final.pth")["network_weights"]
    assert any(not torch.equal(before[key], after[key]) for key in before)
    log = (fold / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [0, 1]

    model = load_model(find_model(folders.results, tiny_dataset, plans_name=choice.plans_name))
    image = torch.randn(1, *model.configuration.patch_size)
    with torch.no_grad():
        logits = model.network(image[None])[0]
    predictor = nnUNetPredictor(use_gaussian=False, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        model.network, model.plans, model.configuration, None, model.dataset_json, "nnUNetTrainerSAM3D", None
    )
    stock = predictor.predict_sliding_window_return_logits(image)
    assert np.allclose(stock.float().numpy(), logits.numpy(), atol=1e-2)  # nnU-Net keeps logits in half precision


def test_the_command_plans_a_method_under_a_name_of_its_own(tiny_dataset):
    (file,) = plan_and_preprocess(
        datasets=[tiny_dataset],
        encoder="tiny",
        method="3dmedsam",
        tuning="lora",
        skip_verification=True,
        num_processes=0,
        device="cpu",
    )
    plan = load_plan(file)
    assert file.name == "SAM3DPlans_3dmedsam_lora.json"
    assert plan.content["sam3d"]["method"] == "3dmedsam"
    assert plan.content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["tuning"] == "lora"
    assert {d.name: d.value for d in plan.decisions}["method"] == "3dmedsam"
    assert list((file.parent / plan.configuration("3d_fullres").data_identifier).glob("*.pkl"))


def test_published_token_strides_are_planned(tiny_dataset):
    folders = activate_folders(None)
    for name, stride in (("3dsam-adapter", 4), ("refsam3d", 16)):
        file = plan_dataset(
            tiny_dataset,
            folders,
            cost=lambda *_: 1,
            seconds=lambda *_: 0.1,
            encoder="tiny",
            choice=MethodChoice(name),
            progress=False,
        )
        planned = load_plan(file).configuration("3d_fullres").network.token_stride
        median = load_plan(file).configuration("3d_fullres").median_image_size_in_voxels
        assert max(planned) == min(stride, 2 ** int(np.log2(max(median))))


def test_outputs_are_named_in_their_order(tiny_dataset):
    dataset_json = read_dataset_json(activate_folders(None).raw / tiny_dataset)
    assert output_names(dataset_json) == ["background", "organ", "lesion"]
    dataset_json["labels"] = {"background": 0, "all": [1, 2], "core": 2, "ignore": 3}
    assert output_names(dataset_json) == ["all", "core"]
