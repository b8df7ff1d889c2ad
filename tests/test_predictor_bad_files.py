"""A file that cannot be predicted costs its own case alone, and the reason is told."""

import gzip
import json
import logging
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import predict_folder
from tiny_models import (
    SHAPE_ZYX,
    SPACING_XYZ,
    labels_of,
    make_checkpoint,
    make_model,
    make_weights,
    truncate,
    write_image,
)

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case, require_whole
from sam3dnet.preprocessing.reading import DatasetReader


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
        (spoil_four_dimensions, r"came 4 dimensions \(2, 5, 9, 7\); write each channel or time step into a file"),
        (spoil_name, r"b.nii.gz has no channel number; name it b_0000.nii.gz"),
    ],
)
@pytest.mark.parametrize("ahead", [None, 2])
def test_a_bad_file_costs_its_own_case_alone(predict, images, tmp_path, spoil, reason, ahead):
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
    report = predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu")
    assert report.written == ["b"]
    assert reason in report.failed["a"]
    assert "resample the channels to one grid" in report.failed["a"]


def test_a_missing_channel_costs_its_case(tmp_path):
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    write_image(tmp_path / "in" / "a_0001.nii.gz")
    write_image(tmp_path / "in" / "b_0001.nii.gz")
    model = make_model(tmp_path / "results", num_channels=2)
    report = predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu")
    assert report.written == ["a"]
    assert "there are {0001}" in report.failed["b"]


def test_not_finite_output_costs_its_case(tmp_path, images):
    model = make_model(tmp_path / "results")
    weights = make_weights(0) | {"last.bias": torch.tensor([0.0, float("nan"), 0.0])}
    torch.save(make_checkpoint(weights), model / "fold_0" / "checkpoint_final.pth")
    report = predict_folder(images, tmp_path / "out", model, device="cpu")
    assert report.written == []
    assert "the network's output is not finite" in report.failed["a"]


def test_an_image_of_zeros_gets_a_label_map(predict, images, tmp_path):
    image = sitk.GetImageFromArray(np.zeros(SHAPE_ZYX, np.float32))
    sitk.WriteImage(image, str(images / "b_0000.nii.gz"))
    report = predict()
    assert report.failed == {}
    assert labels_of(tmp_path / "out" / "b.nii.gz").shape == SHAPE_ZYX


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


def test_what_the_models_dataset_accepts_is_accepted_in_an_image(predict, images, model):
    spoil_nan(images)
    with pytest.raises(DatasetError, match="1 voxels are NaN or infinite"):
        require_whole(Case("b", (images / "b_0000.nii.gz",)), DatasetReader("SimpleITKIO"))
    description = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**description, "sam3d_accept": ["non-finite voxels"]}))
    assert predict().failed == {}  # the reader makes 0 of NaN, as it did in training


def test_all_that_is_wrong_with_a_case_is_told_at_once(tmp_path):
    for channel, shape in enumerate([(5, 9, 7), (5, 8, 7), (5, 9, 7)]):
        write_image(tmp_path / f"a_{channel:04d}.nii", shape=shape)
    truncate(tmp_path / "a_0002.nii")
    with pytest.raises(DatasetError, match=r"a_0002.nii: is incomplete.*a_0001.nii \(5, 8, 7\); resample"):
        require_whole(Case("a", tuple(sorted(tmp_path.iterdir()))), DatasetReader("SimpleITKIO"))
