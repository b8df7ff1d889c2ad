"""Prediction of a folder: equal to stock nnU-Net, robust against bad files, resumable."""

import gzip
import json
import logging
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from sam3dnet.errors import CheckpointError, DatasetError, PlanError
from sam3dnet.inference import predictor
from sam3dnet.inference.cases import Case, require_whole
from sam3dnet.inference.export import label_map, smallest_type
from sam3dnet.inference.models import choose_checkpoint, find_model, list_models, load_checkpoint, load_model
from sam3dnet.inference.predictor import predict_folder
from sam3dnet.preprocessing.checks_case import read_grid

SHAPE_ZYX = (5, 9, 7)
SPACING_XYZ = (0.7, 1.1, 3.0)
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 700], "core": [700]}


class TinyNetwork(nn.Module):
    """The smallest network with nnU-Net's signature."""

    def __init__(self, input_channels, num_classes, deep_supervision=False, width=4):
        super().__init__()
        self.first = nn.Conv3d(input_channels, width, 3, padding=1)
        self.last = nn.Conv3d(width, num_classes, 1)

    def forward(self, x_BCZYX):
        return self.last(torch.sin(3 * self.first(x_BCZYX)))


def make_plans(resampling, num_channels):
    function = {"resample_torch_fornnunet": {"force_separate_z": None}, "resample_data_or_seg_to_shape": {"order": 1}}
    intensities = {"mean": 0.0, "std": 1.0, "percentile_00_5": -3.0, "percentile_99_5": 3.0}
    configuration = {
        "data_identifier": "SAM3DPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [6, 8, 4],
        "spacing": [1.0, 2.5, 0.8],
        "normalization_schemes": ["ZScoreNormalization"] * num_channels,
        "use_mask_for_norm": [False] * num_channels,
        "architecture": {
            "network_class_name": f"{__name__}.TinyNetwork",
            "arch_kwargs": {"width": 5},
            "_kw_requires_import": [],
        },
    }
    for role in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{role}"] = resampling
        configuration[f"resampling_fn_{role}_kwargs"] = {"is_seg": role == "seg", **function[resampling]}
    return {
        "dataset_name": "Dataset901_Tiny",
        "plans_name": "SAM3DPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(num_channels)},
        "configurations": {"3d_fullres": configuration},
    }


def make_dataset_json(num_channels, labels, ending=".nii.gz"):
    content = {"channel_names": {str(c): "MRI" for c in range(num_channels)}, "labels": labels, "file_ending": ending}
    return content | ({"regions_class_order": [1, 700]} if labels is REGIONS else {})


def make_weights(seed, num_channels=1, num_heads=3):
    torch.manual_seed(seed)
    network = TinyNetwork(num_channels, num_heads, width=5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
        network.last.weight.mul_(10)  # logits as large as a trained network's, which half precision rounds little
        network.last.bias.zero_()
    return network.state_dict()


def make_checkpoint(weights, **extra):
    return {
        "network_weights": weights,
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainerSAM3D",
        "inference_allowed_mirroring_axes": (0, 2),
        **extra,
    }


def make_model(results, *, folds=(0,), num_channels=1, labels=LABELS, resampling="resample_torch_fornnunet", **options):
    folder = results / options.get("dataset", "Dataset901_Tiny") / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True)
        seed = 9 if fold == "all" else fold
        checkpoint = make_checkpoint(make_weights(seed, num_channels, 2 if labels is REGIONS else len(labels)))
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(make_plans(resampling, num_channels)))
    dataset_json = make_dataset_json(num_channels, labels, options.get("ending", ".nii.gz"))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def write_image(path, seed=0, shape=SHAPE_ZYX, spacing=SPACING_XYZ, direction=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values[0] = 0  # nnU-Net crops empty borders away
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin((-11.3, 20.7, 101.9))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def labels_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def images(tmp_path):
    for seed, name in enumerate("abc"):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "images"


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "results")


