"""A rerun does what is missing, damaged or stale, and leaves the rest alone."""

import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_prompts import make_promptable_model, write_prompts
from faults import disk_that_ends_after
from tiny_models import truncate, write_image

from sam3dnet.inference import predictor
from sam3dnet.inference.writing import UNFINISHED


def test_a_failed_export_leaves_no_file_and_the_next_run_writes_it(predict, tmp_path, monkeypatch):
    real = predictor.write_label_map

    def fail_on_b(labels, path, *arguments):
        if path.name == "b.nii.gz":
            raise OSError("No space left on device")
        real(labels, path, *arguments)

    monkeypatch.setattr(predictor, "write_label_map", fail_on_b)
    report = predict()
    assert report.written == ["a", "c"]
    assert "No space left on device" in report.failed["b"]
    monkeypatch.undo()
    report = predict()
    assert (report.written, report.skipped, report.failed) == (["b"], ["a", "c"], {})


def test_a_rerun_does_only_what_is_missing_or_truncated(predict, tmp_path):
    predict()
    before = {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"}
    (tmp_path / "out" / "a.nii.gz").unlink()
    truncate(tmp_path / "out" / "b.nii.gz")
    report = predict()
    assert (report.written, report.skipped) == (["a", "b"], ["c"])
    assert {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"} == before


def test_an_output_of_another_shape_is_made_anew(predict, tmp_path):
    predict()
    write_image(tmp_path / "out" / "b.nii.gz", shape=(4, 9, 7))
    assert predict().written == ["b"]


def test_a_newer_image_is_predicted_again(predict, images, tmp_path):
    predict()
    later = (tmp_path / "out" / "b.nii.gz").stat().st_mtime + 5
    os.utime(images / "b_0000.nii.gz", (later, later))
    assert predict().written == ["b"]


def test_other_settings_make_all_anew(predict, caplog):
    predict()
    with caplog.at_level(logging.WARNING):
        assert predict(step_size=0.9).written == ["a", "b", "c"]
    assert "with other settings" in caplog.text


def test_a_run_with_named_objects_alone_and_one_without_do_not_keep_each_others_files(predict, tmp_path):
    click = {"points": [{"at": [3, 4, 2]}]}
    options = {"model": make_promptable_model(tmp_path / "promptable")}
    options["prompts"] = write_prompts(tmp_path / "prompts.json", {"b": {"lesion": click}})
    predict(**options)
    assert predict(**options, instance=True).written == ["b"]
    assert predict(**options, instance=True).written == []
    assert predict(**options).written == ["b"]
    write_prompts(tmp_path / "prompts.json", {"b": {"lesion": click | {"instance": True}}})
    assert predict(**options).written == ["b"]
    assert predict(**options).written == []
    write_prompts(tmp_path / "prompts.json", {"b": {"lesion": click | {"instance": False}}})
    assert predict(**options).written == ["b"]


def test_a_label_map_of_others_is_not_overwritten(predict, images, tmp_path):
    write_image(tmp_path / "out" / "b.nii.gz")
    later = (images / "b_0000.nii.gz").stat().st_mtime + 5
    os.utime(tmp_path / "out" / "b.nii.gz", (later, later))
    before = (tmp_path / "out" / "b.nii.gz").read_bytes()
    assert predict().skipped == ["b"]
    assert (tmp_path / "out" / "b.nii.gz").read_bytes() == before


def test_what_an_interrupted_run_left_is_removed(predict, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    left = tmp_path / "out" / f"{UNFINISHED}{socket.gethostname()}-{ended.stdout.strip()}-x"
    left.mkdir(parents=True)
    (left / "a.nii.gz").write_bytes(b"half")
    assert predict().written == ["a", "b", "c"]
    assert not left.exists()


def names_in(folder):
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("share", [0.3, 0.75, 0.99])
def test_a_full_disk_leaves_no_label_map_and_the_next_run_writes_it(predict, model, images, tmp_path, share):
    """ITK's writer of NIfTI does not tell, and 99 % of the bytes are enough for the header and most voxels."""
    from sam3dnet.inference.models import load_model
    from sam3dnet.inference.writing import write_label_map

    predict()
    before = (tmp_path / "out" / "b.nii.gz").read_bytes()
    (tmp_path / "out" / "b.nii.gz").unlink()
    reader = load_model(model).reader
    image, properties = reader.read_images([str(images / "b_0000.nii.gz")])
    arguments = (image[0].astype("u1"), tmp_path / "out" / "b.nii.gz", images / "b_0000.nii.gz", properties, reader)
    with (
        disk_that_ends_after(int(share * len(before))),
        pytest.raises(OSError, match="could not be written whole"),
    ):
        write_label_map(*arguments)
    assert "b.nii.gz" not in names_in(tmp_path / "out")
    assert predict().written == ["b"]
    assert (tmp_path / "out" / "b.nii.gz").read_bytes() == before


def test_a_full_disk_costs_the_cases_that_find_no_place(predict, monkeypatch, tmp_path):
    real = predictor.write_label_map

    def write_on_a_full_disk(labels, path, *rest):
        with disk_that_ends_after(200 if path.name == "b.nii.gz" else 1 << 30):
            real(labels, path, *rest)

    monkeypatch.setattr(predictor, "write_label_map", write_on_a_full_disk)
    report = predict()
    assert report.written == ["a", "c"]
    assert report.failed["b"].endswith("could not be written whole; is the disk full?")
    assert "b.nii.gz" not in names_in(tmp_path / "out")


KILLED_AT_WORK = """
import os, signal, sys
from commands import predict_folder
from sam3dnet.inference import writing
from sam3dnet.inference.writing import UNFINISHED
real = writing._write
def die_at_the_second(labels, path, *rest):
    real(labels, path, *rest)
    if path.name == "b.nii.gz":
        os.kill(os.getpid(), signal.SIGKILL)
writing._write = die_at_the_second
predict_folder(*sys.argv[1:], device="cpu")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_run_leaves_only_whole_files_and_the_next_one_goes_on(predict, model, images, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    folders = [str(folder) for folder in (images, tmp_path / "out", model)]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_WORK, *folders], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    finished = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert finished == {"a.nii.gz"}
    report = predict()
    assert (report.written, report.skipped, report.failed) == (["b", "c"], ["a"], {})
    assert not list((tmp_path / "out").glob(f"{UNFINISHED}*"))
