"""The validation of a fold is the prediction that users get, scored by nnU-Net; it can be repeated alone."""

import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import evaluate_folder, predict_folder, train_fold, validate_fold
from phantoms import make_raw_dataset
from tiny_models import labels_of
from torch.utils._python_dispatch import TorchDispatchMode

import sam3dnet
from sam3dnet.errors import CheckpointError, DatasetError, FailedCasesError, PlanError
from sam3dnet.evaluation.crossvalidation import lacks_probabilities
from sam3dnet.evaluation.find_best import find_best
from sam3dnet.inference.models import choose_checkpoint, load_model
from sam3dnet.inference.postprocessing import read_postprocessing
from sam3dnet.inference.writing import UNFINISHED
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.objects import largest_of
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing import records
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.settings.find_best import FindBestSettings
from sam3dnet.training import asked, trainer, validation
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "lesion": [2]}, "regions_class_order": [1, 2]}
IGNORE = {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}
DATASETS = {"Dataset931_Labels": {}, "Dataset932_Regions": REGIONS, "Dataset933_Ignore": IGNORE}


@pytest.fixture(scope="module", autouse=True)
def threads_in_place_of_processes():
    """nnU-Net scores in pools of new processes, each of which takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield


def prepare(name):
    """Plan windows smaller than the images and voxels of another size, and preprocess."""
    folders = activate_folders(None)
    plan_dataset(
        name, folders, cost=training_cost, seconds=training_seconds, encoder="tiny", device="cpu", progress=False
    )
    plans_file = folders.preprocessed / name / "SAM3DPlans.json"
    plans = json.loads(plans_file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [8, 16, 12], "spacing": [2.4, 0.8, 1.0]}
    configuration["architecture"]["arch_kwargs"]["patch_size"] = [8, 16, 12]
    plans_file.write_text(json.dumps(plans))
    preprocess_dataset(name, folders, num_processes=0, progress=False)
    return folders


def train(name, folders, fold=0, **options):
    torch.manual_seed(0)
    return train_fold(name, fold, folders, epochs=1, iterations_per_epoch=3, device="cpu", **options)


@pytest.fixture(scope="module")
def trained_once(nnunet_root, threads_in_place_of_processes):
    """Train and validate fold 0 of a dataset, once; give its raw folder, nnU-Net's folders, and that of the fold."""

    @cache
    def trained_fold(name):
        raw = make_raw_dataset(nnunet_root / "nnUNet_raw" / name, num_cases=5, **DATASETS[name])
        folders = prepare(name)
        return raw, folders, train(name, folders)

    return trained_fold


@pytest.fixture
def fold(trained_once):
    """The name of a dataset, nnU-Net's folders, and that of its trained fold, which is put back as it was."""
    raw, folders, output = trained_once("Dataset931_Labels")
    kept = output.with_name("kept")
    shutil.copytree(output, kept)
    yield raw.name, folders, output
    shutil.rmtree(output)
    kept.rename(output)


def validation_cases(folders, name):
    return json.loads((folders.preprocessed / name / "splits_final.json").read_text())[0]["val"]


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.nii.gz")}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_label_maps_are_those_of_prediction_and_the_scores_those_of_evaluation(trained_once, dataset, tmp_path):
    raw, folders, output = trained_once(dataset)
    names = validation_cases(folders, raw.name)
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(raw / "imagesTr" / f"{name}_0000.nii.gz", tmp_path / "images")
    predict_folder(tmp_path / "images", tmp_path / "predicted", output.parent, device="cpu", no_postprocessing=True)
    validated = files_of(output / "validation")
    assert sorted(validated) == sorted(f"{name}.nii.gz" for name in names)
    assert validated == files_of(tmp_path / "predicted")
    assert len(np.unique(labels_of(output / "validation" / f"{names[0]}.nii.gz"))) > 1

    summary = json.loads((output / "validation" / "summary.json").read_text())
    estimates = evaluate_folder(
        output / "validation", raw / "labelsTr", only=set(names), num_processes=0, progress=False
    ).estimates()
    ours = [estimates[name]["dice"].mean for name in estimates]
    nnunets = [scores["Dice"] for scores in summary["mean"].values()]
    assert len(ours) == 2
    assert nnunets == pytest.approx(ours[: len(nnunets)], nan_ok=True)


