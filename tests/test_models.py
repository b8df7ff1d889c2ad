"""Trained models: which is found, which checkpoint counts, and what is refused."""

import json
import logging
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from tiny_models import make_checkpoint, make_model, make_weights, truncate

from sam3dnet.errors import CheckpointError, PlanError
from sam3dnet.inference.model_folders import find_model, find_model_to_start_from, list_models
from sam3dnet.inference.models import choose_checkpoint, load_checkpoint, load_model, trained_in, training_cases


def test_find_model_takes_the_only_one_or_the_one_asked_for(tmp_path):
    first = make_model(tmp_path, dataset="Dataset901_Tiny")
    assert find_model(tmp_path) == first
    second = make_model(tmp_path, dataset="Dataset902_Other", folds=("all",))
    assert (
        find_model(tmp_path, 902) == find_model(tmp_path, "902") == find_model(tmp_path, "Dataset902_Other") == second
    )
    assert [model.folds for model in list_models(tmp_path)] == [(0,), ("all",)]
    with pytest.raises(CheckpointError, match=r"Dataset901_Tiny/.* \(folds 0\), Dataset902_Other/.*choose a dataset"):
        find_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"for dataset 903; trained are Dataset901_Tiny"):
        find_model(tmp_path, 903)
    with pytest.raises(CheckpointError, match="there is none; train one first: sam3d_train"):
        find_model(tmp_path / "nothing")


def test_a_model_to_start_from_is_that_of_the_same_plans_or_ours_or_the_only_one(tmp_path):
    def find(dataset="902", plans_name="Mine", configuration="3d_fullres"):
        return find_model_to_start_from(tmp_path, dataset, configuration, plans_name)

    def make(plans_name, configuration="3d_fullres"):
        made = make_model(tmp_path / "made", dataset="Dataset902_Other")
        target = tmp_path / "Dataset902_Other" / f"nnUNetTrainerSAM3D__{plans_name}__{configuration}"
        target.parent.mkdir(exist_ok=True)
        return made.rename(target)

    make_model(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"for dataset 902; trained are Dataset901_Tiny/\S+ \(folds 0\); train one"
    ):
        find()
    lowres = make("SAM3DPlans_refsam3d", "3d_lowres")
    assert find() == find("Dataset902_Other") == lowres
    of_text = make("SAM3DPlans_refsam3d")
    assert find() == of_text
    another = make("SAM3DPlans_unetr")
    with pytest.raises(
        CheckpointError, match=r"one model of dataset 902 to .*refsam3d__3d_fullres .*unetr.*; name one"
    ):
        find()
    assert find(plans_name="SAM3DPlans_unetr") == another
    usual = make("SAM3DPlans")
    assert find() == usual and find(plans_name="SAM3DPlans_refsam3d") == of_text
    assert find(configuration="3d_lowres") == lowres


def test_folds_default_to_the_numbered_ones_and_missing_ones_are_listed(tmp_path):
    model = make_model(tmp_path, folds=(1, 3, "all"))
    assert [file.parent.name for file in load_model(model).checkpoint_files] == ["fold_1", "fold_3"]
    assert [file.parent.name for file in load_model(model, ["all"]).checkpoint_files] == ["fold_all"]
    with pytest.raises(CheckpointError, match=r"fold\(s\) 0 4 asked for, trained are 1 3 all"):
        load_model(model, [0, 1, 4])


