"""The page in headless Chromium: load, click, see the voxel change in the file that was saved, undo, save, reload."""

import json
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from browsing import click_at, needs_browser, wait_for
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import OBLIQUE, labels_of, write_image

pytestmark = needs_browser

SHAPE = (11, 24, 17)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TURNED = (0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz", 3, SHAPE, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_image(tmp_path / "images" / "b_0000.nii.gz", 4, SHAPE, direction=FLIPPED)
    return tmp_path / "images"


def press_at(page, voxels, plane, button="left"):
    """Press a button on a voxel and drag over others, with one event for each; it is still held."""
    page.evaluate("([i, j, k]) => window.sam3d.goTo(i, j, k)", list(voxels[0]))
    page.wait_for_timeout(100)
    canvas = page.locator(f"canvas.over[data-canvas={plane}]").bounding_box()
    for number, voxel in enumerate(voxels):
        place = page.evaluate("([p, i, j, k]) => window.sam3d.planePoint(p, i, j, k)", [plane, *voxel])
        assert 0 < place["x"] - canvas["x"] < canvas["width"] and 0 < place["y"] - canvas["y"] < canvas["height"]
        page.mouse.move(place["x"], place["y"])
        if number == 0:
            page.mouse.down(button=button)


def is_a_line_through(drawn, voxels):
    """Tell whether voxels are those of straight lines between others: without holes, each once, none beside."""
    drawn, ends = np.array(drawn), np.array(voxels)
    shares = np.linspace(0, 1, 200)[:, None]
    line = np.concatenate([first + (last - first) * shares for first, last in pairwise(ends)])
    beside = max(np.abs(line - one).max(1).min() for one in drawn)
    has_ends = (drawn[0] == ends[0]).all() and (drawn[-1] == ends[-1]).all()
    steps = np.abs(np.diff(drawn, axis=0)).max(1)
    return bool(has_ends and (steps == 1).all() and len(np.unique(drawn, axis=0)) == len(drawn) and beside <= 0.52)


@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED, TURNED], ids=["oblique", "flipped", "turned"])
def test_each_voxel_of_a_scribble_obeys_in_the_file_that_is_saved(tmp_path, open_page, direction):
    model, file = make_promptable_model(tmp_path / "results"), tmp_path / "images" / "a_0000.nii.gz"
    write_image(file, 3, SHAPE, direction=direction)
    output = tmp_path / "out"
    depths = dict(zip(("axial", "coronal", "sagittal"), (1, 0, 2) if direction is TURNED else (2, 1, 0), strict=True))
    corners = np.array([(3, 6, 2), (12, 11, 4), (13, 18, 8)])
    with serving(model, images=file.parent, output=output) as served:
        page = open_page(f"{served.url}/viewer/")
        page.keyboard.press("2")
        page.keyboard.press("i")
        number = 0
        for plane, depth in depths.items():
            voxels = np.where(np.arange(3) == depth, 5, corners).tolist()
            page.keyboard.press({"axial": "a", "coronal": "c", "sagittal": "s"}[plane])
            page.keyboard.press({"axial": "+", "coronal": "-", "sagittal": "0"}[plane])
            for button in ("left", "right"):
                press_at(page, voxels, plane, button)
                page.mouse.up(button=button)
                number += 1
                wait_for(page, lambda now, n=number: now["undo"] == n and not now["busy"])
                said = page.evaluate("window.sam3d.state().prompts")[-1]
                assert (said["kind"], said["class"], said["positive"]) == ("scribble", "lesion", button == "left")
                assert is_a_line_through(said["at"], voxels), (plane, said["at"])
                saved = labels_of(output / "a.nii.gz")
                assert {bool(saved[k, j, i] == 2) for i, j, k in said["at"]} == {button == "left"}
        press_at(page, [(7, 12, 5)], "sagittal")
        page.mouse.up()
        wait_for(page, lambda now: now["undo"] == number + 1 and not now["busy"])
        assert page.evaluate("window.sam3d.state().prompts")[-1]["at"] == [[7, 12, 5]]
        press_at(page, voxels, "sagittal")
        page.keyboard.press("Escape")
        page.mouse.up()
        page.keyboard.press("Control+z")
        wait_for(page, lambda now: now["undo"] == number and not now["busy"])
        page.reload()
        wait_for(page, lambda now: now["session"] and not now["busy"])
        assert [said["kind"] for said in page.evaluate("window.sam3d.state().prompts")] == ["scribble"] * number
    assert not open_page.said


