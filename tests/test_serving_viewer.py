"""The page's requests: what the user does becomes label maps and prompts in files, and nothing of it is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import OBLIQUE, REGIONS, SHAPE_ZYX, labels_of, write_image

from sam3dnet.inference.images import Case
from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.model import load_model
from sam3dnet.preprocessing.geometry import as_stored
from sam3dnet.prompts.files import read_prompts
from sam3dnet.serving import case_files, viewer
from sam3dnet.serving.casework import CaseWork, as_drawn
from sam3dnet.serving.segment import LARGEST_SCRIBBLE


class Page:
    """Asks as the page does.

    Attributes:
        labels: That the page shows, (k, j, i).
        meta: Of the last answer.
    """

    def __init__(self, served, **options):
        self.http = httpx.Client(base_url=f"{served.url}/viewer/api", trust_env=False, timeout=60, **options)

    def open(self, name):
        self.session = self.http.post("/open", json={"case": name}).raise_for_status().json()["session"]
        while True:
            state = self.http.get("/progress", params={"session": self.session}).raise_for_status().json()
            if state["error"] is not None:
                raise ValueError(state["error"])
            if state["ready"]:
                break
            time.sleep(0.02)
        self.labels, self.meta = self.fetch("labels")
        return self

    def fetch(self, what, **more):
        response = self.http.get(f"/{what}", params={"session": self.session, **more}).raise_for_status()
        values, meta = self._unpack(response)
        return values.reshape(meta["shape"]).copy(), meta

    def change(self, what, **said):
        return self._apply(self.http.post(f"/{what}", json={"session": self.session, **said}))

    def paint(self, label, box, mask):
        meta = {"label": label, "box": box}
        return self._apply(
            self.http.post(
                "/paint",
                params={"session": self.session},
                content=mask.astype(np.uint8).tobytes(),
                headers={"X-Meta": json.dumps(meta)},
            )
        )

    def _apply(self, response):
        values, self.meta = self._unpack(response.raise_for_status())
        if self.meta["box"] is not None:
            box = tuple(slice(*side) for side in self.meta["box"])
            self.labels[box] = values.reshape(self.labels[box].shape)
        return self.meta

    @staticmethod
    def _unpack(response):
        """Give the values of a body, and what is said beside them: in a header, and of prompts after the values."""
        meta, content = json.loads(response.headers["X-Meta"]), response.content
        size = len(content) - meta.get("prompts_bytes", 0)
        if "prompts_bytes" in meta:
            meta["prompts"] = json.loads(content[size:])
        return np.frombuffer(content[:size], np.dtype(meta["dtype"])), meta


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate("ab", start=3):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "images"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def model(tmp_path):
    return make_promptable_model(tmp_path / "results")


@pytest.fixture
def page(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        made = Page(served)
        yield made
        made.http.close()


def session_of(model, file):
    session = load_model(model, device="cpu").session()
    session.set_image(file)
    return session


def test_what_there_is(page, output):
    state = page.http.get("/state").json()
    assert state["classes"] == [{"name": "organ", "label": 1}, {"name": "lesion", "label": 2}]
    assert state["cases"] == [{"name": "a", "begun": False}, {"name": "b", "begun": False}]
    assert state["output"] == str(output)
    page.open("b")
    page.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": True})
    assert [case["begun"] for case in page.http.get("/state").json()["cases"]] == [False, True]


FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TURNED = (0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED, TURNED], ids=["oblique", "flipped", "turned"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_clicks_in_the_voxels_of_the_file_change_the_file_that_is_saved(tmp_path, model, output, reader, direction):
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": reader}))
    file = tmp_path / "images" / "a_0000.nii.gz"
    write_image(file, 3, direction=direction)
    with serving(model, images=file.parent, output=output) as served:
        page = Page(served).open("a")
        voxels, meta = page.fetch("image")
        np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(file))))
        assert meta["spacing"] == pytest.approx(sitk.ReadImage(str(file)).GetSpacing())
        assert meta["oblique"] == (direction is OBLIQUE)
        lps = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(direction)
        assert meta["axes"] == lps
        session = session_of(model, file)
        for at, positive in (((3, 4, 2), True), ((5, 7, 3), False), ((1, 2, 1), True)):
            page.change("click", **{"class": "lesion", "at": list(at), "positive": positive})
            expected = session.click(at, positive, "lesion")
            assert (page.labels[at[::-1]] == 2) == positive
        page.change("box", **{"class": "organ", "low": [4, 5, 1], "high": [1, 2, 1]})
        expected = session.box((1, 2, 1), (4, 5, 1), class_name="organ")
        page.http.close()
    saved = sitk.ReadImage(str(output / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(saved), page.labels)
    np.testing.assert_allclose(saved.GetDirection(), sitk.ReadImage(str(file)).GetDirection(), atol=1e-6)
    assert saved.GetOrigin() == pytest.approx(sitk.ReadImage(str(file)).GetOrigin())
    assert (page.labels == 1).sum() == expected.sum()
    read = read_prompts(output / "a_prompts.json", ["a"], ["organ", "lesion"]).of_case("a")
    assert [(point.at, point.positive) for point in read["lesion"][0].points][1] == ((5.0, 7.0, 3.0), False)
    assert len(read["organ"][0].boxes) == 1


STROKES = (
    ([(1, 2, 1), (2, 2, 1), (3, 3, 1), (3, 4, 1)], True),
    ([(3, 3, 1), (4, 3, 2), (5, 3, 3)], False),
    ([(6, 8, 4)], True),
)


@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED, TURNED], ids=["oblique", "flipped", "turned"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_scribbles_say_what_they_say_in_a_session(tmp_path, model, output, reader, direction):
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": reader}))
    file = tmp_path / "images" / "a_0000.nii.gz"
    write_image(file, 3, direction=direction)
    session = session_of(model, file)
    with serving(model, images=file.parent, output=output) as served:
        page = Page(served).open("a")
        for places, positive in STROKES:
            page.change("scribble", **{"class": "lesion", "at": places, "positive": positive})
            assert all((page.labels[k, j, i] == 2) == positive for i, j, k in places)
            assert session.scribble(places, positive, "lesion").any()
            np.testing.assert_array_equal(page.labels, as_stored(session.label_map(), session.properties))
        told = [(said["kind"], [tuple(at) for at in said["at"]], said["positive"]) for said in page.meta["prompts"]]
        assert told == [("scribble", *stroke) for stroke in STROKES]
        page.http.close()
    np.testing.assert_array_equal(labels_of(output / "a.nii.gz"), page.labels)


def test_scribbles_are_undone_done_again_and_there_after_a_restart(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        states = [page.labels.copy()]
        for places, positive in STROKES:
            page.change("scribble", **{"class": "lesion", "at": places, "positive": positive})
            states.append(page.labels.copy())
        for state in states[-2::-1]:
            page.change("undo")
            np.testing.assert_array_equal(page.labels, state)
        for state in states[1:]:
            page.change("redo")
            np.testing.assert_array_equal(page.labels, state)
        page.http.close()
    read = read_prompts(output / "a_prompts.json", ["a"], ["organ", "lesion"]).of_case("a")["lesion"]
    assert [(one.at, one.positive) for one in read[0].scribbles] == [(tuple(at), sign) for at, sign in STROKES]
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        np.testing.assert_array_equal(page.labels, states[-1])
        assert [said["kind"] for said in page.meta["prompts"]] == ["scribble"] * 3
        for state in states[-2::-1]:
            page.change("undo")
            np.testing.assert_array_equal(page.labels, state)
        for state in states[1:]:
            page.change("redo")
            np.testing.assert_array_equal(page.labels, state)
        page.change("reset")
        np.testing.assert_array_equal(page.labels, states[0])
        page.http.close()
    assert json.loads((output / "a_prompts.json").read_text())["cases"] == {}


def test_the_file_of_prompts_says_of_a_voxel_what_was_said_last(page, output):
    page.open("a")
    page.change("scribble", **{"class": "lesion", "at": [[1, 2, 1], [2, 2, 1], [3, 2, 1]], "positive": True})
    page.change("click", **{"class": "organ", "at": [1, 2, 1], "positive": True})
    page.change("click", **{"class": "lesion", "at": [2, 2, 1], "positive": False})
    page.change("scribble", **{"class": "lesion", "at": [[5, 5, 3]], "positive": True})
    page.change("click", **{"class": "lesion", "at": [5, 5, 3], "positive": False})
    stated = json.loads((output / "a_prompts.json").read_text())["cases"]["a"]["lesion"]
    assert stated["scribbles"] == [{"at": [[1, 2, 1], [3, 2, 1]], "positive": True}]
    assert [one["at"] for one in stated["points"]] == [[2, 2, 1], [5, 5, 3]]
    page.change("undo")
    stated = json.loads((output / "a_prompts.json").read_text())["cases"]["a"]["lesion"]
    assert stated["scribbles"][1] == {"at": [[5, 5, 3]], "positive": True}


def test_a_scribble_takes_away_the_strokes_of_the_brush_that_say_otherwise_and_no_others(page):
    page.open("a")
    for i in (0, 3, 6):  # three strokes that do not touch
        page.paint(1, [[0, 5], [4, 5], [i, i + 1]], np.ones((5, 1, 1)))
    page.change("scribble", **{"class": "lesion", "at": [[0, 4, 2], [1, 4, 2], [3, 4, 2]], "positive": True})
    assert (page.labels[2, 4, [0, 1, 3]] == 2).all()
    assert (page.labels[:, 4, 6] == 1).all() and (page.labels[:, 4, 3] != 1).any()
    page.change("undo")
    assert (page.labels[:, 4, [0, 3, 6]] == 1).all()


def test_many_long_scribbles_fit_an_answer(page, output):
    page.open("a")
    places = [[n % 7, n // 7 % 9, n // 63] for n in range(315)]
    for _ in range(3):
        page.change("scribble", **{"class": "lesion", "at": places * 20, "positive": True})
    assert (page.labels == 2).all() and (labels_of(output / "a.nii.gz") == 2).all()
    assert [len(said["at"]) for said in page.meta["prompts"]] == [6300] * 3
    assert page.fetch("labels")[1]["prompts"] == page.meta["prompts"]


def test_a_scribble_of_a_file_that_sticks_out_of_the_image_is_cut_off(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        page.change("scribble", **{"class": "lesion", "at": [[6, 2, 1]], "positive": True})
        page.http.close()
    stated = json.loads((output / "a_prompts.json").read_text())
    stated["cases"]["a"]["lesion"]["scribbles"][0]["at"] += [[7, 2, 1], [-1, 2, 1]]
    (output / "a_prompts.json").write_text(json.dumps(stated))
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        page.change("undo")
        page.change("redo")
        assert page.labels[1, 2, 6] == 2
        page.http.close()


def test_what_is_painted_stays_until_a_prompt_is_about_it(page):
    page.open("a")
    voxels = np.argwhere(page.labels == 0)[5]
    k, j, i = (int(at) for at in voxels)
    page.paint(2, [[k, k + 1], [j, j + 1], [i, i + 1]], np.ones((1, 1, 1)))
    assert page.labels[k, j, i] == 2
    other = next((z, y, x) for z, y, x in np.argwhere(page.labels != 2).tolist() if abs(y - j) > 3)
    page.change("click", **{"class": "lesion", "at": list(other[::-1]), "positive": True})
    assert page.labels[other] == 2
    page.change("click", **{"class": "lesion", "at": [i, j, k], "positive": False})
    assert page.labels[k, j, i] != 2
    page.paint(0, [[k, k + 1], [j, j + 1], [i, i + 1]], np.ones((1, 1, 1)))
    assert page.labels[k, j, i] == 0
    page.change("click", **{"class": "lesion", "at": [i, j, k], "positive": True})
    assert page.labels[k, j, i] == 2


@pytest.mark.parametrize("options", [{}, {"labels": REGIONS}], ids=["labels", "regions"])
def test_any_steps_are_undone_and_done_again_and_all_is_in_the_file(tmp_path, folder, output, options):
    model = make_promptable_model(tmp_path / "results", **options)
    names, values = (("organ", "lesion"), (0, 1, 2)) if not options else (("whole", "core"), (0, 1, 700))
    rng = np.random.default_rng(1)
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        states, at = [page.labels.copy()], 0
        for number in range(40):
            kinds = ["click", "scribble", "box", "paint", "undo", "redo", "reset"]
            kind = rng.choice(kinds, p=[0.2, 0.1, 0.1, 0.2, 0.2, 0.15, 0.05])
            place = [int(rng.integers(size)) for size in SHAPE_ZYX[::-1]]
            name = str(rng.choice(names))
            if kind in ("undo", "redo"):
                page.change(kind)
                at = max(at - 1, 0) if kind == "undo" else min(at + 1, len(states) - 1)
                np.testing.assert_array_equal(page.labels, states[at], err_msg=f"{number} {kind}")
            else:
                if kind == "click":
                    page.change("click", **{"class": name, "at": place, "positive": bool(rng.random() < 0.6)})
                elif kind == "scribble":
                    places = rng.integers(SHAPE_ZYX[::-1], size=(6, 3)).tolist()
                    page.change("scribble", **{"class": name, "at": places, "positive": bool(rng.random() < 0.6)})
                elif kind == "box":
                    other = [int(rng.integers(size)) for size in SHAPE_ZYX[::-1]]
                    page.change("box", **{"class": name, "low": place, "high": other})
                elif kind == "reset":
                    page.change("reset")
                    np.testing.assert_array_equal(page.labels, states[0])
                else:
                    low = [int(rng.integers(size - 1)) for size in SHAPE_ZYX]
                    mask = rng.random((2, 2, 2)) < 0.7
                    page.paint(int(rng.choice(values)), [[one, one + 2] for one in low], mask)
                states, at = [*states[: at + 1], page.labels.copy()], at + 1
            assert (page.meta["undo"], page.meta["redo"]) == (at, len(states) - 1 - at)
            np.testing.assert_array_equal(labels_of(output / "a.nii.gz"), page.labels, err_msg=f"{number} {kind}")
            whole, meta = page.fetch("labels")
            np.testing.assert_array_equal(whole, page.labels)
            voxel_ml = 0.7 * 1.1 * 3.0 / 1000
            expected = {0: (0, 0), 1: ((page.labels == 1).sum(), (page.labels == 2).sum())}[1]
            if options:
                expected = (page.labels > 0).sum(), (page.labels == 700).sum()
            assert list(meta["volumes_ml"].values()) == pytest.approx([n * voxel_ml for n in expected], abs=1e-3)
        page.http.close()


def test_the_next_start_goes_on_where_the_last_one_stopped(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        automatic = page.labels.copy()
        for at, positive in (((3, 4, 2), True), ((3, 4, 3), False)):
            page.change("click", **{"class": "lesion", "at": list(at), "positive": positive})
        before = page.labels.copy()
        page.paint(1, [[4, 5], [0, 2], [0, 2]], np.ones((1, 2, 2)))
        last = page.labels.copy()
        page.http.close()
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        np.testing.assert_array_equal(page.labels, last)
        assert len(page.meta["prompts"]) == 2 and page.meta["undo"] == 2
        page.change("undo")
        page.change("redo")
        np.testing.assert_array_equal(page.labels, last)
        page.change("undo")
        page.change("undo")
        painted = last != before
        np.testing.assert_array_equal(page.labels[~painted], automatic[~painted])
        np.testing.assert_array_equal(page.labels[painted], last[painted])
        assert page.change("undo")["message"] == "there is nothing to undo"
        page.change("reset")
        np.testing.assert_array_equal(page.labels, automatic)
        page.http.close()


def test_a_label_map_that_does_not_fit_is_left_alone(model, folder, output):
    output.mkdir()
    write_image(output / "a.nii.gz", shape=(4, 9, 7))
    before = (output / "a.nii.gz").read_bytes()
    (output / "b.nii.gz").write_bytes(before[: len(before) // 2])
    write_image(folder / "c_0000.nii.gz", 5)
    foreign = sitk.ReadImage(str(folder / "c_0000.nii.gz")) * 0 + 7
    sitk.WriteImage(sitk.Cast(foreign, sitk.sitkUInt8), str(output / "c.nii.gz"))
    write_image(folder / "d_0000.nii.gz", 6)
    elsewhere = sitk.ReadImage(str(folder / "d_0000.nii.gz")) * 0 + 1
    elsewhere.SetOrigin([at + 2.0 for at in elsewhere.GetOrigin()])
    sitk.WriteImage(sitk.Cast(elsewhere, sitk.sitkUInt8), str(output / "d.nii.gz"))
    with serving(model, images=folder, output=output) as served:
        page = Page(served)
        for name, message in (
            ("a", "has shape (4, 9, 7), the image (5, 9, 7)"),
            ("b", "is damaged"),
            ("c", "other labels than the model's, 0, 1, 2"),
            ("d", "has the image's shape, but another origin, spacing or direction"),
        ):
            with pytest.raises(ValueError, match="move it away") as problem:
                page.open(name)
            assert message in str(problem.value)
            assert page.http.post("/save", json={"session": page.session}).status_code == 400
        page.http.close()
    assert (output / "a.nii.gz").read_bytes() == before


def test_a_label_map_that_was_drawn_on_another_image_is_left_alone(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        page.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": True})
        page.http.close()
    drawn = (output / "a.nii.gz").read_bytes()
    image = sitk.ReadImage(str(folder / "a_0000.nii.gz"))
    sitk.WriteImage(image + 1, str(folder / "a_0000.nii.gz"))
    with serving(model, images=folder, output=output) as served:
        page = Page(served)
        with pytest.raises(ValueError, match=r"was drawn on another image than what .*a_0000.nii.gz is now; move it"):
            page.open("a")
        page.http.close()
    assert (output / "a.nii.gz").read_bytes() == drawn


def test_a_second_window_takes_the_case_over(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        first, second = Page(served).open("a"), Page(served).open("a")
        response = first.http.post("/undo", json={"session": first.session})
        assert response.status_code == 409 and "another window" in response.json()["detail"]
        second.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": True})
        second.http.post("/close", json={"session": second.session}).raise_for_status()
        assert len(served.hall.leases) == 0 and served.keeps_nothing()
        assert second.http.post("/undo", json={"session": second.session}).status_code == 410
        first.http.close()
        second.http.close()


def test_only_the_newest_sessions_that_were_taken_over_are_remembered(model, folder, output, monkeypatch):
    monkeypatch.setattr(viewer, "MOST_TAKEN", 2)
    with serving(model, images=folder, output=output) as served:
        pages = [Page(served).open("a") for _ in range(4)]
        statuses = [page.http.post("/heartbeat", json={"session": page.session}).status_code for page in pages]
        assert statuses == [410, 409, 409, 200]
        for page in pages:
            page.http.close()


@pytest.mark.parametrize(("known", "told"), [(["RAS", "LPI"], True), (["LPS"], False), (None, False)])
def test_an_image_in_an_orientation_unlike_the_trainings_is_told_in_log_and_page(
    model, folder, output, caplog, known, told
):
    plans = json.loads((model / "plans.json").read_text())
    sam3d = {} if known is None else {"sam3d": plans.get("sam3d", {}) | {"orientations": known}}
    (model / "plans.json").write_text(json.dumps(plans | sam3d))
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        state = page.http.get("/progress", params={"session": page.session}).json()
        page.http.close()
    logged = [text.removeprefix("Warning: ") for text in caplog.messages if "orientation" in text]
    assert state["warnings"] == logged and len(logged) == told
    if told:
        assert (
            "a_0000.nii.gz is stored in the orientation LPS, all images of the training were in RAS, LPI" in logged[0]
        )


def test_prompts_of_before_that_cannot_be_read_are_told(model, folder, output):
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        page.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": True})
        page.http.close()
    (output / "a_prompts.json").write_text("{")
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        (warning,) = page.http.get("/progress", params={"session": page.session}).json()["warnings"]
        assert "a_prompts.json" in warning and "the prompts of before are left out" in warning
        page.http.close()


def test_what_the_page_should_not_send_is_refused_and_changes_nothing(page, output):
    page.open("a")
    before = page.labels.copy()
    for path, said in (
        ("click", {"class": "lesion", "at": [7, 0, 0], "positive": True}),
        ("click", {"class": "lesion", "at": [-1, 0, 0], "positive": True}),
        ("click", {"class": "liver", "at": [1, 0, 0], "positive": True}),
        ("click", {"class": "lesion", "at": [1, 0], "positive": True}),
        ("click", {"class": "lesion", "at": [1.5, 0, 0], "positive": True}),
        ("click", {"class": "lesion", "at": [1, 0, 0], "positive": True, "more": 1}),
        ("click", {"class": "lesion", "at": [10**400, 0, 0], "positive": True}),
        ("scribble", {"class": "lesion", "at": [[1, 0, 0], [7, 0, 0]], "positive": True}),
        ("scribble", {"class": "lesion", "at": [[1, 0, 0], [1, -1, 0]], "positive": True}),
        ("scribble", {"class": "lesion", "at": [[1, 0, 10**400]], "positive": True}),
        ("scribble", {"class": "liver", "at": [[1, 0, 0]], "positive": True}),
        ("scribble", {"class": "lesion", "at": [], "positive": True}),
        ("scribble", {"class": "lesion", "at": [1, 0, 0], "positive": True}),
        ("scribble", {"class": "lesion", "at": [[1, 0]], "positive": True}),
        ("scribble", {"class": "lesion", "at": [[1, 0, 0]] * (LARGEST_SCRIBBLE + 1), "positive": True}),
        ("scribble", {"class": "lesion", "at": [[1, 0, 0]], "positive": True, "more": " " * 64 * LARGEST_SCRIBBLE}),
        ("box", {"class": "lesion", "low": [9, 9, 9], "high": [12, 12, 12]}),
        ("box", {"class": "lesion", "low": [1, 0, 0], "high": [10**400, 0, 0]}),
        ("undo", {"session": "x"}),
        ("open", {"case": "../a"}),
    ):
        content = said if "session" in said or path == "open" else {"session": page.session, **said}
        response = page.http.post(f"/{path}", json=content)
        assert response.status_code in (400, 410) and response.json()["detail"]
        assert "--max-upload" not in response.json()["detail"]  # which would not help
    for label, box, mask in (
        (9, [[0, 1], [0, 1], [0, 1]], np.ones((1, 1, 1))),
        (1, [[0, 6], [0, 1], [0, 1]], np.ones((6, 1, 1))),
        (1, [[1, 1], [0, 1], [0, 1]], np.ones((1, 1, 1))),
        (1, [[0, 1], [0, 1], [0, 1]], np.ones((1, 2, 1))),
        (1, [[0, 2], [0, 1], [0, 1]], np.ones((1, 1, 1))),
    ):
        with pytest.raises(httpx.HTTPStatusError, match="400") as refused:
            page.paint(label, box, mask)
        assert "--max-upload" not in refused.value.response.json()["detail"]
    assert page.http.get("/image", params={"session": page.session, "channel": "1"}).status_code == 400
    assert page.http.get("/image", params={"session": page.session, "channel": "x"}).status_code == 400
    np.testing.assert_array_equal(page.fetch("labels")[0], before)
    assert not (output / "a.nii.gz").exists()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_thousand_random_requests_of_the_page_and_of_itk_snap_crash_nothing(model, folder, output):
    rng = np.random.default_rng(11)
    with serving(model, images=folder, output=output) as served:
        page = Page(served).open("a")
        said = [
            {"session": page.session, "class": "lesion", "at": [3, 4, 2], "positive": True},
            {"session": page.session, "class": "organ", "low": [1, 2, 1], "high": [4, 5, 1]},
            {"session": page.session, "class": "lesion", "at": [[1, 2, 1], [2, 3, 1]], "positive": False},
            *({"session": page.session}, {"case": "b"}, {"session": "x", "case": "../../x"}, {}),
        ]
        paths = [
            *(f"viewer/api/{name}" for name in ("click", "scribble", "box", "undo", "redo", "reset", "save", "open")),
            "viewer/api/heartbeat",
            *(f"viewer/api/{name}?session={page.session}&channel=0" for name in ("paint", "labels", "image")),
            *("viewer/api/progress?session=", "viewer/main.js", "viewer/%00", "v2/models", "v2/start_session/lesion"),
            *("start_session", "upload_raw/x", f"upload_raw/{page.session}", f"v2/reset_interactions/{page.session}"),
            *(f"process_point_interaction/{page.session}?x=1&y=2&z=3", "status", "add_point_interaction", "undo"),
        ]
        statuses = set()
        with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as http:
            for _ in range(1000):
                body = bytearray(json.dumps(said[rng.integers(len(said))]).encode())
                for _ in range(rng.integers(0, 3)):
                    body[rng.integers(len(body))] = rng.integers(256)
                meta = ['{"label":1,"box":[[0,1],[0,2],[0,3]]}', '{"label":-1}', "[]", '{"label":1,"box":[[0,9]]}']
                path, headers = str(rng.choice(paths)), {"X-Meta": str(rng.choice(meta)), "X-Lease-Token": page.session}
                method = str(rng.choice(["POST", "POST", "POST", "GET", "GET", "PUT"]))
                if method == "GET":
                    body = b""
                response = http.request(method, f"/{path}", content=bytes(body), headers=headers)
                statuses.add(response.status_code)
                assert response.status_code < 500 or response.status_code == 503, (method, path, body, response.text)
                for lease in served.hall.leases.all():
                    if lease.token != page.session and not lease.running:
                        served.hall.leases.release(lease.token)
        assert {200, 400, 405, 410} <= statuses
        np.testing.assert_array_equal(labels_of(output / "a.nii.gz"), page.fetch("labels")[0])
        page.http.close()


def test_a_full_disk_is_told_and_what_was_done_is_kept(page, output, monkeypatch):
    page.open("a")
    monkeypatch.setattr(case_files, "write_label_map", lambda *_: os.open("/dev/full/x", os.O_RDONLY))
    meta = page.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": True})
    assert meta["saved"] is None and "cannot be written" in meta["message"]
    assert page.http.post("/save", json={"session": page.session}).status_code == 400
    monkeypatch.undo()
    assert page.http.post("/save", json={"session": page.session}).json()["saved"] == "a.nii.gz"
    np.testing.assert_array_equal(labels_of(output / "a.nii.gz"), page.labels)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_other_formats_are_saved_as_what_the_images_are(tmp_path, output, ending):
    model = make_promptable_model(tmp_path / "results", ending=ending)
    file = tmp_path / "images" / f"a_0000{ending}"
    write_image(file, 3, direction=FLIPPED)
    with serving(model, images=file.parent, output=output) as served:
        page = Page(served).open("a")
        np.testing.assert_array_equal(page.fetch("image")[0], labels_of(file))
        for positive in (True, False):
            page.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": positive})
            assert (page.labels[2, 4, 3] == 2) == positive
        page.http.close()
    with serving(model, images=file.parent, output=output) as served:
        again = Page(served).open("a")
        np.testing.assert_array_equal(again.labels, page.labels)
        again.http.close()
    np.testing.assert_array_equal(labels_of(output / f"a{ending}"), page.labels)


def test_a_writer_that_fails_in_its_own_way_is_told_too(page, monkeypatch):
    def fail(*_):
        raise RuntimeError("no space left")

    page.open("a")
    monkeypatch.setattr(case_files, "write_label_map", fail)
    meta = page.change("click", **{"class": "lesion", "at": [3, 4, 2], "positive": True})
    assert meta["saved"] is None and "cannot be written (no space left)" in meta["message"]


def test_the_key_opens_the_page_once_and_becomes_a_cookie(model, folder, output):
    with (
        serving(model, images=folder, output=output, key="secret") as served,
        httpx.Client(base_url=served.url, trust_env=False) as client,
    ):
        assert client.get("/viewer/").status_code == 401
        assert client.get("/viewer/?key=wrong").status_code == 401
        assert client.get("/viewer/api/state").status_code == 401
        response = client.get("/viewer/?key=secret")
        assert (response.status_code, response.headers["Location"]) == (302, "/viewer/")
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "secret" not in cookie
        assert client.get("/viewer/api/state").status_code == 200
        page = client.get("/viewer/")
        assert page.headers["Content-Type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert client.get("/viewer/../serving/access.py").status_code in (401, 404)
        assert client.get("/viewer/%2e%2e%2faccess.py").status_code == 404


SAVE_FOR_EVER = """
import sys, numpy as np
sys.path.insert(0, {tests!r})
from pathlib import Path
from sam3dnet.model import load_model
from sam3dnet.inference.images import Case
from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.serving.casework import CaseWork
model = load_model({model!r}, device="cpu")
case = Case("a", (Path({image!r}),))
classes = prompt_classes(model.loaded.labels)
work = CaseWork(model.session(), case, model.loaded.reader, classes, Path({out!r}), ".nii.gz")
work.open()
print("ready", flush=True)
while True:
    for label in (1, 2):
        work.paint(label, ((0, 5), (0, 9), (0, 7)), np.ones((5, 9, 7), bool))
        work.save()