def test_what_is_left_for_nnunet(fold):
    _, _, output = fold
    assert {file.suffix for file in (output / "validation").iterdir()} == {".gz", ".json"}  # nothing unfinished
    log = next(output.glob("training_log_*.txt")).read_text()
    assert "Validation complete" in log and "Mean Validation Dice" in log


def test_a_validation_alone_gives_the_same_and_leaves_the_training_alone(fold, monkeypatch):
    name, folders, output = fold
    before = {file.name: file.read_bytes() for file in output.glob("checkpoint_*.pth")}
    label_maps, summary = files_of(output / "validation"), (output / "validation" / "summary.json").read_text()
    (output / "validation" / "of_another_split.nii.gz").write_bytes(b"which would be scored")
    left = output / "validation" / f"{UNFINISHED}another_host-1-x"
    left.mkdir()
    os.utime(left, (0, 0))
    for method in ("initialize", "get_dataloaders", "save_checkpoint"):
        monkeypatch.setattr(nnUNetTrainerSAM3D, method, lambda *a, m=method: pytest.fail(f"{m} was called"))
    assert validate_fold(name, 0, folders, device="cpu") == output
    assert {file.name: file.read_bytes() for file in output.glob("checkpoint_*.pth")} == before
    assert files_of(output / "validation") == label_maps
    assert (output / "validation" / "summary.json").read_text() == summary
    assert not left.exists()


def test_the_checkpoint_asked_for_is_validated_and_named(fold):
    name, folders, output = fold
    checkpoint = torch.load(output / "checkpoint_final.pth", weights_only=True)
    final = files_of(output / "validation")
    changed = {key: value + 0.3 * torch.randn_like(value) for key, value in checkpoint["network_weights"].items()}
    torch.save(checkpoint | {"network_weights": changed}, output / "checkpoint_best.pth")
    validate_fold(name, 0, folders, checkpoint="best", device="cpu")
    assert files_of(output / "validation") != final
    validate_fold(name, 0, folders, checkpoint="checkpoint_final.pth", device="cpu")
    assert files_of(output / "validation") == final
    (output / "checkpoint_final.pth").unlink()
    validate_fold(name, 0, folders, device="cpu")
    newest = max(output.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime_ns)
    assert f"validating {output / 'checkpoint_best.pth'}" in newest.read_text()
    assert choose_checkpoint(output)[0] == choose_checkpoint(output, "best")[0] == output / "checkpoint_best.pth"
    with pytest.raises(CheckpointError, match=r"checkpoint_latest.pth does not exist; there is checkpoint_best.pth"):
        validate_fold(name, 0, folders, checkpoint="latest", device="cpu")


def test_what_is_one_object_in_the_labels_is_measured_told_and_done_by_prediction(trained_once):
    dataset, _, fold = trained_once("Dataset931_Labels")
    plans = json.loads((fold.parent / "plans.json").read_text())
    assert plans["sam3d"]["single_objects"]
    file = fold / "sam3d_postprocessing.json"
    measured = json.loads(file.read_text())["measured"]
    truths = [labels_of(file) > 0 for file in (dataset / "labelsTr").iterdir()]
    together = all(largest_of(truth).sum() >= 0.95 * truth.sum() for truth in truths)
    assert len(measured) == len(plans["sam3d"]["single_objects"]) + together
    chosen = read_postprocessing(fold.parent, json.loads((fold.parent / "dataset.json").read_text()), [fold])
    log = "".join(log.read_text() for log in fold.glob("training_log_*.txt"))
    assert ("post-processing: keeps the largest component of" in log) == bool(chosen.keep_largest)
    loaded = sam3dnet.load_model(fold.parent, [0], device="cpu")
    assert loaded.loaded.postprocessing == chosen


