"""Memory that does not suffice, and images that nobody waits for: told, given back, and not computed to the end."""

import threading

import httpx
import numpy as np
import pytest
import torch
from fake_prompts import make_promptable_model
from served import serving
from test_serving_viewer import Page
from tiny_models import SHAPE_ZYX, write_image
from viewers import SPACING_ZYX, array_of, begin

from sam3dnet.errors import PromptError
from sam3dnet.interactive.case import PromptedCase
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import load_model
from sam3dnet.serving import hall as halls
from sam3dnet.serving.hall import NO_MEMORY
from sam3dnet.serving.leases import GoneError
from sam3dnet.serving.segment import Segment


@pytest.fixture
def model(tmp_path):
    return make_promptable_model(tmp_path / "results")


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate("ab", start=3):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "images"


@pytest.fixture
def exhausted(monkeypatch):
    """Make the first label map after a prompt exhaust the memory; gives what was asked, and what was given back."""
    label_map, asked, given_back = PromptedCase.label_map, [], []

    def exhaust(case, acts):
        if acts:
            asked.append(len(acts))
            if len(asked) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return label_map(case, acts)

    monkeypatch.setattr(PromptedCase, "label_map", exhaust)
    monkeypatch.setattr(halls, "release_cached", given_back.append)
    return asked, given_back


def test_a_prompt_that_cannot_be_answered_was_not_given(model, folder, exhausted):
    session = load_model(model, device="cpu").session()
    session.set_image(folder / "a_0000.nii.gz")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        session.click((3, 4, 2), class_name="lesion")
    assert session.num_prompts == 0
    assert session.click((4, 4, 2), class_name="lesion")[2, 4, 4]
    assert session.num_prompts == 1 and exhausted[0] == [1, 1]
    session.take_back()
    session.take_back()
    assert session.num_prompts == 0
    with pytest.raises(PromptError, match="there is no prompt to take back"):
        session.undo()


def test_a_viewer_is_told_and_its_next_click_is_answered(model, folder, connect, exhausted):
    asked, given_back = exhausted
    with serving(model) as served:
        client = connect(served, "lesion")
        mask = begin(client, array_of(folder / "a_0000.nii.gz"))
        with pytest.raises(httpx.HTTPStatusError, match="507 the server has not enough memory"):
            client.add_point_interaction((2, 4, 3), True)
        assert given_back == [torch.device("cpu")] and not mask[2, 4, 3]
        client.add_point_interaction((2, 5, 3), True)
        assert mask[2, 5, 3] == 1 and asked == [1, 1]


def test_the_whole_mask_of_a_viewer_is_asked_with_the_prompts_that_were_answered(model, folder, exhausted):
    session = load_model(model, device="cpu").session()
    segment = Segment(session, "lesion")
    segment.set_image(array_of(folder / "a_0000.nii.gz")[None], SPACING_ZYX)
    with pytest.raises(torch.OutOfMemoryError):
        segment.answered(lambda: segment.point((2, 4, 3), True, run=False))
    assert session.num_prompts == 0
    assert segment.answered(lambda: segment.point((2, 5, 3), True, run=False))[2, 5, 3]


def test_the_page_is_told_and_its_next_click_is_answered(model, folder, tmp_path, exhausted):
    asked, given_back = exhausted
    with serving(model, images=folder, output=tmp_path / "out") as served:
        page = Page(served).open("a")
        said = {"class": "lesion", "at": [3, 4, 2], "positive": True}
        response = page.http.post("/click", json={"session": page.session, **said})
        assert response.status_code == 507 and response.json()["detail"] == NO_MEMORY
        assert given_back == [torch.device("cpu")]
        meta = page.change("click", **said)
        assert meta["undo"] == 1 and len(meta["prompts"]) == 1 and asked == [1, 1]
        page.http.close()


def test_the_page_is_told_of_an_image_for_which_the_memory_does_not_suffice(model, folder, tmp_path, monkeypatch):
    given_back = []

    def exhaust(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PromptSession, "set_image", exhaust)
    monkeypatch.setattr(halls, "release_cached", given_back.append)
    with serving(model, images=folder, output=tmp_path / "out") as served:
        page = Page(served)
        with pytest.raises(ValueError, match="the server has not enough memory for this; end other sessions"):
            page.open("a")
        page.http.close()
    assert given_back == [torch.device("cpu")]


def test_an_image_that_nobody_waits_for_any_more_is_not_begun(model, folder, tmp_path, monkeypatch):
    set_image, begun, held = PromptSession.set_image, [], threading.Event()
    monkeypatch.setattr(PromptSession, "set_image", lambda self, *a, **b: begun.append(a) or set_image(self, *a, **b))
    with serving(model, images=folder, output=tmp_path / "out") as served:
        holding = served.hall.worker.submit(held.wait, 30)
        page = Page(served)
        first = page.http.post("/open", json={"case": "a"}).raise_for_status().json()["session"]
        page.http.post("/close", json={"session": first}).raise_for_status()
        held.set()
        holding.result(30)
        page.open("b")
        assert [str(files[0]) for (files,) in begun] == [str(folder / "b_0000.nii.gz")]
        page.http.close()


def test_a_viewers_image_that_nobody_waits_for_any_more_is_not_computed_to_the_end(model):
    with serving(model) as served:
        lease = served.hall.claim("lesion")
        report = served.hall.reporter(lease)
        shares = []

        def leave_halfway(share):
            shares.append(share)
            report(share)
            served.hall.leases.release(lease.token)

        image = np.random.default_rng(1).normal(size=(1, *(4 * size for size in SHAPE_ZYX)))  # of several windows
        waiting = served.hall.worker.submit(lease.work.set_image, image, SPACING_ZYX, None, leave_halfway)
        with pytest.raises(GoneError, match="this session has ended"):
            waiting.result(30)
        assert len(shares) == 2 and shares[0] == 0.0
