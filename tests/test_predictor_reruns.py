"""A rerun does what is missing, damaged or stale, and leaves the rest alone."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cascades import make_cascade_model
from commands import predict_folder
from fake_prompts import make_promptable_model, write_prompts
from faults import disk_that_ends_after
from tiny_models import labels_of, make_model, truncate, write_image

from sam3dnet.inference import output_record, predictor
from sam3dnet.inference.calibration import Pairs, Validated
from sam3dnet.inference.output_record import PROMPTS_ENDING
from sam3dnet.inference.writing import UNFINISHED
from sam3dnet.preprocessing.records import file_digest


def test_a_failed_export_leaves_no_file_and_the_next_run_writes_it(predict, tmp_path, monkeypatch):
    real = predictor.write_noted_label_map

    def fail_on_b(labels, path, *arguments):
        if path.name == "b.nii.gz":
            raise OSError("No space left on device")
        real(labels, path, *arguments)

    monkeypatch.setattr(predictor, "write_noted_label_map", fail_on_b)
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


def test_a_label_map_of_another_shape_is_no_result_and_not_lost(predict, tmp_path):
    predict()
    write_image(tmp_path / "out" / "b.nii.gz", shape=(4, 9, 7))
    before = (tmp_path / "out" / "b.nii.gz").read_bytes()
    report = predict()
    assert (report.written, report.skipped, list(report.failed)) == ([], ["a", "c"], ["b"])
    assert "has another shape than the image; give another folder with -o" in report.failed["b"]
    assert (tmp_path / "out" / "b.nii.gz").read_bytes() == before


def date(file, seconds):
    """Give a file a time that many seconds from now."""
    moment = time.time() + seconds
    os.utime(file, (moment, moment))


@pytest.mark.parametrize("seconds", [5, -5000])
def test_another_image_is_predicted_however_old_it_is(predict, images, tmp_path, seconds):
    predict()
    before = labels_of(tmp_path / "out" / "b.nii.gz")
    write_image(images / "b_0000.nii.gz", seed=7)
    date(images / "b_0000.nii.gz", seconds)
    assert predict().written == ["b"]
    assert not np.array_equal(labels_of(tmp_path / "out" / "b.nii.gz"), before)
    assert predict().written == []


def test_other_images_of_the_same_names_in_another_folder_are_predicted(predict, images, tmp_path):
    predict()
    for seed, name in enumerate("abc", start=5):
        write_image(tmp_path / "others" / f"{name}_0000.nii.gz", seed)
        date(tmp_path / "others" / f"{name}_0000.nii.gz", -5000)
    shutil.copy2(images / "c_0000.nii.gz", tmp_path / "others" / "c_0000.nii.gz")
    images.rename(tmp_path / "first")
    (tmp_path / "others").rename(images)
    report = predict()
    assert (report.written, report.skipped) == (["a", "b"], ["c"])


def test_the_same_images_elsewhere_and_newer_are_there_already(predict, images, tmp_path):
    predict()
    images.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", images, copy_function=shutil.copyfile)
    date(images / "b_0000.nii.gz", 5)
    assert predict().skipped == ["a", "b", "c"]


def as_before_entries(out):
    """Make a folder as versions left it that knew nothing of single label maps."""
    shutil.rmtree(out / "sam3d_records")
    record = json.loads((out / "sam3d_prediction.json").read_text())
    (out / "sam3d_prediction.json").write_text(json.dumps({k: v for k, v in record.items() if k != "entries"}))


def test_in_folders_of_earlier_versions_name_shape_and_time_count(predict, images, tmp_path):
    out = tmp_path / "out"
    predict()
    as_before_entries(out)
    assert predict().skipped == ["a", "b", "c"]
    date(images / "b_0000.nii.gz", 5)
    assert predict().written == ["b"]
    assert predict(step_size=0.9, num_parts=3, part_id=0).written == ["a"]
    assert predict(step_size=0.9).written == ["b", "c"]
    assert predict(step_size=0.9).written == []


def test_after_part_of_the_cases_was_made_with_other_settings_the_rest_is_not_taken_for_it(predict, tmp_path, caplog):
    predict()
    parts = [predict(step_size=0.9, num_parts=2, part_id=part).written for part in (0, 1)]
    assert parts == [["a", "c"], ["b"]]
    assert predict(step_size=0.9).written == []
    assert predict(num_parts=3, part_id=1).written == ["b"]
    with caplog.at_level(logging.WARNING):
        assert predict().written == ["a", "c"]
    assert "with other settings" in caplog.text


def draw_into(file):
    """Change a voxel, as somebody who corrects a label map."""
    image = sitk.ReadImage(str(file))
    image[3, 4, 2] = 2 - image[3, 4, 2]
    sitk.WriteImage(image, str(file))
    return file.read_bytes()


def test_label_maps_that_somebody_corrected_stay_and_are_told(predict, images, tmp_path, caplog):
    out = tmp_path / "out"
    predict()
    corrected = draw_into(out / "b.nii.gz")
    assert predict().skipped == ["a", "b", "c"] and not caplog.text
    for options in ({"step_size": 0.9}, {"step_size": 0.9, "save_probabilities": True}):
        caplog.clear()
        report = predict(**options)
        assert (report.written, report.skipped, report.failed) == (["a", "c"], ["b"], {})
        assert "not as sam3d_predict wrote them and stay" in caplog.text and ": b; give another folder" in caplog.text
    write_image(images / "b_0000.nii.gz", seed=8)
    assert "is not as sam3d_predict wrote it, and was made of another image" in predict(step_size=0.9).failed["b"]
    assert (out / "b.nii.gz").read_bytes() == corrected
    (out / "b.nii.gz").unlink()
    assert predict(step_size=0.9).written == ["b"]


@pytest.mark.parametrize("is_earlier", [False, True])
def test_label_maps_beside_what_was_said_in_the_page_stay(predict, tmp_path, caplog, is_earlier):
    out = tmp_path / "out"
    predict()
    if is_earlier:
        as_before_entries(out)
    said = out / f"b{PROMPTS_ENDING}"
    said.write_text("{}")
    date(said, 5)
    before = (out / "b.nii.gz").read_bytes()
    report = predict(step_size=0.9)
    assert (report.written, report.skipped) == (["a", "c"], ["b"])
    assert (out / "b.nii.gz").read_bytes() == before and "not as sam3d_predict wrote them" in caplog.text
    (out / "b.nii.gz").unlink()
    assert predict(step_size=0.9).written == ["b"]
    date(said, -5000)  # what was made later is ours, whatever was said before
    assert predict(step_size=0.8).written == ["a", "b", "c"]


def test_the_page_says_what_it_is_known_by():
    from sam3dnet.serving.case_files import PROMPTS_ENDING as of_the_page

    assert of_the_page == PROMPTS_ENDING


def test_a_copy_of_the_folder_is_not_taken_for_work_of_others(predict, tmp_path):
    predict()
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "copy").rename(tmp_path / "out")
    assert predict(step_size=0.9).written == ["a", "b", "c"]


def test_a_damaged_entry_is_told_as_nothing_known(predict, tmp_path):
    predict()
    (tmp_path / "out" / "sam3d_records" / "b.nii.gz.json").write_text('{"settings": 3')
    assert predict().skipped == ["a", "b", "c"]
    report = predict(step_size=0.9)
    assert (report.written, report.skipped) == (["a", "c"], ["b"])


def test_names_as_long_as_file_systems_allow_are_noted(predict, images, tmp_path):
    name = "n" * 225
    (images / "b_0000.nii.gz").rename(images / f"{name}_0000.nii.gz")
    assert predict().written == ["a", "c", name]
    assert predict().written == []
    write_image(images / f"{name}_0000.nii.gz", seed=9)
    date(images / f"{name}_0000.nii.gz", -5000)
    assert predict().written == [name]


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
    real = predictor.write_noted_label_map

    def write_on_a_full_disk(labels, path, *rest):
        with disk_that_ends_after(200 if path.name == "b.nii.gz" else 1 << 30):
            real(labels, path, *rest)

    monkeypatch.setattr(predictor, "write_noted_label_map", write_on_a_full_disk)
    report = predict()
    assert report.written == ["a", "c"]
    assert "b.nii.gz: could not be written whole" in report.failed["b"]
    assert "b.nii.gz" not in names_in(tmp_path / "out")


def test_an_image_that_vanishes_before_its_label_map_is_written_is_named(model, images, tmp_path):
    from sam3dnet.inference.models import load_model
    from sam3dnet.inference.writing import write_label_map

    reader, image = load_model(model).reader, images / "b_0000.nii.gz"
    voxels_CZYX, properties = reader.read_images([str(image)])
    image.unlink()
    with pytest.raises(OSError, match=r"could not be written whole: No such file or .*b_0000.nii.gz") as problem:
        write_label_map(voxels_CZYX[0].astype("u1"), tmp_path / "b.nii.gz", image, properties, reader)
    assert "disk" not in str(problem.value) and not (tmp_path / "b.nii.gz").exists()


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


def test_confidences_are_made_anew_once_they_can_be_calibrated(predict, model, tmp_path):
    predict()
    assert predict(confidence=True).written == ["a", "b", "c"]
    assert predict(confidence=True).written == []
    pairs = Pairs(["v", "w"], ["organ", "organ"], [0.9, 0.8], [0.5, 0.6], [1.0, 1.0])
    Validated(pairs, pairs).write(model / "fold_0")
    assert predict(confidence=True).written == ["a", "b", "c"]
    found = json.loads((tmp_path / "out" / "a_confidence.json").read_text())
    assert found["calibrated_on_cases"] == 2
    assert predict(confidence=True).written == []
    assert predict().written == []


@pytest.mark.parametrize("seconds", [5, -5000])
def test_another_label_map_of_the_first_stage_is_taken_however_old_it_is(images, tmp_path, seconds):
    second, stored, out = make_cascade_model(tmp_path / "results"), tmp_path / "first", tmp_path / "out"
    predict_folder(images, stored, make_model(tmp_path / "other"), device="cpu")
    options = {"device": "cpu", "prev_stage_predictions": stored}
    assert predict_folder(images, out, second, **options).written == ["a", "b", "c"]
    assert predict_folder(images, out, second, **options).written == []
    draw_into(stored / "b.nii.gz")
    date(stored / "b.nii.gz", seconds)
    assert predict_folder(images, out, second, **options).written == ["b"]
    for file in (stored / "b.nii.gz", out / "b.nii.gz"):  # whose label map is somebody's work now
        draw_into(file)
    report = predict_folder(images, out, second, **options)
    assert (report.written, report.skipped, report.failed) == ([], ["a", "b", "c"], {})
    report = predict_folder(images, out, second, device="cpu")  # with the first stage on the way
    assert (report.written, report.skipped, report.failed) == (["a", "c"], ["b"], {})


def test_label_maps_beside_which_something_is_missing_stay_until_they_are_made(predict, tmp_path, monkeypatch):
    predict()
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.nii.gz")}

    def fail(*_, **__):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "_Run", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            predict(confidence=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.nii.gz")} == before
    assert predict().skipped == ["a", "b", "c"]
    assert predict(confidence=True).written == ["a", "b", "c"]
    assert predict(confidence=True).skipped == ["a", "b", "c"]


def test_images_that_were_moved_are_read_once(predict, images, monkeypatch):
    predict()
    for file in images.iterdir():
        date(file, 100)
    read = []
    monkeypatch.setattr(output_record, "file_digest", lambda file: read.append(file.name) or file_digest(file))
    assert predict().skipped == ["a", "b", "c"] and len(read) == 3
    assert predict().skipped == ["a", "b", "c"] and len(read) == 3
