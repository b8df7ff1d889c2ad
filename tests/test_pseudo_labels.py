"""Images without labels are trained on with what a model has found in them, and a training that goes on keeps them."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import train_fold
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from phantoms import make_raw_dataset

from sam3dnet.errors import CheckpointError, DatasetError, PlanError, Sam3dError
from sam3dnet.inference.case_pipeline import PredictionReport
from sam3dnet.inference.images import Case
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.reading import reader_by_ending
from sam3dnet.preprocessing.records import MadeOtherwise
from sam3dnet.preprocessing.splits import read_splits
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training import pseudo_labels
from sam3dnet.training.asked import require_one_stage
from sam3dnet.training.checkpoint import load_safely
from sam3dnet.training.pseudo_labels import LabelledAndPseudoLabelled, _to_learn_from, with_something
from sam3dnet.training.starting import read_starting_point
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

NAME = "Dataset985_Unlabelled"
ONE_STEP = {"epochs": 1, "iterations_per_epoch": 1, "device": "cpu", "validate": False}


class Cases:
    """Says which part a case was loaded from."""

    def __init__(self, part, names):
        self.part, self.identifiers = part, names

    def load_case(self, identifier):
        return self.part, identifier


def test_a_loader_finds_each_case_where_it_lies():
    both = LabelledAndPseudoLabelled(Cases("labelled", ["b", "d"]), Cases("pseudo", ["a", "c", "d"]))
    assert both.identifiers == ["a", "b", "c", "d"]
    assert [both.load_case(name)[0] for name in both.identifiers] == ["pseudo", "labelled", "pseudo", "labelled"]
    assert both["c"] == ("pseudo", "c")


def test_images_in_which_nothing_was_found_are_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, value in (("empty", 0), ("found", 2)):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), value, np.uint8)), str(tmp_path / f"{name}.nii.gz"))
    cases = [TrainingCase(name, (), tmp_path / f"{name}.nii.gz") for name in ("empty", "found")]
    assert with_something(cases, reader_by_ending({"file_ending": ".nii.gz"})) == cases[1:]
    assert "1 unlabelled images are left out: empty: the model found nothing" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "--unlabelled needs a model that labels the images: give one with --from"),
        ({"continue_training": True}, "leave out --unlabelled"),
        ({"unlabelled": "", "from_model": "501"}, "--unlabelled names no folder"),
        ({"from_model": "501", "validate_only": True}, "leave out --from, --unlabelled"),
    ],
)
def test_what_unlabelled_images_need_is_told(options, told):
    with pytest.raises(Sam3dError, match=told):
        TrainingSettings("501", 0, **{"unlabelled": "images", **options})


def test_a_second_stage_learns_from_labelled_cases_alone():
    plans = {"configurations": {"first": {}, "second": {"previous_stage": "first"}}}
    require_one_stage(plans, "first")
    with pytest.raises(PlanError, match="second is the second stage of a cascade"):
        require_one_stage(plans, "second")


def test_what_validates_is_never_learned_from(caplog):
    found = [Case(name, ()) for name in ("p1_b", "p2_b", "p3_a", "new_seg", "p4_a")]
    known = ["p1_a", "p2_a", "p3_a"]
    kept = _to_learn_from(found, {"p5_a": "no second channel"}, ".nii.gz", known, ["p1_a"])
    assert list(kept) == ["p2_b", "p4_a"]
    for told in (
        "p1_b: another image of the patient validates",
        "p3_a: the dataset has it",
        "p5_a: no second channel",
        "new_seg: ends in _seg",
    ):
        assert told in caplog.text


@pytest.fixture(scope="module")
def trained(nnunet_root):
    """A dataset with a model of one step, and images without labels, of which four are new."""
    folders = activate_folders(nnunet_root)
    raw = folders.raw / NAME
    make_raw_dataset(raw, num_test=4)
    traced = {"cost": training_cost, "seconds": training_seconds}
    plan_dataset(NAME, folders, progress=False, encoder="tiny", device="cpu", **traced)
    preprocess_dataset(NAME, folders, num_processes=0, progress=False)
    images = folders.raw / "unlabelled"
    (raw / "imagesTs").rename(images)
    shutil.copy(raw / "imagesTr" / "case_0_0000.nii.gz", images)
    shutil.copy(raw / "imagesTr" / "case_1_0000.nii.gz", images / "renamed_0000.nii.gz")
    saved_anew = sitk.Cast(sitk.ReadImage(str(raw / "imagesTr" / "case_2_0000.nii.gz")), sitk.sitkFloat64)
    sitk.WriteImage(saved_anew, str(images / "saved_0000.nii.gz"))
    shutil.copy(images / "test_0_0000.nii.gz", images / "test_00_0000.nii.gz")
    return folders, images, train_fold(NAME, 0, folders, **ONE_STEP)


def found_by_chance(settings, only, how_many=6):
    """Stand in for the predictor: the label maps of the first images have a block of both classes, others nothing."""
    for number, name in enumerate(sorted(only)):
        image = sitk.ReadImage(str(settings.input_folder / f"{name}_0000.nii.gz"))
        labels = np.zeros(image.GetSize()[::-1], np.uint8)
        labels[2:6, 3:9, 4:12] = number < how_many
        labels[4:6, 5:8, 7:11] = 2 * (number < how_many)
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        settings.output_folder.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(made, str(settings.output_folder / f"{name}.nii.gz"))
    return PredictionReport([*only], [], {})


@pytest.mark.filterwarnings("ignore")
def test_a_training_learns_from_unlabelled_images_and_goes_on_with_them(trained, monkeypatch, caplog):
    folders, images, first = trained
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(pseudo_labels, "predict_folder", found_by_chance)
    caplog.set_level("INFO")
    drawn = []
    load = LabelledAndPseudoLabelled.load_case
    monkeypatch.setattr(
        LabelledAndPseudoLabelled, "load_case", lambda self, name: drawn.append(name) or load(self, name)
    )
    start = str(first.parent)
    steps = {**ONE_STEP, "iterations_per_epoch": 9}
    output = train_fold(NAME, 0, folders, from_model=start, unlabelled=str(images), **steps)
    further = ["test_0", "test_1", "test_2"]
    for told in (
        "1 unlabelled images are left out: case_0: the dataset has it",
        "1 unlabelled images are left out: renamed: its image is that of case_1",
        "1 unlabelled images are left out: saved: its image is that of case_2",
        "1 unlabelled images are left out: test_00: its image is that of test_0",
        "1 unlabelled images are left out: test_3: the model found nothing",
    ):
        assert told in caplog.text
    said = load_safely(output / "checkpoint_final.pth")["sam3d"]
    assert sorted(said["pseudo_labelled"]) == further
    assert {*drawn} & {*further} and {*drawn} <= {*further, *said["training_cases"]}
    assert not {*said["training_cases"]} & {*further}  # what counts as seen is what had a label
    assert "3 images without labels are trained on, too" in "".join(
        file.read_text() for file in output.glob("training_log_*.txt")
    )

    drawn.clear()
    train_fold(NAME, 0, folders, continue_training=True, **{**steps, "epochs": 2})
    assert {*drawn} & {*further}
    folder = folders.preprocessed / NAME / "pseudo_labels" / "SAM3DPlans_3d_fullres" / "fold_0"
    record = next(folder.glob("*/*/test_1.json"))
    kept = record.read_text()
    record.write_text(kept.replace('"label": "', '"label": "of another model'))
    with pytest.raises(CheckpointError, match=r"1 of the 3 unlabelled images .* or have other label maps: test_1"):
        train_fold(NAME, 0, folders, continue_training=True, **{**steps, "epochs": 3})
    train_fold(NAME, 0, folders, continue_training=True, **{**steps, "epochs": 2})  # this has ended, and needs them not
    record.write_text(kept)
    monkeypatch.setattr(pseudo_labels, "made_otherwise", lambda *_: MadeOtherwise(["test_2"], []))
    with pytest.raises(CheckpointError, match="1 unlabelled images were preprocessed by another plan"):
        train_fold(NAME, 0, folders, continue_training=True, **{**steps, "epochs": 3})
    monkeypatch.undo()
    train_fold(NAME, 0, folders, from_model=start, **ONE_STEP)  # without them
    assert load_safely(output / "checkpoint_final.pth")["sam3d"]["pseudo_labelled"] == {}


@pytest.mark.filterwarnings("ignore")
def test_a_case_that_has_a_label_by_now_is_no_pseudo_labelled_one(trained):
    folders = trained[0]
    plans = json.loads((folders.preprocessed / NAME / "SAM3DPlans.json").read_text())
    described = json.loads((folders.preprocessed / NAME / "dataset.json").read_text())
    trainer = nnUNetTrainerSAM3D(plans | {"continue_training": False}, "3d_fullres", 0, described, torch.device("cpu"))
    trainer.dataset_class = nnUNetDatasetBlosc2
    (fold, *_) = read_splits(folders.preprocessed / NAME / "splits_final.json", DatasetError, "")
    trainer.pseudo_labelled = dict.fromkeys([fold.val[0], fold.train[0]], "digest")
    training, validation = trainer.get_tr_and_val_datasets()
    assert isinstance(training, nnUNetDatasetBlosc2) and validation.identifiers == sorted(fold.val)


def test_a_model_that_was_trained_over_is_not_the_teacher(trained):
    first = trained[2]
    shutil.copy(first / "checkpoint_final.pth", first / "checkpoint_earlier.pth")
    try:
        assert read_starting_point(first.parent, 0, NAME, (), first).file.name == "checkpoint_earlier.pth"
        assert (
            read_starting_point(first.parent, 0, NAME, (), first.parent / "fold_1").file.name == "checkpoint_final.pth"
        )
        assert read_starting_point(first.parent, 0, NAME, ()).file.name == "checkpoint_final.pth"
    finally:
        (first / "checkpoint_earlier.pth").unlink()


@pytest.mark.filterwarnings("ignore")
def test_a_bad_image_fails_alone(trained, monkeypatch, caplog):
    folders, images, first = trained

    def shifted(settings, only):
        report = found_by_chance(settings, only)
        label = settings.output_folder / "test_1.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(label))[1:], str(label))  # as if the image were another one by now
        return report

    monkeypatch.setattr(pseudo_labels, "predict_folder", shifted)
    output = train_fold(NAME, 0, folders, from_model=str(first.parent), unlabelled=str(images), **ONE_STEP)
    assert sorted(load_safely(output / "checkpoint_final.pth")["sam3d"]["pseudo_labelled"]) == ["test_0", "test_2"]
    assert "1 unlabelled images are left out: test_1: " in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_label_the_images_is_told(trained, monkeypatch, tmp_path):
    folders, images, first = trained
    start = {"from_model": str(first.parent), **ONE_STEP}
    none = partial(PredictionReport, [], [])
    monkeypatch.setattr(pseudo_labels, "predict_folder", lambda _, only: none(dict.fromkeys(only, "damaged")))
    with pytest.raises(DatasetError, match=r"none of 7 images of .* could be predicted"):
        train_fold(NAME, 0, folders, unlabelled=str(images), **start)
    monkeypatch.setattr(pseudo_labels, "predict_folder", partial(found_by_chance, how_many=0))
    with pytest.raises(DatasetError, match="found nothing in any image"):
        train_fold(NAME, 0, folders, unlabelled=str(images), **start)
    with pytest.raises(DatasetError, match="does not exist"):
        train_fold(NAME, 0, folders, unlabelled=str(tmp_path / "nowhere"), **start)
    with pytest.raises(DatasetError, match="no image is left to learn from beside those of Dataset985_Unlabelled"):
        train_fold(NAME, 0, folders, unlabelled=str(folders.raw / NAME / "imagesTr"), **start)
    with pytest.raises(DatasetError, match="labelsTr: holds label maps, by its name and theirs; name that of the im"):
        train_fold(NAME, 0, folders, unlabelled=str(folders.raw / NAME / "labelsTr"), **start)
    with pytest.raises(DatasetError, match="it holds no image, but the folders imagesTr, labelsTr; name the folder of"):
        train_fold(NAME, 0, folders, unlabelled=str(folders.raw / NAME), **start)
    (tmp_path / "shouting").mkdir()
    shutil.copy(images / "test_0_0000.nii.gz", tmp_path / "shouting" / "test_0_0000.NII.GZ")
    with pytest.raises(DatasetError, match=f"no file of .*shouting can be an image of {NAME}; see above"):
        train_fold(NAME, 0, folders, unlabelled=str(tmp_path / "shouting"), **start)
    copies = tmp_path / "copies"
    copies.mkdir()
    for name, copy in (("case_0", "x"), ("case_1", "y")):
        shutil.copy(folders.raw / NAME / "imagesTr" / f"{name}_0000.nii.gz", copies / f"{copy}_0000.nii.gz")
    earlier = folders.preprocessed / NAME / "pseudo_labels" / "SAM3DPlans_3d_fullres" / "fold_0"
    earlier = earlier / "SAM3DPlans_3d_fullres" / "earlier.pkl"  # what a training goes on with
    earlier.parent.mkdir(parents=True, exist_ok=True)
    earlier.touch()
    monkeypatch.setattr(pseudo_labels, "predict_folder", found_by_chance)
    with pytest.raises(DatasetError, match=r"no image of .*copies is left to learn from"):
        train_fold(NAME, 0, folders, unlabelled=str(copies), **start)
    assert earlier.exists()
    earlier.unlink()
    other = tmp_path / "other"
    shutil.copytree(first.parent, other)
    described = json.loads((other / "dataset.json").read_text())
    names = {name if name == "background" else f"other_{name}": label for name, label in described["labels"].items()}
    (other / "dataset.json").write_text(json.dumps(described | {"labels": names}))
    with pytest.raises(DatasetError, match=r"cannot label images for \S+: the model has the classes other_"):
        train_fold(NAME, 0, folders, unlabelled=str(images), **{**start, "from_model": str(other)})
    shutil.copy(first.parent / "dataset.json", other)
    plans = json.loads((other / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "torch.nn.Identity"
    (other / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(CheckpointError, match=r"weights of torch\.nn\.Identity"):  # before anything is labelled
        train_fold(NAME, 0, folders, unlabelled=str(images), **{**start, "from_model": str(other)})