"""


def test_a_process_that_is_killed_while_it_saves_leaves_whole_files(tmp_path, model, folder, output):
    output.mkdir()
    script = tmp_path / "save.py"
    tests = os.path.dirname(__file__)
    image = folder / "a_0000.nii.gz"
    script.write_text(SAVE_FOR_EVER.format(tests=tests, model=str(model), image=str(image), out=str(output)))
    for seed in range(3):
        with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3 + 0.13 * seed)
            process.send_signal(signal.SIGKILL)
        labels = labels_of(output / "a.nii.gz")
        assert labels.min() == labels.max() and labels.max() in (1, 2)
        json.loads((output / "a_prompts.json").read_text())
    with serving(model, images=folder, output=output):
        assert sorted(file.name for file in output.iterdir()) == ["a.nii.gz", "a_prompts.json"]


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [
        *(("bool", "uint8"), ("uint8", "uint8"), ("int8", "int16"), ("int16", "int16"), (">i2", "int16")),
        *(("uint16", "uint16"), ("int32", "int16"), ("uint32", "int16"), ("int64", "int16"), ("float32", "float32")),
        *(("float64", "float32"), (">f4", "float32"), ("float16", "float32")),
    ],
)
def test_voxels_come_in_types_that_the_page_draws(dtype, shown):
    values = np.array([[[0, 1], [1, 0]]]).astype(dtype)
    drawn = as_drawn(values)
    assert drawn.dtype == np.dtype(shown) and drawn.dtype.isnative
    np.testing.assert_array_equal(drawn, values)
    assert as_drawn(np.array([[[0, 60000]]], np.int32)).dtype == np.uint16
    assert as_drawn(np.array([[[-1, 60000]]], np.int32)).dtype == np.float32


def test_further_channels_are_shown(tmp_path, output):
    model = make_promptable_model(tmp_path / "results", num_channels=2)
    for channel in (0, 1):
        write_image(tmp_path / "images" / f"a_000{channel}.nii.gz", channel)
    with serving(model, images=tmp_path / "images", output=output) as served:
        page = Page(served).open("a")
        for channel in (0, 1):
            voxels, meta = page.fetch("image", channel=channel)
            file = tmp_path / "images" / f"a_000{channel}.nii.gz"
            np.testing.assert_array_equal(voxels, labels_of(file))
            assert len(meta["channels"]) == 2
        page.http.close()


def test_work_that_is_not_ready_says_so(tmp_path, model, folder):
    loaded = load_model(model, device="cpu")
    classes = prompt_classes(loaded.loaded.labels)
    case = Case("a", (folder / "a_0000.nii.gz",))
    work = CaseWork(loaded.session(), case, loaded.loaded.reader, classes, tmp_path / "out", ".nii.gz")
    for act in (work.undo, work.redo, work.reset, work.save, work.labels):
        with pytest.raises(Exception, match="still being segmented"):
            act()