def test_what_cannot_be_validated_is_told_and_nothing_is_written(fold):
    name, folders, output = fold
    with pytest.raises(CheckpointError, match=r"fold_1: no checkpoint to validate; train the fold first"):
        validate_fold(name, 1, folders, device="cpu")
    assert not output.with_name("fold_1").exists()

    plans_file = folders.preprocessed / name / "SAM3DPlans.json"
    original = plans_file.read_text()
    plans = json.loads(original)
    configuration = plans["configurations"]["3d_fullres"]
    try:
        for change, message in (
            ({"spacing": [3.0, 1.0, 1.0]}, "preprocessed by another plan than SAM3DPlans is now; train again"),
            ({"patch_size": [16, 16]}, "is 2D; validate it with nnUNetv2_train --val"),
        ):
            plans["configurations"]["3d_fullres"] = configuration | change
            if len(change.get("patch_size", [1] * 3)) == 2:
                del plans["sam3d"]  # ours are all 3D
            plans_file.write_text(json.dumps(plans))
            with pytest.raises(PlanError, match=message):
                validate_fold(name, 0, folders, device="cpu")
    finally:
        plans_file.write_text(original)


@contextmanager
def other_folds(folders, name, **changes):
    """Have fold 0 with other parts for a while."""
    splits_file = folders.preprocessed / name / "splits_final.json"
    original = splits_file.read_text()
    splits = json.loads(original)
    splits_file.write_text(json.dumps([splits[0] | changes, *splits[1:]]))
    try:
        yield
    finally:
        splits_file.write_text(original)


def content_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.suffix != ".txt"}


def without_training_cases(file):
    """Have a checkpoint of before they were noted."""
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["sam3d"]["training_cases"]
    torch.save(checkpoint, file)


def test_weights_do_not_validate_the_cases_that_they_were_trained_on(fold):
    name, folders, output = fold
    trained = json.loads((folders.preprocessed / name / "splits_final.json").read_text())[0]["train"]
    noted = torch.load(output / "checkpoint_final.pth", weights_only=True)["sam3d"]["training_cases"]
    assert noted == sorted(trained) and len(noted) == 4
    seen, (validated,) = trained[1], validation_cases(folders, name)
    before = content_of(output / "validation") | {file.name: file.read_bytes() for file in output.glob("sam3d_*")}
    told = rf"fold_0: its weights were trained on 1 of the 2 cases .* on: {seen}; .*train the fold again, without"
    new = {"train": [one for one in trained if one != seen], "val": [validated, seen]}
    with other_folds(folders, name, **new):
        with pytest.raises(CheckpointError, match=told):
            validate_fold(name, 0, folders, device="cpu")
        for epochs in (1, 2):  # what is over is validated, too
            options = {"epochs": epochs, "iterations_per_epoch": 1, "device": "cpu", "continue_training": True}
            with pytest.raises(CheckpointError, match=told):
                train_fold(name, 0, folders, **options)
        after = content_of(output / "validation") | {file.name: file.read_bytes() for file in output.glob("sam3d_*")}
        assert after == before and "summary.json" in after
        for file in output.glob("checkpoint_*.pth"):
            without_training_cases(file)
        validate_fold(name, 0, folders, device="cpu")  # nothing is known of these
        assert len(files_of(output / "validation")) == 2
    with other_folds(folders, name, val=[validated, seen]):  # on purpose
        validate_fold(name, 0, folders, device="cpu")


def test_what_a_training_was_trained_on_before_it_was_continued_counts(fold):
    name, folders, output = fold
    trained = json.loads((folders.preprocessed / name / "splits_final.json").read_text())[0]["train"]
    options = {"epochs": 2, "iterations_per_epoch": 1, "device": "cpu", "continue_training": True, "validate": False}
    with other_folds(folders, name, train=trained[:2]):
        train_fold(name, 0, folders, **options)
    noted = torch.load(output / "checkpoint_final.pth", weights_only=True)["sam3d"]["training_cases"]
    assert noted == sorted(trained)


def test_a_fold_without_validation_cases_keeps_the_validation_that_is_there(fold):
    name, folders, output = fold
    loaded = loaded_trainer(name, folders, output)
    before = content_of(output / "validation")
    with other_folds(folders, name, val=[]):
        for validate in (lambda: validate_fold(name, 0, folders, device="cpu"), loaded.perform_actual_validation):
            with pytest.raises(DatasetError, match=r"splits_final.json: folds\[0\].val is empty; expected .*names of"):
                validate()
    assert content_of(output / "validation") == before


@contextmanager
def set_aside(files, folder):
    """Have these files not for a while."""
    folder.mkdir()
    for file in files:
        shutil.move(file, folder / file.name)
    yield
    for file in files:
        shutil.move(folder / file.name, file)


