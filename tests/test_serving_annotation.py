"""A dataset that is labelled in the page: accepted, put off, trained on and gone back, by requests and in a browser."""

import errno
import json
import os
import shutil
import time
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

from sam3dnet.annotation import labelled, learning
from sam3dnet.annotation.job import Result
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import CheckpointError
from sam3dnet.model import load_model
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.serving.annotating import Annotating

NAME = "Dataset973_Page"
SHAPE = (11, 24, 17)
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


def annotate(root, model=None, **options):
    model = model or make_promptable_model(root / "first")
    project = AnnotationProject(973, root / "pool", model=model, root=root, device="cpu")

    def make(hall, load):
        return Annotating(project, hall, load, **{"every": 0, "order": "name", **options})

    return serving(Path(project.state.model), images=root / "pool", output=project.folder / "drafts", annotate=make)


def ask(served, what, **said):
    """Ask the server as the page does."""
    answer = httpx.post(f"{served.url}/viewer/api/{what}", json=said, trust_env=False, timeout=60)
    return answer.raise_for_status().json()


def status(served):
    return httpx.get(f"{served.url}/viewer/api/annotation", trust_env=False, timeout=60).raise_for_status().json()


def open_case(served, name):
    session = ask(served, "open", case=name)["session"]
    end = time.monotonic() + SECONDS
    while not (
        found := httpx.get(
            f"{served.url}/viewer/api/progress", params={"session": session}, trust_env=False, timeout=60
        ).json()
    )["ready"]:
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
        assert after["history"][0]["text"] == "b accepted, 1 prompts"
        session = open_case(served, "a")
        after = ask(served, "skip", session=session)
        assert after["waiting"] == list("cda") and after["skipped"] == ["a"]
        assert not (root / "nnUNet_raw" / NAME / "sam3d_annotation" / "drafts" / "a.nii.gz").exists()
    assert in_dataset(root, "b")[4, 6, 8] == 1
    history = (root / "nnUNet_raw" / NAME / "sam3d_annotation" / "history.jsonl").read_text().splitlines()
    accepted = json.loads(history[1])
    assert accepted["prompts"] == {"organ": {"points": 1}} and accepted["seconds"] >= 0
    assert set(accepted["dice"]) == {"organ", "lesion"} and accepted["model"]
    kept = root / "nnUNet_raw" / NAME / "sam3d_annotation" / "labels" / "b" / "0001"
    assert sorted(path.name for path in kept.iterdir()) == ["b.nii.gz", "b_prompts.json"]


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
        assert status(served)["labelled"] == []


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
        wait_for(page, lambda now: now["annotation"]["last"] is not None)
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
