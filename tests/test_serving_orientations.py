"""Arrays as napari, 3D Slicer and MITK have them, whatever way round: masks are those of the file."""

import json
import logging

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import write_image
from viewers import array_of, as_napari, back_from_napari, begin, index_in_napari, make_model_stored_in, write_stored

from sam3dnet.model import load_model

ORIENTATIONS = ["LPS", "RAS", "LAS", "RPI", "PSR", "SAL", "ILP"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("with_folder", [False, True], ids=["by the axes", "by the folder"])
def test_napari_sees_the_patient_the_right_way_round(tmp_path, connect, orientation, with_folder):
    """For a model that was trained on images in this orientation, the masks are those of the file."""
    model = make_model_stored_in(orientation, tmp_path / "results")
    file = tmp_path / "images" / "a_0000.nii.gz"
    write_stored(file, orientation)
    array, spacing = as_napari(file)
    session = load_model(model, device="cpu").session()
    session.set_image(file)
    voxel = tuple(size // 3 for size in array_of(file).shape)
    expected = session.click(voxel[::-1], class_name="lesion")
    with serving(model, images=file.parent if with_folder else None) as served:
        client = connect(served, "lesion")
        mask = begin(client, array, spacing)
        at = index_in_napari(voxel, file)
        client.add_point_interaction(at, True)
        np.testing.assert_array_equal(back_from_napari(mask, file), expected)
        assert mask[at] == 1
        other = (size - 1 - size // 4 for size in array_of(file).shape)
        corners = voxel, tuple(other)
        ends = zip(*(index_in_napari(corner, file) for corner in corners), strict=True)
        client.add_bbox_interaction([[min(pair), max(pair) + 1] for pair in ends], True)
        low, high = np.min(corners, 0), np.max(corners, 0)
        expected = session.box(tuple(map(float, low[::-1])), tuple(map(float, high[::-1])), class_name="lesion")
        np.testing.assert_array_equal(back_from_napari(mask, file), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slicer_and_mitk_show_the_file_as_it_is_stored(tmp_path, connect, orientation):
    model = make_promptable_model(tmp_path / "results")
    file = tmp_path / "images" / "a_0000.nii.gz"
    write_stored(file, orientation)
    session = load_model(model, device="cpu").session()
    session.set_image(file)
    array = array_of(file)
    at = tuple(size // 2 for size in array.shape)
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array, sitk.ReadImage(str(file)).GetSpacing()[::-1], np.uint16)
        client.add_point_interaction(at, True)
        np.testing.assert_array_equal(mask, session.click(at[::-1], class_name="lesion"))


def test_a_reader_that_reorients_gets_what_napari_shows(tmp_path, connect):
    model = make_promptable_model(tmp_path / "results")
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "NibabelIOWithReorient"}))
    file = tmp_path / "images" / "a_0000.nii.gz"
    write_stored(file, "LPS")
    array, spacing = as_napari(file)
    session = load_model(model, device="cpu").session()
    session.set_image(file)
    for images in (None, file.parent):
        with serving(model, images=images) as served:
            client = connect(served, "lesion")
            mask = begin(client, array, spacing)
            client._predict()
            np.testing.assert_array_equal(mask, session.mask("lesion"))


def test_further_channels_come_from_the_folder(tmp_path, connect, caplog):
    caplog.set_level(logging.INFO, "sam3dnet")
    model = make_promptable_model(tmp_path / "results", num_channels=2)
    for name, seed in (("a", 1), ("b", 3)):
        for channel in (0, 1):
            write_image(tmp_path / "images" / f"{name}_000{channel}.nii.gz", seed + 10 * channel)
    session = load_model(model, device="cpu").session()
    session.set_image(tmp_path / "images" / "b_0000.nii.gz")
    with serving(model, images=tmp_path / "images") as served:
        client = connect(served, "lesion")
        for channel in (0, 1):
            shown = array_of(tmp_path / "images" / f"b_000{channel}.nii.gz")[:, ::-1]
            mask = begin(client, shown)
            client.add_point_interaction((2, 8 - 4, 3), True)
            np.testing.assert_array_equal(mask[:, ::-1], session.click((3, 4, 2), class_name="lesion"))
            session.undo()
        with pytest.raises(httpx.HTTPStatusError, match="1 channels, the model wants 2"):
            begin(client, shown + 1)
    assert "b_0001.nii.gz" in caplog.text and "is none of" in caplog.text