def test_only_the_cases_that_validate_have_to_be_preprocessed(fold, tmp_path):
    name, folders, output = fold
    before = files_of(output / "validation")
    stored = folders.preprocessed / name / "SAM3DPlans_3d_fullres"
    (validated,) = validation_cases(folders, name)
    trained_on = [file for file in stored.iterdir() if file.is_file() and not file.name.startswith(validated)]
    with set_aside(trained_on, tmp_path / "trained_on"):
        for train in ([], ["case_9", "of_another_machine"], None):
            with other_folds(folders, name, **({} if train is None else {"train": train})):
                validate_fold(name, 0, folders, device="cpu")
                assert files_of(output / "validation") == before
        with pytest.raises(DatasetError, match=r"4 cases of fold 0 are in the dataset, but not preprocessed"):
            train_fold(name, 0, folders, device="cpu")
        missing = next(file.stem for file in trained_on if file.suffix == ".pkl")
        with (
            other_folds(folders, name, val=[validated, missing]),
            pytest.raises(DatasetError, match=rf"1 cases of fold 0 are in the dataset, but not .*: {missing}; run"),
        ):
            validate_fold(name, 0, folders, device="cpu")
        with (
            other_folds(folders, name, val=[validated, "case_9"]),
            pytest.raises(DatasetError, match=r"val names case_9, which the dataset does not have"),
        ):
            validate_fold(name, 0, folders, device="cpu")
    assert files_of(output / "validation") == before


def test_cases_of_another_version_of_nnunet_are_validated_and_that_is_said(fold, monkeypatch, caplog):
    name, folders, output = fold
    before = files_of(output / "validation")
    for module in (records, asked):
        monkeypatch.setattr(module, "version", lambda _: "2.8.99")
    with pytest.raises(DatasetError, match=r"5 cases .* another version of nnU-Net than 2.8.99, .*; run sam3d_plan"):
        train_fold(name, 0, folders, device="cpu")
    validate_fold(name, 0, folders, device="cpu")
    assert files_of(output / "validation") == before
    (validated,) = validation_cases(folders, name)
    told = f"1 cases were preprocessed by another version of nnU-Net than 2.8.99, which is installed: {validated}; if"
    assert told in caplog.text


def test_cases_of_another_plan_are_refused_where_they_validate(fold):
    name, folders, output = fold
    before = files_of(output / "validation")
    (validated,) = validation_cases(folders, name)
    noted = folders.preprocessed / name / "SAM3DPlans_3d_fullres" / "sam3d_records"
    for file in noted.iterdir():
        kept = file.read_text()
        file.write_text(json.dumps(json.loads(kept) | {"settings": "of another plan"}))
        try:
            if file.stem == validated:
                with pytest.raises(DatasetError, match=rf"1 cases were preprocessed by another plan, .*: {validated};"):
                    validate_fold(name, 0, folders, device="cpu")
            else:
                validate_fold(name, 0, folders, device="cpu")
        finally:
            file.write_text(kept)
    assert files_of(output / "validation") == before