def test_scribbles_and_boxes_by_the_keys_alone(tmp_path, folder, open_page):
    model, output = make_promptable_model(tmp_path / "results"), tmp_path / "out"
    with serving(model, images=folder, output=output) as served:
        page = open_page(f"{served.url}/viewer/")

        def press(*keys):
            for key in keys:
                page.keyboard.press(key)

        def said_after(number):
            wait_for(page, lambda now: now["undo"] == number and not now["busy"])
            return page.evaluate("window.sam3d.state()")

        page.evaluate("window.sam3d.goTo(5, 8, 4)")
        press("2", "i", "Shift+ArrowRight", "Escape")
        assert page.evaluate("window.sam3d.state().draft") is None
        page.evaluate("window.sam3d.goTo(5, 8, 4)")
        press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "ArrowDown", "Shift+ArrowLeft")
        assert "Shift + Enter: does not" in page.locator("#hint").text_content()
        press("Enter")
        places = [[5, 8, 4], [6, 8, 4], [7, 8, 4], [7, 9, 4], [7, 10, 4], [6, 10, 4]]
        last = said_after(1)["prompts"][-1]
        assert (last["kind"], last["at"], last["positive"]) == ("scribble", places, True)
        assert all(labels_of(output / "a.nii.gz")[k, j, i] == 2 for i, j, k in places)
        page.evaluate("window.sam3d.goTo(9, 8, 4)")
        press("c", "Shift+ArrowUp", "Shift+Enter")
        last = said_after(2)["prompts"][-1]
        assert (last["at"], last["positive"]) == ([[9, 8, 4], [9, 8, 5]], False)
        assert all(labels_of(output / "a.nii.gz")[k, 8, 9] != 2 for k in (4, 5))
        press("Shift+Enter")
        assert said_after(3)["prompts"][-1]["at"] == [[9, 8, 5]]

        page.evaluate("window.sam3d.goTo(10, 12, 7)")
        press("x", "Enter", "ArrowLeft", "Escape")
        assert page.evaluate("window.sam3d.state().draft") is None
        press("a", "Enter", *["ArrowLeft"] * 3, *["ArrowDown"] * 2, "PageDown")
        assert "press Enter again" in page.locator("#hint").text_content()
        press("Enter")
        last = said_after(4)["prompts"][-1]
        assert (last["kind"], last["low"], last["high"]) == ("box", [6, 12, 6], [9, 14, 7])
        assert page.evaluate("window.sam3d.state().draft") is None
        press("Enter", "b")
        assert page.evaluate("window.sam3d.state().draft") is None
        press("?")
        shown = page.locator("#help-dialog").text_content()
        assert "Scribble: draw from the cross-hair" in shown and "Box: at one corner" in shown
    assert not open_page.said


def test_another_orientation_than_the_trainings_is_said_until_it_is_dismissed(tmp_path, folder, open_page):
    model, output = make_promptable_model(tmp_path / "results"), tmp_path / "out"
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"sam3d": plans.get("sam3d", {}) | {"orientations": ["LPS"]}}))
    with serving(model, images=folder, output=output) as served:
        page = open_page(f"{served.url}/viewer/#b")
        banner = page.locator("#banner")
        assert "b_0000.nii.gz is stored in the orientation RPI" in banner.text_content()
        page.keyboard.press("Control+s")  # whose message comes before it, for a while
        wait_for(page, lambda now: now["message"] and "Saved" in now["message"])
        assert "Saved" in banner.text_content()
        page.keyboard.press("Escape")
        assert "is stored in the orientation RPI" in banner.text_content() and banner.is_visible()
        page.locator("#banner-close").click()
        assert banner.is_hidden()
        page.keyboard.press("Shift+n")
        wait_for(page, lambda now: now["case"] == "a" and now["ready"])
        assert banner.is_hidden()
    assert not [text for text in open_page.said if "Failed to fetch" not in text]


