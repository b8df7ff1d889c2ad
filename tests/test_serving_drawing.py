"""Scribbles, lassos and negative boxes, from the real client of nnInteractive and by ITK-SNAP's routes."""

import base64
import gzip
import json
import logging

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import SHAPE_ZYX, write_image
from viewers import (
    SPACING_ZYX,
    array_of,
    as_napari,
    back_from_napari,
    begin,
    index_in_napari,
    make_model_stored_in,
    write_stored,
)

from sam3dnet.model import load_model
from sam3dnet.serving import segment

STROKE = ((2, 3, 2), (2, 4, 2), (2, 5, 3), (2, 6, 4))


@pytest.fixture
def model(tmp_path):
    return make_promptable_model(tmp_path / "results")


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz", seed=3)
    return tmp_path / "images" / "a_0000.nii.gz"


@pytest.fixture
def session(model, image):
    made = load_model(model, device="cpu").session()
    made.set_image(array_of(image), SPACING_ZYX)
    return made


def drawn(places, shape=SHAPE_ZYX):
    """Draw places in a whole array, and give it with the slice that viewers send, and its box."""
    whole = np.zeros(shape, np.uint8)
    whole[tuple(np.transpose(places))] = 1
    low, high = np.min(places, 0), np.max(places, 0) + 1
    box = [[int(first), int(last)] for first, last in zip(low, high, strict=True)]
    return whole, whole[tuple(slice(*side) for side in box)], box


def reversed_places(places):
    return [tuple(map(float, place[::-1])) for place in places]


@pytest.mark.parametrize("as_whole", [False, True], ids=["a slice", "the whole array"])
def test_a_scribble(model, image, session, connect, as_whole):
    whole, part, box = drawn(STROKE)
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array_of(image))
        sent = (whole, True) if as_whole else (part, True)
        client.add_scribble_interaction(*sent, interaction_bbox=None if as_whole else box)
        np.testing.assert_array_equal(mask, session.scribble(reversed_places(STROKE), class_name="lesion"))
        assert mask[whole > 0].all()
        client.add_scribble_interaction(part, False, interaction_bbox=box, run_prediction=False)
        client._predict()
        np.testing.assert_array_equal(mask, session.scribble(reversed_places(STROKE), False, "lesion"))
        assert not mask[whole > 0].any()
        assert client.undo()
        np.testing.assert_array_equal(mask, session.undo())


def test_a_positive_lasso_is_the_box_around_it(model, image, session, connect):
    _, part, box = drawn(((1, 2, 1), (1, 2, 2), (1, 3, 3), (1, 5, 4)))
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array_of(image))
        client.add_lasso_interaction(part, True, interaction_bbox=box)
        np.testing.assert_array_equal(mask, session.box((1, 2, 1), (4, 5, 1), class_name="lesion"))
        client.undo()
        np.testing.assert_array_equal(mask, session.undo())


@pytest.mark.parametrize("by", ["box", "lasso"])
def test_in_a_negative_box_or_lasso_nothing_of_the_mask_is_left(model, image, session, connect, by):
    places = [(z, y, x) for z in (2,) for y in range(1, 8) for x in range(1, 6)]
    whole, part, box = drawn(places)
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array_of(image))
        client.add_scribble_interaction(drawn(STROKE)[0], True)
        session.scribble(reversed_places(STROKE), class_name="lesion")
        held = np.argwhere(mask.astype(bool) & (whole > 0))
        assert len(held)
        if by == "box":
            client.add_bbox_interaction(box, False)
        else:
            client.add_lasso_interaction(part, False, interaction_bbox=box)
        np.testing.assert_array_equal(mask, session.scribble(reversed_places(held), False, "lesion"))
        assert not mask[whole > 0].any()
        before = mask.copy()
        client.add_bbox_interaction(box, False)  # there is nothing any more
        np.testing.assert_array_equal(mask, before)
        client.undo()
        np.testing.assert_array_equal(mask, session.undo())


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PSR", "ILP"])
def test_what_is_drawn_in_napari_lands_in_the_file(tmp_path, connect, orientation):
    model = make_model_stored_in(orientation, tmp_path / "results")
    file = tmp_path / "images" / "a_0000.nii.gz"
    write_stored(file, orientation)
    array, spacing = as_napari(file)
    session = load_model(model, device="cpu").session()
    session.set_image(file)
    shape = array_of(file).shape
    places = [tuple(min(size - 1, step) for size in shape) for step in range(1, 5)]
    expected = session.scribble(reversed_places(places), class_name="lesion")
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array, spacing)
        _, part, box = drawn([index_in_napari(place, file) for place in places], array.shape)
        client.add_scribble_interaction(part, True, interaction_bbox=box)
        np.testing.assert_array_equal(back_from_napari(mask, file), expected)