@pytest.fixture
def predict(tmp_path, model, images):
    def run(**options):
        folder = options.pop("model", model)
        return predict_folder(images, tmp_path / "out", folder, device="cpu", progress=False, **options)

    return run


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
    report = predict_folder(images, tmp_path / "ours", model, device="cpu", progress=False)
    assert report.written == names == ["a", "b"]
    for name in names:
        stock, ours = (labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in ("stock", "ours"))
        assert len(np.unique(ours)) == 3
        assert (ours.astype(np.uint8) == stock).mean() >= 0.999  # stock wraps 700 to 188 where there are few labels


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_label_map_channel_by_channel_equals_stock_export(tmp_path, labels):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    loaded = load_model(make_model(tmp_path, labels=labels))
    logits = torch.randn(
        loaded.labels.num_segmentation_heads, 6, 8, 10, generator=torch.Generator().manual_seed(5)
    ).half()
    properties = {
        "spacing": [3.0, 1.1, 0.7],
        "shape_after_cropping_and_before_resampling": (9, 4, 7),
        "shape_before_cropping": (11, 5, 7),
        "bbox_used_for_cropping": [[1, 10], [0, 4], [0, 7]],
    }
    ours = label_map(logits, properties, loaded.plans, loaded.configuration, loaded.labels)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, loaded.plans, loaded.configuration, loaded.labels, properties, num_threads_torch=1
    )
    assert ours.shape == (5, 11, 7)
    np.testing.assert_array_equal(ours.astype(expected.dtype), expected)
    assert ours.dtype == smallest_type(loaded.labels) == (np.uint16 if labels is REGIONS else np.uint8)


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
    assert predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu", progress=False).written == ["a"]
    first, second = (read_grid("a", tmp_path / f"{file}{ending}")[0] for file in ("in/a_0000", "out/a"))
    assert first == second is not None


def test_labels_beyond_255_survive_in_the_file(tmp_path, images):
    model = make_model(tmp_path / "results", labels=REGIONS)
    predict_folder(images, tmp_path / "out", model, device="cpu", progress=False)
    assert set(np.unique(labels_of(tmp_path / "out" / "a.nii.gz"))) == {0, 1, 700}


def test_output_holds_what_nnunets_tools_want_and_nothing_unfinished(predict, tmp_path):
    predict()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.nii.gz", "b.nii.gz", "c.nii.gz", "dataset.json", "plans.json", "sam3d_prediction.json"}


def test_mirroring_and_step_size_reach_the_windows(predict, monkeypatch):
    seen = []
    real = predictor.predict_volume
    monkeypatch.setattr(predictor, "predict_volume", lambda *a, **k: seen.append(k) or real(*a, **k))
    predict(mirror=False, step_size=0.75)
    assert {(tuple(k["mirror_axes"]), k["step_size"]) for k in seen} == {((), 0.75)}
    seen.clear()
    predict()
    assert {(tuple(k["mirror_axes"]), k["step_size"]) for k in seen} == {((0, 2), 0.5)}


def test_folds_are_averaged_before_the_decision(tmp_path, images):
    model = make_model(tmp_path / "results", folds=(0, 1))
    opposite = {name: -value for name, value in make_weights(0).items()}
    opposite |= {name: value for name, value in make_weights(0).items() if name.startswith("first")}
    torch.save(make_checkpoint(opposite), model / "fold_1" / "checkpoint_final.pth")
    predict_folder(images, tmp_path / "out", model, device="cpu", progress=False)
    assert not labels_of(tmp_path / "out" / "a.nii.gz").any()  # the logits cancel: the first class wins
    predict_folder(images, tmp_path / "one", model, folds=[1], device="cpu", progress=False)
    assert labels_of(tmp_path / "one" / "a.nii.gz").any()


def spoil_empty(images):
    (images / "b_0000.nii.gz").write_bytes(b"")


def spoil_truncated(images):
    truncate(images / "b_0000.nii.gz")