@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED, TURNED], ids=["oblique", "flipped", "turned"])
def test_a_click_changes_the_voxel_that_was_clicked_in_the_file_that_is_saved(tmp_path, open_page, direction):
    model, file = make_promptable_model(tmp_path / "results"), tmp_path / "images" / "a_0000.nii.gz"
    write_image(file, 3, SHAPE, direction=direction)
    output = tmp_path / "out"
    with serving(model, images=file.parent, output=output, key="a key") as served:
        page = open_page(f"{served.url}/viewer/?key=a%20key")
        assert "key" not in page.url
        page.keyboard.press("2")
        places = [("axial", (3, 6, 4)), ("coronal", (12, 15, 8)), ("sagittal", (9, 4, 2))]
        shown = None
        for number, (plane, voxel) in enumerate(places, start=1):
            before = page.evaluate("([i, j, k]) => window.sam3d.labelAt(i, j, k)", list(voxel))
            click_at(page, voxel, plane, button="right" if before == 2 else "left")
            wait_for(page, lambda now, n=number: now["undo"] == n and not now["busy"])
            shown = labels_of(output / "a.nii.gz")
            assert (shown[voxel[::-1]] == 2) == (before != 2)
            assert page.evaluate("([i, j, k]) => window.sam3d.labelAt(i, j, k)", list(voxel)) == shown[voxel[::-1]]
        page.keyboard.press("Control+z")
        wait_for(page, lambda now: now["undo"] == 2 and not now["busy"])
        undone = labels_of(output / "a.nii.gz")
        assert (undone != shown).any()
        page.keyboard.press("Control+Shift+z")
        wait_for(page, lambda now: now["undo"] == 3 and not now["busy"])
        np.testing.assert_array_equal(labels_of(output / "a.nii.gz"), shown)
        page.reload()
        wait_for(page, lambda now: now["session"] and not now["busy"])
        for _, voxel in places:
            label = page.evaluate("([i, j, k]) => window.sam3d.labelAt(i, j, k)", list(voxel))
            assert label == shown[voxel[::-1]]
        image = sitk.ReadImage(str(output / "a.nii.gz"))
        assert image.GetDirection() == pytest.approx(direction, abs=1e-5)
    assert not open_page.said


def test_letters_box_brush_and_the_next_image(tmp_path, folder, open_page):
    model, output = make_promptable_model(tmp_path / "results"), tmp_path / "out"
    with serving(model, images=folder, output=output) as served:
        page = open_page(f"{served.url}/viewer/")
        assert page.evaluate("window.sam3d.letters('axial')") == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
        page.keyboard.press("b")
        page.keyboard.press("2")
        place = page.evaluate("window.sam3d.planePoint('axial', 3, 5, 5)")
        page.evaluate("window.sam3d.goTo(3, 5, 5)")
        page.mouse.move(place["x"], place["y"])
        page.mouse.down()
        page.mouse.up()
        wait_for(page, lambda now: now["undo"] == 1 and not now["busy"])
        assert labels_of(output / "a.nii.gz")[5, 5, 3] == 2
        page.keyboard.press("x")
        corners = [
            page.evaluate("([i, j]) => window.sam3d.planePoint('axial', i, j, 5)", at) for at in ([8, 9], [12, 15])
        ]
        page.mouse.move(corners[0]["x"], corners[0]["y"])
        page.mouse.down()
        page.mouse.move(corners[1]["x"], corners[1]["y"], steps=4)
        page.mouse.up()
        wait_for(page, lambda now: now["undo"] == 2 and not now["busy"])
        (said,) = page.evaluate("window.sam3d.state().prompts")
        assert (said["kind"], said["low"], said["high"]) == ("box", [8, 9, 5], [12, 15, 5])
        page.keyboard.press("n")
        wait_for(page, lambda now: now["case"] == "b" and now["ready"])
        assert page.evaluate("window.sam3d.letters('coronal')") == {
            "left": "R",
            "right": "L",
            "top": "S",
            "bottom": "I",
        }
        assert page.evaluate("window.sam3d.letters('sagittal')") == {
            "left": "A",
            "right": "P",
            "top": "S",
            "bottom": "I",
        }
    assert not [text for text in open_page.said if "Failed to fetch" not in text]


def test_a_server_that_was_started_anew_goes_on_with_the_open_page(tmp_path, folder, open_page):
    model, output = make_promptable_model(tmp_path / "results"), tmp_path / "out"
    with serving(model, images=folder, output=output) as served:
        page = open_page(f"{served.url}/viewer/")
        page.keyboard.press("2")
        before = page.evaluate("window.sam3d.labelAt(4, 6, 3)")
        click_at(page, (4, 6, 3), button="right" if before == 2 else "left")
        wait_for(page, lambda now: now["undo"] == 1 and not now["busy"])
        first, port = page.evaluate("window.sam3d.state().session"), served.port
    saved = labels_of(output / "a.nii.gz")
    with serving(model, images=folder, output=output, port=port):
        click_at(page, (9, 14, 7))  # says the server's anew, or what is there already
        wait_for(page, lambda now: now["session"] not in (None, first) and not now["busy"] and now["undo"] >= 1)
        assert page.evaluate("window.sam3d.labelAt(4, 6, 3)") == saved[3, 6, 4]
        page.keyboard.press("Control+z")
        wait_for(page, lambda now: not now["busy"])
