"""The real client of nnInteractive, as napari, 3D Slicer and MITK use it, against the masks of a session."""

import gc
import logging
import threading
import time
import warnings

import httpx
import numpy as np
import pytest
from fake_prompts import PromptableNetwork, make_model_of_bright_objects, make_promptable_model, write_bright_objects
from nnInteractive.inference.remote import (
    ServerAtCapacityError,
    SessionExpiredError,
    nnInteractiveRemoteInferenceSession,
)
from served import serving
from tiny_models import REGIONS, SHAPE_ZYX, write_image
from viewers import SPACING_ZYX, array_of, begin

from sam3dnet.model import load_model


@pytest.fixture
def model(tmp_path):
    return make_promptable_model(tmp_path / "results")


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz", seed=3)
    return tmp_path / "images" / "a_0000.nii.gz"


def refusal_of(kind, served, class_name="", **options):
    """Give the message with which a client is refused; the client leaves its connection open then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            nnInteractiveRemoteInferenceSession(f"{served.url}/{class_name}", **options)
        except kind as problem:
            message = str(problem)
        gc.collect()
    return message


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8])
def test_the_masks_are_those_of_a_session(model, image, connect, dtype):
    array = array_of(image)
    session = load_model(model, device="cpu").session()
    session.set_image(array, SPACING_ZYX)
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array, dtype=dtype)
        assert client._predict() is not None
        np.testing.assert_array_equal(mask, session.mask("lesion"))
        box = client.add_point_interaction((2, 4, 3), True)
        before, expected = mask.copy(), session.click((3, 4, 2), class_name="lesion")
        np.testing.assert_array_equal(mask, expected)
        assert mask[2, 4, 3] == 1
        client.add_bbox_interaction([[1, 2], [2, 6], [1, 5]], True)
        np.testing.assert_array_equal(mask, session.box((1, 2, 1), (4, 5, 1), class_name="lesion"))
        client.add_point_interaction([3, 7, 5], False)
        np.testing.assert_array_equal(mask, session.click((5, 7, 3), False, "lesion"))
        assert client.undo()
        np.testing.assert_array_equal(mask, session.undo())
        assert client.undo()
        np.testing.assert_array_equal(mask, session.undo())
        np.testing.assert_array_equal(mask, before)
        assert client.undo()
        np.testing.assert_array_equal(mask, session.undo())
        assert not client.undo()
        assert box is None or all(0 <= low < high <= size for (low, high), size in zip(box, SHAPE_ZYX, strict=True))
        client.reset_interactions()
        assert not mask.any()
        client.add_point_interaction((2, 4, 3), True)
        np.testing.assert_array_equal(mask, expected)


def test_the_class_is_chosen_by_the_address(tmp_path, image, connect):
    model = make_promptable_model(tmp_path / "results", labels={"background": 0, "left Kidney": 1, "a/b": 2})
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        for address, name in (
            *(("", "left Kidney"), ("left_kidney", "left Kidney"), ("left%20Kidney", "left Kidney")),
            *(("a_b", "a/b"), ("a%2Fb", "a/b")),
        ):
            client = connect(served, address)
            mask = begin(client, array_of(image))
            client._predict()
            np.testing.assert_array_equal(mask, session.mask(name))
            client.close()
        problem = refusal_of(httpx.HTTPStatusError, served, "a_c")
    assert "400 there is no class /a_c (did you mean a_b?); the server's address ends in one of" in problem
    assert "/left_kidney, /a_b" in problem


def test_a_class_may_be_called_as_the_page_is(tmp_path, image, connect):
    model = make_promptable_model(tmp_path / "results", labels={"background": 0, "viewer": 1, "end session": 2})
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model, images=image.parent, output=tmp_path / "out") as served:
        for address, name in (("viewer_2", "viewer"), ("end_session_2", "end session")):
            client = connect(served, address)
            mask = begin(client, array_of(image))
            assert client._predict() is not None
            np.testing.assert_array_equal(mask, session.mask(name))


def test_regions(tmp_path, image, connect):
    model = make_promptable_model(tmp_path / "results", labels=REGIONS)
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        client = connect(served, "whole")
        mask = begin(client, array_of(image))
        client.add_point_interaction((2, 4, 3), True)
        np.testing.assert_array_equal(mask, session.click((3, 4, 2), class_name="whole"))


@pytest.mark.parametrize(
    ("at", "voxel"),
    [
        ((1.5, 2.5, 3.5), (2, 3, 4)),
        ((-0.5, -0.5, -0.5), (0, 0, 0)),
        ((4.5, 8.5, 6.5), (4, 8, 6)),
        ((1.4, 2.6, 3.49), (1, 3, 3)),
    ],
)
def test_clicks_on_faces_belong_to_the_higher_voxel_that_there_is(model, image, connect, at, voxel):
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        client = connect(served)
        mask = begin(client, array_of(image))
        client.add_point_interaction(at, True)
        np.testing.assert_array_equal(mask, session.click(voxel[::-1], class_name="organ"))
        assert mask[voxel] == 1


def test_what_lies_outside_is_answered_logged_and_changes_nothing(model, image, connect, caplog):
    caplog.set_level(logging.INFO, "sam3dnet")
    with serving(model) as served:
        client = connect(served)
        mask = begin(client, array_of(image))
        client._predict()
        before = mask.copy()
        for at in ((-1, 0, 0), (5, 0, 0), (0, 9, 0), (0, 0, 6.6), (1e30, 0, 0)):
            assert client.add_point_interaction(at, True) is None
        assert client.add_bbox_interaction([[0, 1], [9, 12], [0, 3]], True) is None
        assert client.add_bbox_interaction([[0, 1], [-4, 0], [0, 3]], True) is None
        assert (
            client.add_scribble_interaction(
                np.zeros((1, 2, 2), np.uint8), True, interaction_bbox=[[0, 1], [0, 2], [0, 2]]
            )
            is None
        )
        assert (
            client.add_lasso_interaction(np.ones((1, 2, 2), np.uint8), True, interaction_bbox=[[0, 1], [9, 11], [0, 2]])
            is None
        )
        np.testing.assert_array_equal(mask, before)
        assert not client.undo()
    assert caplog.text.count("it is not heard") == 9


def test_boxes_are_half_open_and_cut_at_the_image(model, image, connect):
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        client = connect(served)
        mask = begin(client, array_of(image))
        client.add_bbox_interaction([[1, 3], [-3, 4.4], [5, 11]], True)
        np.testing.assert_array_equal(mask, session.box((5, 0, 1), (6, 3, 2), class_name="organ"))
        client.undo()
        session.undo()
        client.add_bbox_interaction([[2, 2], [6, 3], [1, 5]], True)  # drawn backwards, and without a thickness
        np.testing.assert_array_equal(mask, session.box((1, 3, 2), (4, 5, 2), class_name="organ"))


def test_several_prompts_before_one_prediction(model, image, connect):
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        client = connect(served)
        mask = begin(client, array_of(image))
        assert client.add_point_interaction((2, 4, 3), True, run_prediction=False) is None
        assert client.add_bbox_interaction([[1, 2], [2, 6], [1, 5]], True, run_prediction=False) is None
        assert not mask.any()
        client._predict()
        session.click((3, 4, 2), class_name="organ")
        np.testing.assert_array_equal(mask, session.box((1, 2, 1), (4, 5, 1), class_name="organ"))
        client.undo()
        np.testing.assert_array_equal(mask, session.undo())


def test_a_mask_to_begin_with(model, image, connect):
    given = np.zeros(SHAPE_ZYX, np.uint8)
    given[1:3, 2:7, 1:4] = 1
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        client = connect(served)
        mask = begin(client, array_of(image))
        client.add_point_interaction((2, 4, 3), True)
        assert client.add_initial_seg_interaction(given) is None
        np.testing.assert_array_equal(mask, given)
        client.add_point_interaction((3, 7, 5), True)
        session.set_mask(given.astype(bool), class_name="organ")
        np.testing.assert_array_equal(mask, session.click((5, 7, 3), class_name="organ"))
        client.undo()
        np.testing.assert_array_equal(mask, given)  # as it was on the screen
        client.add_initial_seg_interaction(given, run_prediction=True)
        session.reset()
        np.testing.assert_array_equal(mask, session.set_mask(given.astype(bool), class_name="organ"))
        with pytest.raises(httpx.HTTPStatusError, match=r"mask has shape \(4, 9, 7\), the image \(5, 9, 7\)"):
            client._http.post(
                "/add_initial_seg_interaction", content=_packed(given[:4]), headers={"X-Meta": "{}"}
            ).raise_for_status()


def _packed(array):
    from sam3dnet.serving.arrays import pack_array

    return pack_array(array)


def test_objects_one_by_one(tmp_path, connect):
    model = make_model_of_bright_objects(tmp_path / "results")
    write_bright_objects(tmp_path / "images" / "a_0000.nii.gz")
    array = array_of(tmp_path / "images" / "a_0000.nii.gz")
    with serving(model, instance=True) as served:
        client = connect(served, "lesion")
        mask = begin(client, array)
        client.add_point_interaction((2, 2, 1), True)
        assert mask[2, 2, 1] and not mask[2, 6, 4]
        client.reset_interactions()
        client.add_point_interaction((2, 6, 4), True)
        assert mask[2, 6, 4] and not mask[2, 2, 1]


def test_sessions_are_bounded_and_freed(model, image, connect):
    with serving(model, most=2) as served:
        first = connect(served)
        connect(served)
        assert "all 2 sessions of this server are taken" in refusal_of(ServerAtCapacityError, served)
        first.close()
        third = connect(served)
        assert third.ping() and third.heartbeat() > 500
        assert set(third.lease_status()) == {"remaining_seconds", "idle_timeout_seconds"}
        served.hall.leases.release(third._lease_token)
        with pytest.raises(SessionExpiredError, match="connect again in the viewer"):
            third.set_target_buffer(np.zeros((2, 3, 4), np.uint8))


def test_spare_time_prepares_for_prompts_and_a_closed_session_leaves_nothing(model, image, connect):
    with serving(model) as served:
        client, worker = connect(served, "lesion"), served.hall.worker
        begin(client, array_of(image))
        while worker.has_spare_work:
            time.sleep(0.01)
        assert served.hall._pool.nbytes > 0
        seen = PromptableNetwork.seen
        for positive in (True, False):
            client.add_point_interaction((2, 4, 3), positive)
        assert PromptableNetwork.seen == seen  # all windows were known
        client.close()
        assert served.keeps_nothing()


def test_a_small_pool_is_filled_and_no_more(model, image, connect):
    with serving(model, feature_bytes=30_000) as served:
        client = connect(served, "lesion")
        mask = begin(client, array_of(image))
        while served.hall.worker.has_spare_work:
            time.sleep(0.01)
        assert 0 < served.hall._pool.nbytes <= 30_000
        client.add_point_interaction((2, 4, 3), True)
        assert mask[2, 4, 3] == 1


def test_heartbeats_are_answered_while_the_network_works(model, image, connect):
    held, entered = threading.Event(), threading.Event()
    with serving(model) as served:
        client = connect(served)
        mask = begin(client, array_of(image))

        def hold():
            entered.set()
            held.wait(30)

        waiting = served.hall.worker.submit(hold)
        entered.wait(30)
        clicking = threading.Thread(target=client.add_point_interaction, args=((2, 4, 3), True))
        clicking.start()
        lease = served.hall.leases.find(client._lease_token)
        while not lease.running:
            pass
        assert client.heartbeat() > 0
        lease.sign_s = lease.action_s = -1e9
        served.hall.leases.reap()
        assert len(served.hall.leases) == 1  # since its request runs
        held.set()
        clicking.join(30)
        waiting.result(30)
        assert mask[2, 4, 3] == 1


def test_a_click_does_not_wait_for_somebody_elses_image(model, image, connect, monkeypatch):
    """It is answered while the image is being segmented, in the same thread, and both are right."""
    held, entered = threading.Event(), threading.Event()
    session = load_model(model, device="cpu").session()
    session.set_image(array_of(image), SPACING_ZYX)
    with serving(model) as served:
        first, second = connect(served, "lesion"), connect(served, "lesion")
        mask = begin(first, array_of(image))
        breathe = served.hall.worker.breathe

        def wait_then_breathe():
            entered.set()
            held.wait(30)
            breathe()

        monkeypatch.setattr(served.hall.worker, "breathe", wait_then_breathe)
        setting = threading.Thread(
            target=second.set_image, args=(array_of(image)[None, :, ::-1], {"spacing": list(SPACING_ZYX)})
        )
        setting.start()
        assert entered.wait(30)
        clicking = threading.Thread(target=first.add_point_interaction, args=((2, 4, 3), True))
        clicking.start()
        while not served.hall.worker._short:
            time.sleep(0.01)
        monkeypatch.setattr(served.hall.worker, "breathe", breathe)
        held.set()
        clicking.join(30)
        setting.join(30)
        np.testing.assert_array_equal(mask, session.click((3, 4, 2), class_name="lesion"))
        other = np.zeros(SHAPE_ZYX, np.uint8)
        second.set_target_buffer(other)
        second._predict()
        session.set_image(array_of(image)[:, ::-1], SPACING_ZYX)
        np.testing.assert_array_equal(other, session.mask("lesion"))


def test_without_an_image_or_a_buffer_it_is_said(model, image, connect):
    with serving(model) as served:
        client = connect(served)
        with pytest.raises(httpx.HTTPStatusError, match="400 there is no image yet"):
            client.add_point_interaction((0, 0, 0), True)
        client.set_image(array_of(image)[None], {"spacing": list(SPACING_ZYX)})
        with pytest.raises(httpx.HTTPStatusError, match="there is no target buffer yet"):
            client._predict()
        with pytest.raises(httpx.HTTPStatusError, match=r"400 .*target buffer has shape"):
            client.set_target_buffer(np.zeros((5, 9, 8), np.uint8))
        with pytest.raises(httpx.HTTPStatusError, match="spacing_mm is None"):
            client.set_image(array_of(image)[None])
        assert all(client.supported_interactions.values())


def test_an_image_that_fails_leaves_the_session_usable(model, image, connect):
    with serving(model) as served:
        client = connect(served)
        broken = array_of(image)[None].copy()
        broken[0, 2, 3, 4] = np.nan
        with pytest.raises(httpx.HTTPStatusError, match="400 the image has voxels that are NaN"):
            client.set_image(broken, {"spacing": list(SPACING_ZYX)})
        mask = begin(client, array_of(image))
        client.add_point_interaction((2, 4, 3), True)
        assert mask[2, 4, 3] == 1