def spoil_garbage(images):
    (images / "b_0000.nii.gz").write_bytes(b"not an image at all" * 40)


def spoil_cut_inside(images):
    path = images / "b_0000.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: len(content) // 2]))


def spoil_checksum(images):
    path = images / "b_0000.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def spoil_nan(images):
    path = images / "b_0000.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(gzip.compress(content))


def spoil_extra_channel(images):
    shutil.copy(images / "b_0000.nii.gz", images / "b_0001.nii.gz")


def spoil_four_dimensions(images):
    channel = sitk.ReadImage(str(images / "b_0000.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([channel, channel]), str(images / "b_0000.nii.gz"))


def spoil_name(images):
    (images / "b_0000.nii.gz").rename(images / "b.nii.gz")


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (spoil_empty, r"b_0000.nii.gz: is empty \(0 bytes\)"),
        (spoil_truncated, r"b_0000.nii.gz: the compressed data end too early"),
        (spoil_garbage, r"b_0000.nii.gz: is not a NIfTI image"),
        (spoil_cut_inside, r"b_0000.nii.gz: is incomplete: its header promises 1612 bytes \(uncompressed\)"),
        (spoil_checksum, r"b_0000.nii.gz: the compressed data are damaged \(CRC check failed"),
        (spoil_nan, r"b_0000.nii.gz: 1 voxels are NaN or infinite"),
        (spoil_extra_channel, r"the model wants 1 channel.*there are {0000,0001}"),
        (spoil_four_dimensions, r"the files hold 2 channels, the model wants 1"),
        (spoil_name, r"b.nii.gz has no channel number; name it b_0000.nii.gz"),
    ],
)
@pytest.mark.parametrize("ahead", [None, 2])
def test_a_bad_file_costs_its_own_case_alone(predict, images, tmp_path, spoil, reason, ahead):
    import re

    spoil(images)
    report = predict(num_processes=ahead)
    assert report.written == ["a", "c"]
    assert list(report.failed) == ["b"]
    assert re.search(reason, report.failed["b"])
    assert not (tmp_path / "out" / "b.nii.gz").exists()
    assert labels_of(tmp_path / "out" / "c.nii.gz").any()


@pytest.mark.parametrize(
    "shape, spacing, reason",
    [
        ((5, 8, 7), SPACING_XYZ, "a_0001.nii.gz (5, 8, 7)"),
        (SHAPE_ZYX, (0.7, 1.1, 2.0), "a_0001.nii.gz (2.0, 1.1, 0.7)"),
    ],
)
def test_channels_on_different_grids_cost_their_case(tmp_path, shape, spacing, reason):
    for name in "ab":
        for channel in range(2):
            write_image(tmp_path / "in" / f"{name}_{channel:04d}.nii.gz", channel)
    write_image(tmp_path / "in" / "a_0001.nii.gz", 1, shape, spacing)
    model = make_model(tmp_path / "results", num_channels=2)
    report = predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu", progress=False)
    assert report.written == ["b"]
    assert reason in report.failed["a"]
    assert "resample the channels to one grid" in report.failed["a"]


def test_a_missing_channel_costs_its_case(tmp_path):
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    write_image(tmp_path / "in" / "a_0001.nii.gz")
    write_image(tmp_path / "in" / "b_0001.nii.gz")
    model = make_model(tmp_path / "results", num_channels=2)
    report = predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu", progress=False)
    assert report.written == ["a"]
    assert "there are {0001}" in report.failed["b"]


def test_a_failed_export_leaves_no_file_and_the_next_run_writes_it(predict, tmp_path, monkeypatch):
    real = predictor.write_label_map

    def fail_on_b(labels, path, *arguments):
        if path.name == "b.nii.gz":
            raise OSError("No space left on device")
        real(labels, path, *arguments)

    monkeypatch.setattr(predictor, "write_label_map", fail_on_b)
    report = predict()
    assert report.written == ["a", "c"]
    assert "No space left on device" in report.failed["b"]
    monkeypatch.undo()
    report = predict()
    assert (report.written, report.skipped, report.failed) == (["b"], ["a", "c"], {})


