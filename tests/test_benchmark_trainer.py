"""The benchmark: nnU-Net's trainer on the clock, the cost of a process, stages that are not repeated."""

import json
import sys
from pathlib import Path

import pytest
import torch
from phantoms import make_raw_dataset

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "clock_trainer")]

import against_nnunet  # noqa: E402
import nnUNetTrainerClock as clock_module  # noqa: E402
from measure_model import load_network, measure  # noqa: E402
from nnUNetTrainerClock import ClockPolyLR, nnUNetTrainerClock  # noqa: E402
from process_load import process_tree, run_measured  # noqa: E402

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

    monkeypatch.setenv("nnUNet_extTrainer", str(BENCHMARKS / "clock_trainer"))
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
def test_training_leaves_a_model_that_can_be_measured(make_trainer, preprocessed, tmp_path):
    trainer = make_trainer(minutes=0.02)
    trainer.run_training()
    fold = Path(trainer.output_folder)
    record = json.loads((fold / "clock.json").read_text())
    assert record["iterations"] == trainer.iterations_done >= 1
    assert record["budget_seconds"] == pytest.approx(1.2)
    assert record["patch_size"] == PATCH
    assert against_nnunet.count_iterations(fold) == record["iterations"]
    assert trainer.optimizer.param_groups[0]["lr"] < 0.01

    (fold / "validation").mkdir()
    case = json.loads((preprocessed / "splits_final.json").read_text())[0]["val"][0]
    truth = preprocessed / "gt_segmentations" / f"{case}.nii.gz"
    (fold / "validation" / truth.name).write_bytes(truth.read_bytes())
    measured = measure(fold.parent, preprocessed, "0", "cpu", timed_cases=1, threads=1)
    assert measured["dice"] == {"organ": 1.0, "lesion": 1.0}
    assert measured["mean_dice"] == 1.0
    assert measured["validation_cases"] == 1
    network, *_ = load_network(fold.parent, "0")
    assert measured["parameters"] == sum(p.numel() for p in network.parameters())
    assert len(measured["seconds_of_cases"]) == 1


CHILD = """
import subprocess, sys, time
block = bytearray(60 << 20)
block[::4096] = b"x" * len(block[::4096])
child = subprocess.Popen([sys.executable, "-c", "b = bytearray(90 << 20); b[::4096] = b'x' * len(b[::4096]);"
                          "import time; time.sleep(1.5)"])
open(sys.argv[1], "w").close()
child.wait()
sum(range(3_000_000))
"""


def test_cost_of_a_process_and_its_children(tmp_path):
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", CHILD, str(mark)]
    load = run_measured(command, tmp_path / "log", {}, mark, interval_seconds=0.05)
    assert load.returncode == 0
    assert 60 <= load.peak_mib < 120
    assert load.peak_tree_mib >= 140
    assert load.cpu_seconds > 0
    assert load.wall_seconds_until_mark is not None
    assert load.wall_seconds_until_mark < load.wall_seconds
    assert set(load.as_dict()) >= {"wall_seconds", "cpu_seconds", "peak_mib", "peak_tree_mib"}


def test_a_process_that_is_gone_has_no_tree():
    assert process_tree(2**22 + 1) == []


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


def test_a_finished_stage_is_not_repeated_unless_its_settings_change(settings, tmp_path):
    command = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"]
    for keys in ({"minutes": 1}, {"minutes": 1}, {"minutes": 2}):
        record = against_nnunet.run_stage(settings, "stage", keys, command)
    assert (tmp_path / "ran").read_text() == "xx"
    assert record["keys"] == {"minutes": 2}
    assert record["machine"]["versions"]["torch"]
    assert record["load"]["returncode"] == 0


def test_a_failed_stage_shows_the_end_of_its_log(settings):
    command = [sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"]
    with pytest.raises(against_nnunet.StageError, match=r"status 3(.|\n)*the reason"):
        against_nnunet.run_stage(settings, "stage", {}, command)
    assert against_nnunet.finished_stage(settings, "stage", {}) is None


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
        "iterations": 12,
        "measured": {
            "mean_dice": 0.5,
            "dice": {"organ": 0.75, "lesion": 0.25},
            "patch_size": PATCH,
            "batch_size": 2,
            "parameters": 1234,
            "trainable_parameters": 1000,
            "seconds_per_case": 1.5,
        },
        "train_load": {"peak_mib": 10.0, "peak_tree_mib": 20.0, "cpu_seconds": 30.0, "wall_seconds": 40.0},
    }
    lines = against_nnunet.format_table([row]).splitlines()
    assert len(lines) == 3
    assert "| nnunet | 0.5000 | organ 0.7500, lesion 0.2500 | 12 | 8x12x8, batch 2 | 1,234 (1,000) | 1.50 |" in lines[2]
