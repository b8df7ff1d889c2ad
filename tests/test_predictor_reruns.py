"""A rerun does what is missing, damaged or stale, and leaves the rest alone."""

import logging
import os

from tiny_models import truncate, write_image

from sam3dnet.inference import predictor


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


def test_a_label_map_of_others_is_not_overwritten(predict, images, tmp_path):
    write_image(tmp_path / "out" / "b.nii.gz")
    later = (images / "b_0000.nii.gz").stat().st_mtime + 5
    os.utime(tmp_path / "out" / "b.nii.gz", (later, later))
    before = (tmp_path / "out" / "b.nii.gz").read_bytes()
    assert predict().skipped == ["b"]
    assert (tmp_path / "out" / "b.nii.gz").read_bytes() == before


def test_what_an_interrupted_run_left_is_removed(predict, tmp_path):
    (tmp_path / "out" / ".sam3d_unfinished" / "x").mkdir(parents=True)
    (tmp_path / "out" / ".sam3d_unfinished" / "x" / "a.nii.gz").write_bytes(b"half")
    assert predict().written == ["a", "b", "c"]
    assert not (tmp_path / "out" / ".sam3d_unfinished").exists()