def test_not_finite_output_costs_its_case(tmp_path, images):
    model = make_model(tmp_path / "results")
    weights = make_weights(0) | {"last.bias": torch.tensor([0.0, float("nan"), 0.0])}
    torch.save(make_checkpoint(weights), model / "fold_0" / "checkpoint_final.pth")
    report = predict_folder(images, tmp_path / "out", model, device="cpu", progress=False)
    assert report.written == []
    assert "the network's output is not finite" in report.failed["a"]


def test_an_image_of_zeros_gets_a_label_map(predict, images, tmp_path):
    image = sitk.GetImageFromArray(np.zeros(SHAPE_ZYX, np.float32))
    sitk.WriteImage(image, str(images / "b_0000.nii.gz"))
    report = predict()
    assert report.failed == {}
    assert labels_of(tmp_path / "out" / "b.nii.gz").shape == SHAPE_ZYX


def test_a_rerun_does_only_what_is_missing_or_truncated(predict, tmp_path):
    predict()
    before = {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"}
    (tmp_path / "out" / "a.nii.gz").unlink()
    truncate(tmp_path / "out" / "b.nii.gz")
    report = predict()
    assert (report.written, report.skipped) == (["a", "b"], ["c"])
    assert {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"} == before


def test_an_output_of_another_shape_is_made_anew(predict, tmp_path):
    predict()
    write_image(tmp_path / "out" / "b.nii.gz", shape=(4, 9, 7))
    assert predict().written == ["b"]


def test_a_newer_image_is_predicted_again(predict, images, tmp_path):
    predict()
    later = (tmp_path / "out" / "b.nii.gz").stat().st_mtime + 5
    os.utime(images / "b_0000.nii.gz", (later, later))
    assert predict().written == ["b"]


def test_other_settings_make_all_anew(predict, caplog):
    predict()
    with caplog.at_level(logging.WARNING):
        assert predict(step_size=0.9).written == ["a", "b", "c"]
    assert "with other settings" in caplog.text


def test_a_label_map_of_others_is_not_overwritten(predict, images, tmp_path):
    write_image(tmp_path / "out" / "b.nii.gz")
    later = (images / "b_0000.nii.gz").stat().st_mtime + 5
    os.utime(tmp_path / "out" / "b.nii.gz", (later, later))
    before = (tmp_path / "out" / "b.nii.gz").read_bytes()
    assert predict().skipped == ["b"]
    assert (tmp_path / "out" / "b.nii.gz").read_bytes() == before


def test_what_an_interrupted_run_left_is_removed(predict, tmp_path):
    (tmp_path / "out" / ".sam3d_unfinished" / "x").mkdir(parents=True)
    (tmp_path / "out" / ".sam3d_unfinished" / "x" / "a.nii.gz").write_bytes(b"half")
    assert predict().written == ["a", "b", "c"]
    assert not (tmp_path / "out" / ".sam3d_unfinished").exists()


def test_foreign_endings_are_named(tmp_path, model):
    write_image(tmp_path / "in" / "a_0000.nrrd")
    with pytest.raises(DatasetError, match=r"the model wants images ending in .nii.gz, it holds files ending in .nrrd"):
        predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu")
    assert not (tmp_path / "out").exists()


def test_foreign_endings_beside_the_right_one_are_left_out_with_a_warning(predict, images, caplog):
    write_image(images / "z_0000.nrrd")
    (images / "notes.txt").write_text("notes")
    with caplog.at_level(logging.WARNING):
        assert predict().written == ["a", "b", "c"]
    assert "files ending in .nrrd are left out" in caplog.text


def test_another_file_ending_works_throughout(tmp_path):
    write_image(tmp_path / "in" / "a_0000.nrrd")
    model = make_model(tmp_path / "results", ending=".nrrd")
    for expected in (["a"], []):
        report = predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu", progress=False)
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
    monkeypatch.setattr(predictor, "load_model", lambda *a: pytest.fail("work was begun"))
    with pytest.raises(DatasetError, match=r"cannot be written to .* choose another one with -o"):
        predict_folder(images, tmp_path / "file" / "out", model, device="cpu")
    with pytest.raises(DatasetError, match="is the input folder"):
        predict_folder(images, images, model, device="cpu")


@pytest.mark.parametrize(("num_processes", "ahead"), [(None, 1), (0, 1), (-1, 1), (3, 3)])
def test_as_many_images_are_read_ahead_as_asked_for_and_at_least_one(predict, monkeypatch, num_processes, ahead):
    seen = []
    real = predictor._read_ahead
    monkeypatch.setattr(predictor, "_read_ahead", lambda *arguments: seen.append(arguments[2]) or real(*arguments))
    assert predict(num_processes=num_processes).written == ["a", "b", "c"]
    assert seen == [ahead]


@pytest.mark.parametrize("step_size", [0.0, 1.5])
def test_step_sizes_out_of_range_are_refused(predict, step_size):
    with pytest.raises(DatasetError, match="above 0 and at most 1"):
        predict(step_size=step_size)


def test_what_the_models_dataset_accepts_is_accepted_in_an_image(predict, images, model):
    spoil_nan(images)
    with pytest.raises(DatasetError, match="1 voxels are NaN or infinite"):
        require_whole(Case("b", (images / "b_0000.nii.gz",)))
    description = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**description, "sam3d_accept": ["non-finite voxels"]}))
    assert predict().failed == {}  # the reader makes 0 of NaN, as it did in training