def test_the_first_checkpoint_that_opens_is_taken(tmp_path, caplog):
    fold = make_model(tmp_path) / "fold_0"
    for name in ("best", "latest"):
        shutil.copy(fold / "checkpoint_final.pth", fold / f"checkpoint_{name}.pth")
    assert choose_checkpoint(fold)[0].name == "checkpoint_final.pth"
    assert choose_checkpoint(fold, "checkpoint_latest.pth")[0].name == "checkpoint_latest.pth"
    truncate(fold / "checkpoint_final.pth")
    with caplog.at_level(logging.WARNING):
        assert choose_checkpoint(fold)[0].name == "checkpoint_best.pth"
    assert "checkpoint_final.pth is truncated" in caplog.text
    truncate(fold / "checkpoint_best.pth")
    (fold / "checkpoint_latest.pth").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"final.pth is truncated.*best.pth is truncated.*latest.pth is truncated"
    ):
        choose_checkpoint(fold)
    with pytest.raises(CheckpointError, match=r"checkpoint_x.pth does not exist; there is checkpoint_best.pth"):
        choose_checkpoint(fold, "checkpoint_x.pth")


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_checkpoints_with_numpy_values_of_any_numpy_open(tmp_path, module):
    logging_values = {"dice": [np.float64(0.5), np.float32(0.25), np.int64(3)], "state": np.arange(3, dtype=np.uint32)}
    torch.save(make_checkpoint(make_weights(0), logging=logging_values), tmp_path / "own.pth")
    with zipfile.ZipFile(tmp_path / "own.pth") as own, zipfile.ZipFile(tmp_path / "c.pth", "w") as other:
        for entry in own.infolist():
            other.writestr(entry, re.sub(rb"numpy\._?core\.multiarray", module, own.read(entry)))
    loaded = load_checkpoint(tmp_path / "c.pth")["logging"]
    assert loaded["dice"] == [0.5, 0.25, 3]
    assert loaded["state"].tolist() == [0, 1, 2]


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_checkpoints_that_would_run_code_are_refused(tmp_path):
    torch.save(make_checkpoint({}, extra=Evil()), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "c.pth")
    torch.save([1, 2], tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match="no network_weights"):
        load_checkpoint(tmp_path / "d.pth")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_weights_of_wrapped_networks_load(tmp_path, prefix):
    model = make_model(tmp_path)
    plain = make_weights(5)
    wrapped = {f"{prefix}{name}": value for name, value in plain.items()}
    torch.save(make_checkpoint(wrapped), model / "fold_0" / "checkpoint_final.pth")
    loaded = load_model(model)
    assert all(torch.equal(value, plain[name]) for name, value in loaded.network.state_dict().items())
    assert not loaded.network.training


def test_weights_of_another_network_are_refused(tmp_path):
    model = make_model(tmp_path, folds=(0, 1))
    torch.save(make_checkpoint(make_weights(0, num_heads=7)), model / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match=r"fold_1.*2 differ, such as last.bias: expected \(3,\), found \(7,\)"):
        load_model(model)


def test_damaged_and_foreign_plans_are_refused(tmp_path):
    model = make_model(tmp_path)
    plans = json.loads((model / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    changes = {
        "cannot be built": {
            "architecture": configuration["architecture"] | {"network_class_name": "torch.nn.Identity9"}
        },
        "a 2D configuration": {"patch_size": [8, 8]},
    }
    for message, change in changes.items():
        plans["configurations"]["3d_fullres"] = configuration | change
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(PlanError, match=message):
            load_model(model)
    truncate(model / "plans.json")
    with pytest.raises(PlanError, match=r"plans.json: cannot be read as JSON: it ends .* copy it from"):
        load_model(model)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([{}, {}], torch.float16),  # stock nnU-Net's, which say nothing
        ([{"sam3d": {"trained_in": "bfloat16"}}] * 2, torch.bfloat16),
        ([{"sam3d": {"trained_in": "float32"}}], None),
        ([{"sam3d": {}}], None),  # ours, before they said so
        ([{"sam3d": {"trained_in": "float16"}}, {"sam3d": {"trained_in": "bfloat16"}}], None),
    ],
)
def test_models_know_the_type_that_all_folds_were_trained_in(blocks, expected):
    assert trained_in(blocks) is expected


def test_models_know_the_cases_that_any_fold_was_trained_on(tmp_path):
    model = make_model(tmp_path, folds=(0, 1, 2))
    assert load_model(model).training_cases == frozenset()
    for fold, names in ((0, ["b", "a"]), (1, ["c"])):
        checkpoint = make_checkpoint(make_weights(fold), sam3d={"trained_in": "float32", "training_cases": names})
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    assert load_model(model).training_cases == {"a", "b", "c"}
    assert load_model(model, [1]).training_cases == {"c"}
    assert training_cases([{}, {"sam3d": {}}, {"sam3d": {"training_cases": []}}]) == frozenset()
