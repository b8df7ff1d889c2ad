"""A plan after that of a trained model."""

import json

import pytest
from commands import train_fold
from phantoms import LABELS, make_raw_dataset

from sam3dnet.cli import plan_and_preprocess
from sam3dnet.errors import PlanError
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.likeness import likeness_of
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.settings.planning import PlanningSettings

FIRST, SECOND = "Dataset978_First", "Dataset979_Second"
NETWORK = ("spacing", "patch_size", "architecture", "normalization_schemes", "use_mask_for_norm")


@pytest.fixture(scope="module")
def planned():
    """A plan of one dataset, another dataset of other spacing, shape, channels and classes, and what plans."""
    folders = activate_folders(None)
    make_raw_dataset(folders.raw / FIRST)
    make_raw_dataset(
        folders.raw / SECOND,
        channel_names=("MR", "CT"),
        labels={**LABELS, "more": 3},
        shape=(20, 24, 18),
        spacing_mm=(1.0, 2.0, 1.5),
        seed=4,
    )

    def plan(name, **options):
        file = plan_dataset(
            *(name, folders),
            **{"cost": training_cost, "seconds": training_seconds, "device": "cpu", "progress": False, **options},
        )
        return json.loads(file.read_text())

    return folders, plan, plan(FIRST, encoder="tiny")


def test_spacing_crop_and_network_are_the_models(planned):
    folders, plan, first = planned
    like = likeness_of(first, json.loads((folders.raw / FIRST / "dataset.json").read_text()))
    second = plan(SECOND, like=like)
    theirs, ours = (one["configurations"]["3d_fullres"] for one in (first, second))
    assert {key: ours[key] for key in NETWORK[:3]} == {key: theirs[key] for key in NETWORK[:3]}
    assert list(second["configurations"]) == ["3d_fullres"]
    assert second["transpose_forward"] == first["transpose_forward"]
    assert ours["normalization_schemes"] == ["ZScoreNormalization", *theirs["normalization_schemes"]]
    assert ours["use_mask_for_norm"][1:] == theirs["use_mask_for_norm"]
    known, found = (one["foreground_intensity_properties_per_channel"] for one in (first, second))
    assert found["1"] == known["0"] and found["0"] != known["0"]
    reasons = {one["name"]: one["reason"] for one in second["sam3d"]["decisions"]}
    assert all(reasons[name] == f"as in the model of {FIRST}" for name in ("spacing", "encoder", "patch_size"))
    own = plan(SECOND, encoder="tiny")["configurations"]["3d_fullres"]
    assert own["spacing"] != theirs["spacing"]


def test_the_plan_says_how_the_models_network_was_built(planned):
    folders, plan, first = planned
    said = json.loads((folders.raw / FIRST / "dataset.json").read_text())
    other = json.loads(json.dumps(first))
    other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {"prompts": False, "tuning": "lora"}
    second = plan(SECOND, like=likeness_of(other, said))
    assert second["plans_name"] == "SAM3DPlans_lora"
    told = {one["name"]: (one["value"], one["reason"]) for one in second["sam3d"]["decisions"]}
    assert told["prompts"] == (False, f"as in the model of {FIRST}")
    assert told["tuning"] == ("lora", f"as in the model of {FIRST}")
    kwargs = second["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["prompts"] is False and kwargs["tuning"] == "lora"


def test_the_text_of_a_model_is_taken(planned):
    _, _, first = planned
    text = [[[0.0]]]
    other = json.loads(json.dumps(first))
    architecture = other["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "sam3dnet.network.published.refsam3d.RefSAM3D"
    architecture["arch_kwargs"] |= {"text": text}
    other["sam3d"] |= {"text_model": "ViT-B-16", "decisions": [{"name": "text", "value": ["perform it"]}]}
    choice = likeness_of(other, {"channel_names": {"0": "CT"}}).choice
    assert choice.name == "refsam3d" and choice.text.phrases == ("perform it",)
    assert choice.text.model == "ViT-B-16" and choice.text.embeddings == text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("no_prompts", True),
        ("tuning", "lora"),
        ("fidelity", "as-published"),
        ("clip_weights", "openai"),
        ("phrases", "phrases.json"),
        ("sam_checkpoint", "medsam"),
        ("network", "package:Class"),
    ],
)
def test_what_the_model_decides_cannot_be_asked_for(option, value):
    PlanningSettings(datasets=[1], like="978")
    with pytest.raises(
        PlanError, match=f"takes network and spacing from a model; leave out --{option.replace('_', '-')}"
    ):
        PlanningSettings(datasets=[1], like="978", **{option: value})


def test_a_plan_of_another_network_is_refused(planned):
    _, _, first = planned
    said = {"channel_names": {"0": "CT"}}
    other = json.loads(json.dumps(first))
    other["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "package.ResUNet"
    with pytest.raises(
        PlanError, match=r"the model of Dataset978_First: its network, package.ResUNet, is none of sam3"
    ):
        likeness_of(other, said)
    with pytest.raises(PlanError, match=r"its plan has no 3d_fullres"):
        likeness_of({**first, "configurations": {}}, said)


@pytest.mark.filterwarnings("ignore")
def test_a_training_from_the_model_then_fits_nothing(planned, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folders, plan, _ = planned
    plan(FIRST, encoder="tiny")
    plan_and_preprocess.main(["-d", FIRST, "--encoder", "tiny", "--device", "cpu", "--num-processes", "0"])
    short = {"epochs": 1, "iterations_per_epoch": 1, "device": "cpu", "validate": False}
    first = train_fold(FIRST, 0, folders, **short)
    line = ["-d", SECOND, "--like", FIRST, "--device", "cpu", "--num-processes", "0"]
    assert plan_and_preprocess.main(line) == 0
    second = train_fold(SECOND, 0, folders, from_model=FIRST, **short)
    log = next(second.glob("training_log_*.txt")).read_text()
    assert f"starting from {first / 'checkpoint_final.pth'}" in log
    assert "0 fitted, 0 start anew" in log and "new: more" in log and "new: MR" in log
    capsys.readouterr()
    assert plan_and_preprocess.main([*line, "--encoder", "small"]) == 2
    assert "--like takes network and spacing from a model; leave out --encoder" in capsys.readouterr().err
    assert plan_and_preprocess.main([*line, "--method", "3dsam-adapter"]) == 2
    assert "is a model of method sam3d, asked for is 3dsam-adapter" in capsys.readouterr().err
