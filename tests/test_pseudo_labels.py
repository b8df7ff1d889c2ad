"""Images without labels are trained on with what a model has found in them, and a training that goes on keeps them."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from commands import train_fold
from phantoms import make_raw_dataset

from sam3dnet.errors import CheckpointError, DatasetError, PlanError, Sam3dError
from sam3dnet.inference.case_pipeline import PredictionReport
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.reading import reader_by_ending
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training import pseudo_labels
from sam3dnet.training.checkpoint import load_safely
from sam3dnet.training.pseudo_labels import LabelledAndPseudoLabelled, stored_cases, with_something
from sam3dnet.training.run import _require_one_stage

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
    assert "1 unlabelled images are left out, in which the model found nothing: empty" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "--unlabelled needs a model that labels the images: give one with --from"),
        ({"continue_training": True}, "leave out --unlabelled"),
        ({"from_model": "501", "validate_only": True}, "leave out --from, --unlabelled"),
    ],
)
def test_what_unlabelled_images_need_is_told(options, told):
    with pytest.raises(Sam3dError, match=told):
        TrainingSettings("501", 0, unlabelled="images", **options)


def test_a_second_stage_learns_from_labelled_cases_alone():
    plans = {"configurations": {"first": {}, "second": {"previous_stage": "first"}}}
    _require_one_stage(plans, "first")
    with pytest.raises(PlanError, match="second is the second stage of a cascade"):
        _require_one_stage(plans, "second")


@pytest.fixture(scope="module")
def trained(nnunet_root):
    """A dataset with a model of one step, and five images without labels, of which one has a labelled case's name."""
    folders = activate_folders(nnunet_root)
    raw = folders.raw / NAME
    make_raw_dataset(raw, num_test=4)
    plan_dataset(
        NAME, folders, progress=False, encoder="tiny", device="cpu", cost=training_cost, seconds=training_seconds
    )
    preprocess_dataset(NAME, folders, num_processes=0, progress=False)
    images = folders.raw / "unlabelled"
    (raw / "imagesTs").rename(images)
    shutil.copy(raw / "imagesTr" / "case_0_0000.nii.gz", images)
    return folders, images, train_fold(NAME, 0, folders, **ONE_STEP)


def found_by_chance(settings, only):
    """Stand in for the predictor: the label map of every image but the first has a block of both classes."""
    for number, name in enumerate(sorted(only)):
        image = sitk.ReadImage(str(settings.input_folder / f"{name}_0000.nii.gz"))
        labels = np.zeros(image.GetSize()[::-1], np.uint8)
        labels[2:6, 3:9, 4:12] = number > 0
        labels[4:6, 5:8, 7:11] = 2 * (number > 0)
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
    output = train_fold(
        NAME, 0, folders, from_model=start, unlabelled=str(images), **{**ONE_STEP, "iterations_per_epoch": 9}
    )
    further = ["test_1", "test_2", "test_3"]
    assert "1 images are left out, which the dataset has: case_0" in caplog.text and ": test_0" in caplog.text
    said = load_safely(output / "checkpoint_final.pth")["sam3d"]
    assert said["pseudo_labelled"] == further
    assert {*drawn} & {*further} and {*drawn} <= {*further, *said["training_cases"]}
    assert not {*said["training_cases"]} & {*further}  # what counts as seen is what had a label
    assert "3 images without labels are trained on, too" in "".join(
        file.read_text() for file in output.glob("training_log_*.txt")
    )

    drawn.clear()
    longer = {"epochs": 2, "iterations_per_epoch": 9, "device": "cpu", "validate": False}
    train_fold(NAME, 0, folders, continue_training=True, **longer)
    assert {*drawn} & {*further}
    shutil.rmtree(folders.preprocessed / NAME / "pseudo_labels" / "fold_0")
    with pytest.raises(CheckpointError, match=r"3 of the 3 unlabelled images .* test_1, test_2, test_3"):
        train_fold(NAME, 0, folders, continue_training=True, **{**longer, "epochs": 3})
    train_fold(NAME, 0, folders, from_model=start, **ONE_STEP)  # without them
    assert load_safely(output / "checkpoint_final.pth")["sam3d"]["pseudo_labelled"] == []


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_label_the_images_is_told(trained, monkeypatch, tmp_path):
    folders, images, first = trained
    monkeypatch.setattr(
        pseudo_labels, "predict_folder", lambda settings, only: PredictionReport([], [], {n: "" for n in only})
    )
    start = {"from_model": str(first.parent), **ONE_STEP}
    with pytest.raises(DatasetError, match="found nothing in any image"):
        train_fold(NAME, 0, folders, unlabelled=str(images), **start)
    with pytest.raises(DatasetError, match="does not exist"):
        train_fold(NAME, 0, folders, unlabelled=str(tmp_path / "nowhere"), **start)
    with pytest.raises(DatasetError, match="all images are in Dataset985_Unlabelled already"):
        train_fold(NAME, 0, folders, unlabelled=str(folders.raw / NAME / "imagesTr"), **start)
    other = tmp_path / "other"
    shutil.copytree(first.parent, other)
    described = json.loads((other / "dataset.json").read_text())
    names = {name if name == "background" else f"other_{name}": label for name, label in described["labels"].items()}
    (other / "dataset.json").write_text(json.dumps(described | {"labels": names}))
    with pytest.raises(
        DatasetError, match=r"cannot label images for Dataset985_Unlabelled: the model has the classes oth"
    ):
        train_fold(NAME, 0, folders, unlabelled=str(images), **{**start, "from_model": str(other)})


def test_the_folder_of_preprocessed_cases_is_the_folds(tmp_path):
    with pytest.raises(CheckpointError, match=r"pseudo_labels.fold_3.made: 1 of the 1 .* train again"):
        stored_cases(tmp_path, 3, "made", {"case"})
