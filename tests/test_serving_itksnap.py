"""ITK-SNAP's routes, both versions, as it sends them: raw float32, x fastest, the whole mask back."""

import base64
import gzip
import json

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from served import serving
from tiny_models import SHAPE_ZYX, write_image
from viewers import make_model_stored_in

from sam3dnet.model import load_model


@pytest.fixture
def model(tmp_path):
    return make_model_stored_in("LPS", tmp_path / "results")


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "a.nii.gz"
    write_image(file, seed=3, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return sitk.ReadImage(str(file))


@pytest.fixture
def client(model):
    with serving(model) as served, httpx.Client(base_url=served.url, trust_env=False, timeout=30) as made:
        yield made


def metadata_of(image):
    return {
        "dimensions": list(image.GetSize()),
        "spacing": list(image.GetSpacing()),
        "origin": list(image.GetOrigin()),
        "direction": list(image.GetDirection()),
        "components_per_pixel": 1,
        "component_type": "float32",
    }


def upload(client, path, image, **changes):
    raw = gzip.compress(sitk.GetArrayFromImage(image).astype("<f4").tobytes())
    data = {"metadata": json.dumps(metadata_of(image) | changes)}
    return client.post(path, files={"file": ("image.raw", raw)}, data=data)


def mask_in(response, shape):
    content = response.raise_for_status().json()
    assert content["status"] == "success"
    return np.frombuffer(gzip.decompress(base64.b64decode(content["result"])), np.int8).reshape(shape)


def test_both_versions_give_the_masks_of_a_session(model, image, client):
    session = load_model(model, device="cpu").session()
    session.set_image(sitk.GetArrayFromImage(image), image.GetSpacing()[::-1])
    assert client.get("/status").json()["status"] == "ok"
    models = client.get("/v2/models").json()["models"]
    assert [one["id"] for one in models] == ["organ", "lesion"]
    assert all(one["interactions"] == ["point", "scribble", "lasso"] for one in models)
    new = client.get("/v2/start_session/lesion").json()["session_id"]
    assert upload(client, f"/v2/upload_raw/{new}?filename=a", image).status_code == 200
    clicked = client.get(f"/v2/process_point_interaction/{new}?point=3&point=4&point=2&foreground=true")
    expected = session.click((3, 4, 2), class_name="lesion")
    np.testing.assert_array_equal(mask_in(clicked, SHAPE_ZYX), expected)
    clicked = client.get(f"/v2/process_point_interaction/{new}?point=5&point=7&point=3&foreground=false")
    np.testing.assert_array_equal(mask_in(clicked, SHAPE_ZYX), session.click((5, 7, 3), False, "lesion"))
    outside = client.get(f"/v2/process_point_interaction/{new}?point=50&point=7&point=3&foreground=true")
    np.testing.assert_array_equal(mask_in(outside, SHAPE_ZYX), session.mask("lesion"))
    assert client.get(f"/v2/reset_interactions/{new}").json() == {"status": "success"}
    clicked = client.get(f"/v2/process_point_interaction/{new}?point=3&point=4&point=2&foreground=true")
    np.testing.assert_array_equal(mask_in(clicked, SHAPE_ZYX), expected)
    assert "message" in client.get(f"/v2/end_session/{new}").json()
    old = client.get("/start_session").json()["session_id"]
    assert "message" in upload(client, f"/upload_raw/{old}", image).json()
    session.reset()
    clicked = client.get(f"/process_point_interaction/{old}?x=3&y=4&z=2&foreground=true")
    np.testing.assert_array_equal(mask_in(clicked, SHAPE_ZYX), session.click((3, 4, 2), class_name="organ"))


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "ILP"])
def test_an_image_that_is_stored_otherwise_is_brought_to_the_models_orientation(model, image, client, orientation):
    session = load_model(model, device="cpu").session()
    session.set_image(sitk.GetArrayFromImage(image), image.GetSpacing()[::-1])
    turned = sitk.DICOMOrient(image, orientation)
    token = client.get("/v2/start_session/lesion").json()["session_id"]
    upload(client, f"/v2/upload_raw/{token}", turned).raise_for_status()
    x, y, z = turned.TransformPhysicalPointToIndex(image.TransformIndexToPhysicalPoint((3, 4, 2)))
    clicked = client.get(f"/v2/process_point_interaction/{token}?point={x}&point={y}&point={z}&foreground=true")
    mask = sitk.GetImageFromArray(mask_in(clicked, turned.GetSize()[::-1]).astype(np.uint8))
    mask.CopyInformation(turned)
    back = sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS"))
    np.testing.assert_array_equal(back, session.click((3, 4, 2), class_name="lesion"))


def test_a_session_that_is_none_is_said_to_be_invalid(image, client):
    for response in (
        client.get("/process_point_interaction/x?x=1&y=1&z=1"),
        client.get("/v2/reset_interactions/x"),
        client.post("/process_lasso_interaction/x"),
        upload(client, "/upload_raw/x", image),
    ):
        assert (response.status_code, response.json()) == (200, {"error": "Invalid session"})
    assert client.get("/end_session/x").status_code == 200
    assert client.get("/v2/start_session/lesio").status_code == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"dimensions": [7, 9, 6]},
        {"dimensions": [7, 9, 4]},
        {"dimensions": [7, 9]},
        {"dimensions": [1 << 20, 1 << 20, 1 << 20]},
        {"dimensions": [0, 9, 5]},
        {"spacing": [1, 2]},
        {"spacing": [0, 1, 1]},
        {"direction": [1, 0]},
        {"components_per_pixel": 2},
        {"components_per_pixel": 0},
    ],
)
def test_an_image_that_is_not_as_it_says_is_refused(image, client, changes):
    token = client.get("/start_session").json()["session_id"]
    assert upload(client, f"/upload_raw/{token}", image, **changes).status_code == 400


def test_forms_that_are_none_are_refused(image, client):
    token = client.get("/start_session").json()["session_id"]
    path = f"/upload_raw/{token}"
    assert client.post(path, content=b"x").status_code == 400
    assert client.post(path, content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=a"}
    assert client.post(path, content=b"--a\r\nnothing", headers=broken).status_code == 400
    assert (
        client.post(path, files={"other": b"x"}, data={"metadata": json.dumps(metadata_of(image))}).status_code == 400
    )
    for click in ("x=1&y=2", "x=1&y=2&z=nan", "x=a&y=2&z=3", "point=1&point=2"):
        assert client.get(f"/process_point_interaction/{token}?{click}").status_code == 400
    bomb = gzip.compress(bytes(10_000_000))
    response = client.post(path, files={"file": bomb}, data={"metadata": json.dumps(metadata_of(image))})
    assert response.status_code == 400 and "other than 1260 bytes" in response.reason_phrase