def test_all_that_is_wrong_with_a_case_is_told_at_once(tmp_path):
    for channel, shape in enumerate([(5, 9, 7), (5, 8, 7), (5, 9, 7)]):
        write_image(tmp_path / f"a_{channel:04d}.nii", shape=shape)
    truncate(tmp_path / "a_0002.nii")
    with pytest.raises(DatasetError, match=r"a_0002.nii: is incomplete.*a_0001.nii \(5, 8, 7\); resample"):
        require_whole(Case("a", tuple(sorted(tmp_path.iterdir()))))


def test_find_model_takes_the_only_one_or_the_one_asked_for(tmp_path):
    first = make_model(tmp_path, dataset="Dataset901_Tiny")
    assert find_model(tmp_path) == first
    second = make_model(tmp_path, dataset="Dataset902_Other", folds=("all",))
    assert (
        find_model(tmp_path, 902) == find_model(tmp_path, "902") == find_model(tmp_path, "Dataset902_Other") == second
    )
    assert [model.folds for model in list_models(tmp_path)] == [(0,), ("all",)]
    with pytest.raises(CheckpointError, match=r"Dataset901_Tiny/.* \(folds 0\), Dataset902_Other/.*choose one with -d"):
        find_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"for dataset 903; trained are Dataset901_Tiny"):
        find_model(tmp_path, 903)
    with pytest.raises(CheckpointError, match="there is none; train one first: sam3d_train"):
        find_model(tmp_path / "nothing")


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


def test_checkpoints_with_numpy_values_open(tmp_path):
    logging_values = {"dice": [np.float64(0.5), np.float32(0.25), np.int64(3)], "state": np.arange(3, dtype=np.uint32)}
    torch.save(make_checkpoint(make_weights(0), logging=logging_values), tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["logging"]["dice"] == [0.5, 0.25, 3]


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
        "second stage of a cascade": {"previous_stage": "3d_lowres"},
    }
    for message, change in changes.items():
        plans["configurations"]["3d_fullres"] = configuration | change
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(PlanError, match=message):
            load_model(model)
    truncate(model / "plans.json")
    with pytest.raises(PlanError, match=r"plans.json cannot be read"):
        load_model(model)
