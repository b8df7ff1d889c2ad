"""A cascade: the first stage leaves label maps for the second, which is trained, validated and predicted with them."""

import json
import shutil
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import torch
from cascades import CASCADE, LOWRES, plan_cascade
from commands import predict_folder, study_clicks, train_fold, validate_fold, write_report
from tiny_models import labels_of

import sam3dnet
from sam3dnet.cli.info import info
from sam3dnet.inference.model_folders import find_model
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.training import asked
from sam3dnet.training.next_stage import FOLDER
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "lesion": [2]}, "regions_class_order": [1, 2]}
IGNORE = {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}
TRANSPOSED = {"shape": (20, 18, 12), "spacing_mm": (0.7, 1.1, 3.0)}
DATASETS = {
    "Dataset941_Labels": IGNORE | {"channel_names": ("CT", "MR")},
    "Dataset942_Regions": REGIONS | TRANSPOSED,
}


@pytest.fixture(scope="module", autouse=True)
def threads_in_place_of_processes():
    """nnU-Net scores, and preprocesses for prediction, in new processes, each of which takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield


def train(name, folders, configuration, fold=0, iterations=12, **options):
    torch.manual_seed(0)
    options = {"epochs": 1, "iterations_per_epoch": iterations, "device": "cpu", **options}
    return train_fold(name, fold, folders, configuration=configuration, **options)


@pytest.fixture(scope="module", params=DATASETS)
def cascade(request, nnunet_root, threads_in_place_of_processes):
    """Train the first stage on all cases, and fold 0 of the second; give the dataset, the folders, and both folds."""
    name, folders = request.param, activate_folders(None)
    plan_cascade(folders, name, num_cases=3, num_test=1, **DATASETS[name])
    preprocess_dataset(name, folders, num_processes=0, progress=False)
    first = train(name, folders, LOWRES, "all", 40)
    return name, folders, first, train(name, folders, CASCADE, iterations=30)


def maps_of(first):
    return {file.stem: blosc2.open(str(file))[:] for file in sorted((first.parent / FOLDER / CASCADE).iterdir())}


def trainer_of(name, folders, configuration, fold, output):
    plans, dataset_json = asked.read_plan(name, folders, "SAM3DPlans")
    plans["continue_training"] = True
    trainer = nnUNetTrainerSAM3D(plans, configuration, fold, dataset_json, torch.device("cpu"))
    trainer.load_checkpoint(str(output / "checkpoint_final.pth"))
    return trainer


def test_the_first_stage_leaves_the_label_maps_of_nnunets_trainer(cascade):
    name, folders, first, _ = cascade
    ours = maps_of(first)
    assert ours.keys() == {"case_0", "case_1", "case_2"}
    shutil.rmtree(first.parent / FOLDER)
    trainer = trainer_of(name, folders, LOWRES, "all", first)
    super(nnUNetTrainerSAM3D, trainer).perform_actual_validation()
    stock = maps_of(first)
    assert ours.keys() == stock.keys()
    for case, labels in ours.items():
        assert (labels.shape, labels.dtype) == (stock[case].shape, stock[case].dtype)
        assert 0.02 < np.mean(labels > 0) < 0.95
        assert np.mean(labels == stock[case]) > 0.995
    shutil.rmtree(first.parent / FOLDER)
    trainer.perform_actual_validation()
    assert all(np.array_equal(labels, ours[case]) for case, labels in maps_of(first).items())


def test_fold_all_leaves_the_label_maps_of_folds_that_had_not_seen_a_case(cascade, capsys):
    name, folders, first, _ = cascade
    ours, maps = maps_of(first), first.parent / FOLDER / CASCADE
    of_a_fold = np.zeros_like(ours["case_0"])
    for case, labels in (("case_0", of_a_fold), ("case_1", ours["case_1"][..., :-1].copy())):
        (maps / f"{case}.b2nd").unlink()
        blosc2.asarray(labels, urlpath=str(maps / f"{case}.b2nd"))
    (maps / "case_2.b2nd").unlink()
    of_a_fold_too = first.parent / "fold_0" / "checkpoint_final.pth"
    of_a_fold_too.parent.mkdir()
    of_a_fold_too.touch()
    trainer_of(name, folders, LOWRES, "all", first).perform_actual_validation()
    after = maps_of(first)
    assert np.array_equal(after["case_0"], of_a_fold)
    assert all(np.array_equal(after[case], ours[case]) for case in ("case_1", "case_2"))  # of another grid, and missing
    assert "the label maps of 1 cases stay as they are" in capsys.readouterr().out
    shutil.rmtree(of_a_fold_too.parent)
    trainer_of(name, folders, LOWRES, "all", first).perform_actual_validation()
    assert np.array_equal(maps_of(first)["case_0"], ours["case_0"])  # there are no others to be left


def test_the_second_stage_has_a_channel_for_each_label(cascade):
    name, folders, _, second = cascade
    trainer = trainer_of(name, folders, CASCADE, 0, second)
    images = len(trainer.dataset_json["channel_names"])
    assert trainer.num_input_channels == images + 2
    training, _ = trainer.get_dataloaders()
    batch = next(training)
    assert batch["data"].shape[1] == images + 2
    assert batch["questions"]
    assert set(np.unique(batch["data"][:, images:])) == {0.0, 1.0}


def test_training_starts_from_what_the_encoder_makes_of_the_image(cascade):
    name, folders, _, _ = cascade
    plans, dataset_json = asked.read_plan(name, folders, "SAM3DPlans")
    plans["continue_training"] = False
    trainer = nnUNetTrainerSAM3D(plans, CASCADE, 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    images = len(dataset_json["channel_names"])
    mix = trainer.network.image_encoder.patch_embed.channel_mix.detach()
    assert torch.equal(mix[:, :images], torch.full((3, images), 1 / images))
    assert not mix[:, images:].any()


def test_validation_of_the_second_stage_is_its_prediction_with_these_maps(cascade, tmp_path):
    """On another grid the maps lose a little, so nearly."""
    name, folders, _, second = cascade
    validated = {file.name: file.read_bytes() for file in (second / "validation").glob("*.nii.gz")}
    (case,) = json.loads((folders.preprocessed / name / "splits_final.json").read_text())[0]["val"]
    assert validated.keys() == {f"{case}.nii.gz"}
    assert (second / "validation" / "summary.json").is_file()
    validate_fold(name, 0, folders, configuration=CASCADE, device="cpu")
    assert {file.name: file.read_bytes() for file in (second / "validation").glob("*.nii.gz")} == validated
    (tmp_path / "images").mkdir()
    for file in (folders.raw / name / "imagesTr").glob(f"{case}_*"):
        shutil.copy(file, tmp_path / "images")
    predict_folder(tmp_path / "images", tmp_path / "out", second.parent, device="cpu")
    predicted, from_maps = (
        labels_of(folder / f"{case}.nii.gz") for folder in (tmp_path / "out", second / "validation")
    )
    assert np.mean(predicted == from_maps) > 0.97


def predict_with_nnunets_command(images, output, previous, name):
    """Run what nnUNetv2_predict runs, but without new processes."""
    output.mkdir()
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(find_second(name)), (0,))
    predictor.predict_from_files_sequential(str(images), str(output), False, True, str(previous))


def find_second(name):
    return find_model(activate_folders(None).results, name, configuration=CASCADE)


def test_prediction_is_that_of_nnunet_with_the_same_first_stage(cascade, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", info(ext_trainer=True)[0])
    name, folders, first, second = cascade
    images = folders.raw / name / "imagesTs"
    predict_folder(images, tmp_path / "first", first.parent, device="cpu", no_postprocessing=True)
    predict_with_nnunets_command(images, tmp_path / "stock", tmp_path / "first", name)
    report = predict_folder(images, tmp_path / "ours", second.parent, device="cpu", save_probabilities=True)
    assert report.written == ["test_0"]
    stored = tmp_path / "stored"
    options = {"prev_stage_predictions": tmp_path / "first", "no_postprocessing": True}
    predict_folder(images, stored, second.parent, device="cpu", **options)
    stock, ours = (labels_of(tmp_path / folder / "test_0.nii.gz") for folder in ("stock", "ours"))
    probabilities_KZYX = np.load(tmp_path / "ours" / "test_0.npz")["probabilities"].astype(np.float32)
    *_, second_best, best = np.sort(probabilities_KZYX, 0)
    is_regions = "regions_class_order" in DATASETS[name]
    margin = np.abs(probabilities_KZYX - 0.5).min(0) if is_regions else best - second_best
    assert margin.max() > 0.1
    undecided = margin < 0.01  # nnU-Net adds up the logits of windows in half precision, we do not
    assert undecided.mean() < 0.2
    assert np.array_equal(ours[~undecided], stock[~undecided])
    assert np.array_equal(labels_of(stored / "test_0.nii.gz"), ours)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(tmp_path / "first" / "test_0.nii.gz", empty)
    _blank(empty / "test_0.nii.gz")
    predict_folder(
        images, tmp_path / "blank", second.parent, device="cpu", **options | {"prev_stage_predictions": empty}
    )
    assert not np.array_equal(labels_of(tmp_path / "blank" / "test_0.nii.gz"), ours)  # so the first stage matters


def _blank(file):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.ReadImage(str(file)) * 0, str(file))


def test_sessions_and_prompts_files_answer_in_the_second_stage(cascade, tmp_path):
    name, folders, _, second = cascade
    model = sam3dnet.load_model(name, [0], "cpu", configuration=CASCADE, mirror=False)
    channels = len(model.loaded.dataset_json["channel_names"])
    image = [folders.raw / name / "imagesTs" / f"test_0_{channel:04d}.nii.gz" for channel in range(channels)]
    automatic = model.segment(image)
    session = model.session()
    assert np.array_equal(session.set_image(image), automatic)
    class_name = session.class_names[-1]
    mask = session.mask(class_name)
    z, y, x = np.argwhere(~mask)[len(mask) // 2].tolist()
    clicked = session.click((x, y, z), class_name=class_name)
    assert clicked[z, y, x] and not mask[z, y, x]
    points = [{"at": [x, y, z], "positive": True}]
    stated = {"format": "sam3dnet-prompts/1", "space": "voxel", "cases": {"test_0": {class_name: {"points": points}}}}
    (tmp_path / "prompts.json").write_text(json.dumps(stated))
    images = folders.raw / name / "imagesTs"
    options = {"prompts": tmp_path / "prompts.json", "no_mirroring": True, "device": "cpu"}
    predict_folder(images, tmp_path / "out", second.parent, **options)
    assert np.array_equal(labels_of(tmp_path / "out" / "test_0.nii.gz"), session.label_map())


def test_clicks_are_studied_and_folds_reported_in_the_second_stage(cascade):
    name, folders, _, second = cascade
    study = study_clicks([0, 1], folders, dataset=name, fold=0, configuration=CASCADE, cases=1, device="cpu")
    assert study
    assert write_report(folders, dataset=name, fold=0, configuration=CASCADE, num_processes=0).parent == second
    lines = info(root=folders.results.parent)
    assert any("3d_cascade_fullres" in line and "folds 0, after folds all of 3d_lowres" in line for line in lines)
