"""What tests of the page do in a browser; the browser itself is a fixture, in conftest.py."""

import shutil
import time
from importlib.util import find_spec

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIETLY = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
WAIT_MS = 30_000

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="there is no Chromium on this machine, or playwright is not installed (pip install playwright)",
)


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