def test_a_case_that_fails_costs_itself_alone(fold, monkeypatch, caplog):
    name, folders, output = fold
    (folders.preprocessed / name / "SAM3DPlans_3d_fullres" / "lost.pkl").write_bytes(b"")
    try:
        with (
            other_folds(folders, name, val=[*validation_cases(folders, name), "lost"]),
            pytest.raises(FailedCasesError, match=r"1 of 2 validation cases failed, lost; the scores of the others"),
        ):
            validate_fold(name, 0, folders, device="cpu")
    finally:
        (folders.preprocessed / name / "SAM3DPlans_3d_fullres" / "lost.pkl").unlink()
    assert FailedCasesError.exit_status == 1
    assert "case lost failed: " in caplog.text
    summary = json.loads((output / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    monkeypatch.setattr(validation, "write_label_map", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(FailedCasesError, match=r"1 of 1 validation cases failed, case_\d; nothing is scored"):
        validate_fold(name, 0, folders, device="cpu")
    assert {file.name for file in (output / "validation").iterdir()} == set()


def test_of_all_cases_those_trained_on_are_scored_and_that_is_said(fold):
    name, folders, _ = fold
    folder = train(name, folders, "all")
    assert len(json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]) == 5
    assert validate_fold(name, "all", folders, device="cpu") == folder
    newest = max(folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime_ns)
    assert "the scores are of cases that it has seen" in newest.read_text()
    shutil.rmtree(folder)


def loaded_trainer(name, folders, output):
    plans, dataset_json = asked.read_plan(name, folders, "SAM3DPlans")
    plans["continue_training"] = True
    loaded = nnUNetTrainerSAM3D(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    loaded.load_checkpoint(str(output / "checkpoint_final.pth"))
    return loaded


def test_stock_nnunets_val_gives_the_same_and_its_npz_our_probabilities(fold, monkeypatch):
    name, folders, output = fold
    label_maps = files_of(output / "validation")
    loaded = loaded_trainer(name, folders, output)
    shutil.rmtree(output / "validation")
    loaded.perform_actual_validation()
    assert files_of(output / "validation") == label_maps
    assert loaded.network.decoder.deep_supervision
    loaded.perform_actual_validation(save_probabilities=True)
    assert files_of(output / "validation") == label_maps
    (case,) = validation_cases(folders, name)
    with np.load(output / "validation" / f"{case}.npz") as content:
        probabilities = content["probabilities"]
    labels = labels_of(output / "validation" / f"{case}.nii.gz")
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    assert (output / "validation" / f"{case}.pkl").is_file()
    monkeypatch.setattr(nnUNetTrainerSAM3D, "initialize", lambda *_: pytest.fail("it was trained"))
    validate_fold(name, 0, folders, device="cpu")
    assert {file.suffix for file in (output / "validation").iterdir()} == {".gz", ".json"}
    validate_fold(name, 0, folders, device="cpu", save_probabilities=True)
    with np.load(output / "validation" / f"{case}.npz") as content:
        np.testing.assert_array_equal(content["probabilities"], probabilities)
    found = find_best(FindBestSettings(name, folds=[0], num_processes=1), folders)
    summary = json.loads((output / "validation" / "summary.json").read_text())
    assert found.best.dice == pytest.approx(summary["foreground_mean"]["Dice"])
    assert lacks_probabilities(*found.best.members) == []


def test_gradients_make_room_and_the_optimizer_is_as_before(fold):
    name, folders, output = fold
    loaded = loaded_trainer(name, folders, output)
    state = {key: value.clone() for key, value in next(iter(loaded.optimizer.state.values())).items()}
    for parameter in loaded.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loaded.perform_actual_validation()
    assert all(parameter.grad is None for parameter in loaded.network.parameters())
    after = next(iter(loaded.optimizer.state.values()))
    assert all(torch.equal(after[key], value) for key, value in state.items())


def test_2d_is_left_to_nnunet(fold, monkeypatch):
    name, folders, output = fold
    loaded = loaded_trainer(name, folders, output)
    loaded.configuration_manager.configuration.update({"patch_size": [16, 16]})
    saved = []
    monkeypatch.setattr(trainer.nnUNetTrainer, "perform_actual_validation", lambda self, npz: saved.append(npz))
    loaded.perform_actual_validation()
    assert saved == [False]


class LargestTensor(TorchDispatchMode):
    """Notes the most values that any tensor of floats had that was made in between."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.numel())
        return result


def test_logits_of_a_whole_volume_are_never_held(fold, monkeypatch):
    """A long image is validated in what a window's slices take."""
    name, folders, output = fold
    loaded = loaded_trainer(name, folders, output)
    patch_size = loaded.configuration_manager.patch_size
    long = (12 * patch_size[0], *patch_size[1:])
    read = validation._Validation._read

    def read_long(self, case):
        _, properties = read(self, case)
        places = {"shape_before_cropping": long, "shape_after_cropping_and_before_resampling": long}
        spacing = dict(zip(loaded.plans_manager.transpose_forward, loaded.configuration_manager.spacing, strict=True))
        box = [[0, size] for size in long]
        return torch.randn(1, *long), properties | places | {
            "bbox_used_for_cropping": box,
            "spacing": [spacing[axis] for axis in range(3)],
        }

    monkeypatch.setattr(validation._Validation, "_read", read_long)
    monkeypatch.setattr(validation, "_score", lambda *a: None)
    written = []
    monkeypatch.setattr(validation, "write_label_map", lambda labels, *a: written.append(labels.shape))
    network = type("Pointwise", (torch.nn.Conv3d,), {})(1, 3, 1)
    monkeypatch.setattr(loaded, "set_deep_supervision_enabled", lambda enabled: None)
    with LargestTensor() as largest:
        validation.validate_trained(loaded, network)
    assert sorted(written[0]) == sorted(long)
    assert math.prod(long) <= largest.numel < 3 * math.prod(long) / 2


def test_large_label_maps_are_scored_by_fewer_processes(fold, monkeypatch):
    _, _, output = fold
    label_maps = list((output / "validation").glob("*.nii.gz"))
    (needed,) = (validation.BYTES_A_SCORED_VOXEL * labels_of(file).size for file in label_maps)
    monkeypatch.setattr(validation, "default_num_processes", 3)
    for fit, expected in ((9, 3), (2, 2), (0.5, 1)):
        monkeypatch.setattr(validation, "BYTES_OF_SCORING", int(fit * needed))
        assert validation.scoring_processes(label_maps, DatasetReader("SimpleITKIO")) == expected


def test_no_mirroring_at_all_works_from_plan_to_prediction(fold, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    name, folders, _ = fold
    plans = json.loads((folders.preprocessed / name / "SAM3DPlans.json").read_text())
    plans["plans_name"] = "Unmirrored"
    plans["sam3d"]["mirror_axes"] = []
    (folders.preprocessed / name / "Unmirrored.json").write_text(json.dumps(plans))
    folder = train(name, folders, plans="Unmirrored")
    loaded = load_model(folder.parent, [0])
    assert loaded.mirror_axes == ()
    axes = torch.load(folder / "checkpoint_final.pth", weights_only=True)["inference_allowed_mirroring_axes"]
    assert axes is None
    validated = files_of(folder / "validation")
    validate_fold(name, 0, folders, plans="Unmirrored", device="cpu")
    assert files_of(folder / "validation") == validated

    (case,) = validation_cases(folders, name)
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(folders.raw / name / "imagesTr" / f"{case}_0000.nii.gz", images)
    predict_folder(images, tmp_path / "ours", folder.parent, device="cpu", no_postprocessing=True)
    assert files_of(tmp_path / "ours") == validated
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    arguments = loaded.plans, loaded.configuration, loaded.weights, loaded.dataset_json, "", axes
    stock.manual_initialization(loaded.network, *arguments)
    stock.predict_from_files_sequential([[str(images / f"{case}_0000.nii.gz")]], [str(tmp_path / "stock")])
    ours, stocks = (labels_of(path) for path in (tmp_path / "ours" / f"{case}.nii.gz", tmp_path / "stock.nii.gz"))
    assert (ours == stocks).mean() > 0.99
    continued = train_fold(
        name,
        0,
        folders,
        plans="Unmirrored",
        epochs=2,
        iterations_per_epoch=1,
        device="cpu",
        continue_training=True,
        validate=False,
    )
    assert continued == folder


@pytest.mark.slow
def test_processes_share_the_cases_and_tell_all_that_failed(fold):
    name, folders, _ = fold
    folder = train(name, folders, "all")
    alone = files_of(folder / "validation")
    assert len(alone) == 5
    lost = folders.preprocessed / name / "SAM3DPlans_3d_fullres" / "case_3.pkl"
    kept = lost.read_bytes()
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "sam3dnet.cli.train", name, "all", "--validate-only", "--device", "cpu", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for content, status in ((kept, 0), (b"", 1)):
        shutil.rmtree(folder / "validation")
        lost.write_bytes(content)
        finished = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=600)
        lost.write_bytes(kept)
        assert finished.returncode == status, finished.stderr[-4000:]
        expected = {file: label_map for file, label_map in alone.items() if status == 0 or file != "case_3.nii.gz"}
        assert files_of(folder / "validation") == expected
        summary = json.loads((folder / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == len(expected)
    assert "case case_3 failed" in finished.stderr
    assert "1 of 5 validation cases failed, case_3" in finished.stderr
    shutil.rmtree(folder)