def test_what_sticks_out_is_left_out_and_what_is_wrong_is_said(model, image, session, connect, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "sam3dnet")
    monkeypatch.setattr(segment, "LARGEST_SCRIBBLE", 5)
    stroke = np.ones((1, 6, 1), np.uint8)
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array_of(image))
        client.add_scribble_interaction(stroke, True, interaction_bbox=[[2, 3], [-3, 3], [3, 4]])
        expected = session.scribble([(3, 0, 2), (3, 1, 2), (3, 2, 2)], class_name="lesion")
        np.testing.assert_array_equal(mask, expected)
        client.add_scribble_interaction(stroke, True, interaction_bbox=[[2, 3], [-8, -2], [3, 4]])
        np.testing.assert_array_equal(mask, expected)
        assert "lies outside of the image" in caplog.text
        with pytest.raises(httpx.HTTPStatusError, match=r"400 a scribble of shape \(1, 6, 1\) came for the box"):
            client.add_scribble_interaction(stroke, True, interaction_bbox=[[2, 3], [0, 5], [3, 4]])
        with pytest.raises(httpx.HTTPStatusError, match="400 interaction_bbox"):
            client.add_scribble_interaction(stroke, True, interaction_bbox=[[2, 3], [0, 6], [3, 4], [1, 2]])
        with pytest.raises(httpx.HTTPStatusError, match="400 6 voxels were drawn at once, at most 5 are heard"):
            client.add_scribble_interaction(stroke, True, interaction_bbox=[[2, 3], [0, 6], [3, 4]])
        np.testing.assert_array_equal(mask, expected)
        client.undo()
        assert not client.undo()


def test_by_the_routes_of_itk_snap(model, tmp_path):
    file = tmp_path / "b.nii.gz"
    write_image(file, seed=3, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    image = sitk.ReadImage(str(file))
    session = load_model(model, device="cpu").session()
    session.set_image(sitk.GetArrayFromImage(image), image.GetSpacing()[::-1])
    meta = {"dimensions": list(image.GetSize()), "spacing": list(image.GetSpacing())}
    with serving(model) as served, httpx.Client(base_url=served.url, trust_env=False, timeout=30) as client:

        def send(path, array_ZYX, **changes):
            raw = gzip.compress(array_ZYX.astype("<f4").tobytes())
            data = {"metadata": json.dumps(meta | changes)}
            return client.post(path, files={"file": ("image.raw", raw)}, data=data)

        def mask_of(response):
            packed = base64.b64decode(response.raise_for_status().json()["result"])
            return np.frombuffer(gzip.decompress(packed), np.int8).reshape(SHAPE_ZYX)

        token = client.get("/v2/start_session/lesion").json()["session_id"]
        send(f"/v2/upload_raw/{token}", sitk.GetArrayFromImage(image)).raise_for_status()
        whole = drawn(STROKE)[0]
        scribbled = send(f"/v2/process_scribble_interaction/{token}?foreground=true", whole)
        np.testing.assert_array_equal(
            mask_of(scribbled), session.scribble(reversed_places(STROKE), class_name="lesion")
        )
        denied = send(f"/process_lasso_interaction/{token}?foreground=false", whole)
        np.testing.assert_array_equal(
            mask_of(denied), session.scribble(reversed_places(STROKE), False, class_name="lesion")
        )
        other = send(f"/process_lasso_interaction/{token}", whole[:4], dimensions=[7, 9, 4])
        assert other.status_code == 400
        assert "the lasso has shape (4, 9, 7), the image (5, 9, 7)" in other.json()["detail"]
        assert send("/process_lasso_interaction/x", whole).json() == {"error": "Invalid session"}
