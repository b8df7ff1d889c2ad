"""The benchmark against nnU-Net: what its commands are given, and its table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sam3dnet.preprocessing.folders import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import against_nnunet

DATASET = "Dataset905_Clock"


@pytest.fixture
def settings(tmp_path):
    return against_nnunet.Settings(
        dataset=DATASET,
        raw=tmp_path,
        work=tmp_path / "work",
        minutes=1.0,
        fold="0",
        device="cpu",
        timed_cases=1,
        plan_options="",
        train_options="--from-scratch",
    )


def test_options_reach_the_commands(settings):
    command = against_nnunet.sam3d_training(settings)
    assert command[-1] == "--from-scratch"
    assert command[3:7] == [DATASET, "fold0", "--minutes", "1.0"]
    stock = against_nnunet.nnunet_training(settings, against_nnunet.MODELS["nnunet-batch2"])
    assert stock[3:] == [
        DATASET,
        "3d_fullres",
        "0",
        "-tr",
        "nnUNetTrainerClock",
        "-p",
        "nnUNetPlansBatch2",
        "-device",
        "cpu",
    ]
    variables = against_nnunet.environment(settings)
    assert variables["nnUNet_clock_minutes"] == "1.0"
    assert variables["nnUNet_results"] == str(settings.work / "nnUNet_results")


def test_nnunet_is_given_our_crop_and_batch(settings, monkeypatch):
    monkeypatch.setattr(against_nnunet.Stages, "run", lambda *_, **__: {})
    features, levels = [32, 64, 128, 256, 320], {"n_conv_per_stage": [2] * 5, "n_conv_per_stage_decoder": [2] * 4}
    arguments = {
        "n_stages": 5,
        "features_per_stage": features,
        "strides": [[1] * 3],
        "kernel_sizes": [[3] * 3],
        **levels,
    }
    architecture = {"network_class_name": "UNet", "arch_kwargs": {"conv_bias": True, **arguments}}
    stock = {
        "plans_name": "nnUNetPlans",
        "configurations": {"3d_fullres": {"patch_size": [40, 56, 40], "spacing": [1], "architecture": architecture}},
    }
    own = {"patch_size": [10, 96, 80], "batch_size": 2, "spacing": [10.0, 1.5, 1.5]}
    write_json(settings.preprocessed / "nnUNetPlans.json", stock)
    write_json(settings.preprocessed / "SAM3DPlans.json", {"configurations": {"3d_fullres": own}})
    against_nnunet.prepare_nnunet_equal(settings)
    equal = json.loads((settings.preprocessed / "nnUNetPlansEqual.json").read_text())
    assert equal["plans_name"] == "nnUNetPlansEqual"
    found = equal["configurations"]["3d_fullres"]
    given = found.pop("architecture")
    assert found == {"patch_size": [10, 96, 80], "batch_size": 2, "spacing": [1]}
    assert given["network_class_name"] == "UNet"
    fitted = given["arch_kwargs"]
    assert fitted.pop("conv_bias") is True
    stages = fitted.pop("n_stages")
    assert fitted.pop("features_per_stage") == [*features, 320][:stages]
    assert (fitted.pop("n_conv_per_stage"), fitted.pop("n_conv_per_stage_decoder")) == (
        [2] * stages,
        [2] * (stages - 1),
    )
    assert fitted["kernel_sizes"][:2] == [[1, 3, 3]] * 2 and len(fitted["kernel_sizes"]) == stages
    shrunk = np.prod(fitted["strides"], 0)
    assert len(fitted["strides"]) == stages and not np.any(np.array(own["patch_size"]) % shrunk)


def test_dataset_by_number_or_name(tmp_path):
    for name in ("Dataset501_A", "Dataset502_B"):
        (tmp_path / name).mkdir()
    assert against_nnunet.find_dataset(tmp_path, "501") == "Dataset501_A"
    assert against_nnunet.find_dataset(tmp_path, "Dataset502_B") == "Dataset502_B"
    with pytest.raises(SystemExit, match="expected one folder Dataset503_"):
        against_nnunet.find_dataset(tmp_path, "503")


def test_the_table_has_a_row_a_method():
    row = {
        "method": "nnunet",
        "measured": {
            "iterations": 12,
            "scores": {"organ": {"dice": 0.75, "nsd": 1.0}, "lesion": {"dice": 0.25, "nsd": 1.0}},
            "patch_size": [8, 12, 8],
            "batch_size": 2,
            "parameters": 1234,
            "tuned_parameters": 1000,
            "seconds_per_case": 1.5,
        },
        "train_load": {"peak_mib": 20.0, "cpu_seconds": 30.0, "wall_seconds": 40.0},
    }
    lines = against_nnunet.format_table([row]).splitlines()
    assert len(lines) == 3
    assert "| nnunet | 0.5000 | organ 0.7500, lesion 0.2500 | 12 | 8x12x8, batch 2 | 1,234 (1,000) | 1.50 |" in lines[2]
