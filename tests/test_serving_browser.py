"""The page in headless Chromium: load, click, see the voxel change in the file that was saved, undo, save, reload."""

import shutil
import time

import numpy as np
import pytest
import SimpleITK as sitk
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import OBLIQUE, labels_of, write_image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

SHAPE = (11, 24, 17)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TURNED = (0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
QUIETLY = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
        yield made
        made.close()


@pytest.fixture
def open_page(browser):
    """Open an address in a new window; what the page writes to its console is an error."""
    windows, said = [], []

    def make(address, **options):
        window = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        windows.append(window)
        page = window.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda problem: said.append(str(problem)))
        page.goto(address)
        wait_for(page, lambda now: now["session"] and not now["busy"])
        return page

    make.said = said
    yield make
    for window in windows:
        window.close()


def wait_for(page, is_so):
    """Wait until the page's state is as it should be; by asking, since its policy forbids scripts from elsewhere."""
    end = time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < end:
        now = page.evaluate("window.sam3d ? window.sam3d.state() : null")
        if now is not None and is_so(now):
            return
        page.wait_for_timeout(30)
    raise AssertionError(f"the page did not come to that; its state is {now}")


def click_at(page, voxel, plane="axial", **options):
    """Click on a voxel (i, j, k)."""
    page.evaluate("([i, j, k]) => window.sam3d.goTo(i, j, k)", list(voxel))
    page.wait_for_timeout(100)
    place = page.evaluate("([p, i, j, k]) => window.sam3d.planePoint(p, i, j, k)", [plane, *voxel])
    page.mouse.click(place["x"], place["y"], **options)


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


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz", 3, SHAPE, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_image(tmp_path / "images" / "b_0000.nii.gz", 4, SHAPE, direction=FLIPPED)
    return tmp_path / "images"


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
