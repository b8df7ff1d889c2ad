"""Prediction of a folder: equal to stock nnU-Net, on the image's own grid, with the settings asked for."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import predict_folder
from tiny_models import LABELS, REGIONS, SHAPE_ZYX, labels_of, make_checkpoint, make_model, make_weights, write_image

from sam3dnet.errors import DatasetError
from sam3dnet.inference import automatic, case_pipeline, predictor
from sam3dnet.inference.models import load_model
from sam3dnet.preprocessing.reading import DatasetReader


def predict_with_stock_nnunet(images, output, model, folds, num_channels=1):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    loaded = load_model(model, folds)
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    arguments = loaded.plans, loaded.configuration, loaded.weights, loaded.dataset_json, "", loaded.mirror_axes
    stock.manual_initialization(loaded.network, *arguments)
    output.mkdir()
    names = sorted({path.name[:-12] for path in images.iterdir()})
    files = [[str(images / f"{name}_{c:04d}.nii.gz") for c in range(num_channels)] for name in names]
    stock.predict_from_files_sequential(files, [str(output / name) for name in names])
    return names


@pytest.mark.parametrize("resampling", ["resample_torch_fornnunet", "resample_data_or_seg_to_shape"])
@pytest.mark.parametrize("folds", [[0], [0, 1, 4]])
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_label_maps_equal_those_of_stock_nnunet(tmp_path, resampling, folds, labels):
    images = tmp_path / "images"
    for channel in range(2):
        write_image(images / f"a_{channel:04d}.nii.gz", seed=channel, shape=(17, 26, 23), spacing=(0.9, 1.1, 2.0))
        write_image(images / f"b_{channel:04d}.nii.gz", seed=channel + 2, shape=(13, 30, 19))
    model = make_model(tmp_path / "results", folds=folds, num_channels=2, labels=labels, resampling=resampling)
    names = predict_with_stock_nnunet(images, tmp_path / "stock", model, folds, num_channels=2)
    report = predict_folder(images, tmp_path / "ours", model, device="cpu")
    assert report.written == names == ["a", "b"]
    for name in names:
        stock, ours = (labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in ("stock", "ours"))
        assert len(np.unique(ours)) == 3
        assert (ours.astype(np.uint8) == stock).mean() >= 0.999  # stock wraps 700 to 188 where there are few labels


def test_geometry_of_the_output_is_that_of_the_image(predict, images, tmp_path):
    assert predict().written == ["a", "b", "c"]
    image, output = (sitk.ReadImage(str(p)) for p in (images / "a_0000.nii.gz", tmp_path / "out" / "a.nii.gz"))
    assert output.GetSize() == image.GetSize()
    assert output.GetSpacing() == image.GetSpacing()
    assert output.GetOrigin() == image.GetOrigin()
    assert output.GetDirection() == image.GetDirection()
    assert output.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_geometry_survives_in_other_formats(tmp_path, ending):
    write_image(tmp_path / "in" / f"a_0000{ending}")
    model = make_model(tmp_path / "results", ending=ending)
    assert predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu").written == ["a"]
    first, second = (
        DatasetReader("SimpleITKIO").read_grid("a", tmp_path / f"{file}{ending}")[0] for file in ("in/a_0000", "out/a")
    )
    assert first == second is not None


def test_labels_beyond_255_survive_in_the_file(tmp_path, images):
    model = make_model(tmp_path / "results", labels=REGIONS)
    predict_folder(images, tmp_path / "out", model, device="cpu")
    assert set(np.unique(labels_of(tmp_path / "out" / "a.nii.gz"))) == {0, 1, 700}


def test_output_holds_what_nnunets_tools_want_and_nothing_unfinished(predict, tmp_path):
    predict()
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert names == {"a.nii.gz", "b.nii.gz", "c.nii.gz", "dataset.json", "plans.json", "sam3d_prediction.json"}
    noted = {path.name for path in (tmp_path / "out" / "sam3d_records").iterdir()}
    assert noted == {"a.nii.gz.json", "b.nii.gz.json", "c.nii.gz.json"}


def test_mirroring_and_step_size_reach_the_windows(predict, monkeypatch):
    seen = []
    real = automatic.predict_slabs
    monkeypatch.setattr(automatic, "predict_slabs", lambda *a, **k: seen.append(k) or real(*a, **k))
    predict(no_mirroring=True, step_size=0.75)
    assert {(tuple(k["mirror_axes"]), k["step_size"]) for k in seen} == {((), 0.75)}
    seen.clear()
    predict()
    assert {(tuple(k["mirror_axes"]), k["step_size"]) for k in seen} == {((0, 2), 0.5)}


def test_folds_are_averaged_before_the_decision(tmp_path, images):
    model = make_model(tmp_path / "results", folds=(0, 1))
    weights = make_weights(0) | {"last.bias": torch.tensor([0.1, 0.0, 0.0])}
    for fold, sign in ((0, 1), (1, -1)):
        opposite = weights | {"last.weight": sign * weights["last.weight"]}
        torch.save(make_checkpoint(opposite), model / f"fold_{fold}" / "checkpoint_final.pth")
    predict_folder(images, tmp_path / "out", model, device="cpu")
    assert not labels_of(tmp_path / "out" / "a.nii.gz").any()  # what differs cancels: the first class wins
    predict_folder(images, tmp_path / "one", model, folds=[1], device="cpu")
    assert labels_of(tmp_path / "one" / "a.nii.gz").any()


def test_another_file_ending_works_throughout(tmp_path):
    write_image(tmp_path / "in" / "a_0000.nrrd")
    model = make_model(tmp_path / "results", ending=".nrrd")
    for expected in (["a"], []):
        report = predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu")
        assert report.written == expected
    assert labels_of(tmp_path / "out" / "a.nrrd").shape == SHAPE_ZYX


def test_folders_that_are_not_there_or_hold_nothing(tmp_path, model):
    with pytest.raises(DatasetError, match=r"does not exist; give a folder with images named CASE_0000.nii.gz"):
        predict_folder(tmp_path / "nowhere", tmp_path / "out", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="it holds no image"):
        predict_folder(tmp_path / "empty", tmp_path / "out", model)


def test_an_output_folder_that_cannot_be_written_stops_before_any_work(tmp_path, images, model, monkeypatch):
    (tmp_path / "file").write_text("a file, not a folder")
    monkeypatch.setattr(predictor, "load_stages", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(DatasetError, match=r"cannot be written to .* choose another one with -o"):
        predict_folder(images, tmp_path / "file" / "out", model, device="cpu")
    with pytest.raises(DatasetError, match="is the input folder"):
        predict_folder(images, images, model, device="cpu")


@pytest.mark.parametrize(("num_processes", "ahead"), [(None, 1), (0, 0), (-1, 0), (3, 3)])
def test_as_many_images_are_read_ahead_as_asked_for(predict, monkeypatch, num_processes, ahead):
    seen = []
    real = case_pipeline.read_ahead
    monkeypatch.setattr(case_pipeline, "read_ahead", lambda *arguments: seen.append(arguments[2]) or real(*arguments))
    assert predict(num_processes=num_processes).written == ["a", "b", "c"]
    assert seen == [ahead]


@pytest.mark.parametrize("step_size", [0.0, 1.5])
def test_step_sizes_out_of_range_are_refused(predict, step_size):
    with pytest.raises(DatasetError, match="above 0 and at most 1"):
        predict(step_size=step_size)


def test_an_image_in_another_orientation_than_all_of_the_training_is_told(predict, model, images, caplog):
    plans = json.loads((model / "plans.json").read_text())
    grid, _ = DatasetReader("SimpleITKIO").read_grid("a", images / "a_0000.nii.gz")
    for known, told in (([], False), (["PIL"], True), (["PIL", grid.orientation], False)):
        (model / "plans.json").write_text(json.dumps(plans | {"sam3d": {"orientations": known}}))
        caplog.clear()
        for file in (images.parent / "out").glob("*.nii.gz"):
            file.unlink()
        assert predict().written == ["a", "b", "c"]
        assert ("all images of the training were in PIL" in caplog.text) == told
