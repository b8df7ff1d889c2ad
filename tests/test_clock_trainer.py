"""nnU-Net's trainer on the clock, and how the models of any trainer are measured."""

import json
import sys
from pathlib import Path

import pytest
import torch
from phantoms import make_raw_dataset

from sam3dnet.comparison.measure import count_iterations, measure
from sam3dnet.comparison.run import CLOCK_FOLDER
from sam3dnet.inference.models import load_model

sys.path.insert(0, str(CLOCK_FOLDER))

import nnUNetTrainerClock as clock_module
from nnUNetTrainerClock import ClockPolyLR, nnUNetTrainerClock

DATASET = "Dataset905_Clock"
PATCH = [8, 12, 8]


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def fake_clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(clock_module, "time", clock)
    return clock


def test_learning_rate_follows_the_clock(fake_clock):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = ClockPolyLR(optimizer, 0.01, budget_seconds=200)
    fake_clock.now += 77  # preparation, before the start, does not count
    schedule.start()
    rates = []
    for seconds in (0, 100, 99, 1000):
        fake_clock.now += seconds
        schedule.step(12345)  # nnU-Net's epoch number is not looked at
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert rates[1] == pytest.approx(0.01 * 0.5**0.9)
    assert rates[2] == pytest.approx(0.01 * (1 / 200) ** 0.9)
    assert 0 < rates[3] < 1e-4


def make_plans():
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": PATCH,
        "spacing": [3.0, 0.7, 1.1],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": architecture,
    }
    for role in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{role}"] = "resample_torch_fornnunet"
        configuration[f"resampling_fn_{role}_kwargs"] = {"is_seg": role == "seg", "force_separate_z": None}
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


@pytest.fixture(scope="module")
def preprocessed(nnunet_root):
    """A tiny dataset, preprocessed by stock nnU-Net in this process."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw = make_raw_dataset(nnunet_root / "nnUNet_raw" / DATASET, num_cases=5)
    folder = nnunet_root / "nnUNet_preprocessed" / DATASET
    cases = folder / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (folder / "gt_segmentations").mkdir()
    dataset_json = json.loads((raw / "dataset.json").read_text())
    manager = PlansManager(make_plans())
    configuration = manager.get_configuration("3d_fullres")
    preprocessor = configuration.preprocessor_class(verbose=False)
    for label in sorted((raw / "labelsTr").iterdir()):
        name = label.name.removesuffix(".nii.gz")
        image = str(raw / "imagesTr" / f"{name}_0000.nii.gz")
        preprocessor.run_case_save(str(cases / name), [image], str(label), manager, configuration, dataset_json)
        (folder / "gt_segmentations" / label.name).write_bytes(label.read_bytes())
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return folder


@pytest.fixture
def make_trainer(preprocessed, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def make(minutes):
        monkeypatch.setenv("nnUNet_clock_minutes", str(minutes))
        dataset_json = json.loads((preprocessed / "dataset.json").read_text())
        plans = make_plans() | {"continue_training": False}
        return nnUNetTrainerClock(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))

    return make


@pytest.mark.filterwarnings("ignore")  # those of the modules that nnU-Net imports on its search
def test_nnunet_finds_the_trainer_by_name(monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(CLOCK_FOLDER))
    found = recursive_find_trainer_class_by_name("nnUNetTrainerClock")
    assert found.__name__ == "nnUNetTrainerClock"


@pytest.mark.parametrize("seconds_per_step, expected", [(7.0, 9), (39.0, 2), (45.0, 1)])
def test_training_meets_the_budget_within_half_a_step(make_trainer, fake_clock, seconds_per_step, expected):
    trainer = make_trainer(minutes=1)
    trainer.lr_scheduler = ClockPolyLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01), 0.01, 60)
    rates = []

    def step():
        trainer.lr_scheduler.step()
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        fake_clock.now += seconds_per_step
        trainer.iterations_done += 1

    trainer.lr_scheduler.start()
    while not trainer._budget_spent():
        step()
    assert trainer.iterations_done == expected
    assert rates == sorted(rates, reverse=True)
    assert abs(trainer.lr_scheduler.elapsed_seconds - 60) <= seconds_per_step / 2


@pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training
def test_training_leaves_a_model_that_can_be_measured(make_trainer, preprocessed, tmp_path, monkeypatch):
    trainer = make_trainer(minutes=0.02)
    threads = torch.get_num_threads()
    monkeypatch.setattr(clock_module, "cores_of_job", lambda: threads + 1)
    trainer.run_training()
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    fold = Path(trainer.output_folder)
    record = json.loads((fold / "clock.json").read_text())
    assert record["iterations"] == trainer.iterations_done >= 1
    assert record["budget_seconds"] == pytest.approx(1.2)
    assert record["patch_size"] == PATCH
    assert count_iterations(fold) == record["iterations"]
    assert trainer.optimizer.param_groups[0]["lr"] < 0.01

    (fold / "validation").mkdir()
    case = json.loads((preprocessed / "splits_final.json").read_text())[0]["val"][0]
    truth = preprocessed / "gt_segmentations" / f"{case}.nii.gz"
    (fold / "validation" / truth.name).write_bytes(truth.read_bytes())
    measured = measure(fold.parent, preprocessed, preprocessed / "gt_segmentations", "0", "cpu", timed_cases=1)
    assert measured["scores"] == {name: {"dice": 1.0, "nsd": 1.0} for name in ("organ", "lesion")}
    assert measured["cases"] == 1
    assert measured["iterations"] == record["iterations"]
    network = load_model(fold.parent, [0]).network
    assert measured["parameters"] == sum(p.numel() for p in network.parameters())
    assert len(measured["seconds_of_cases"]) == 1
