"""DICOM into a folder that holds label maps: those of other patients and series are never taken for theirs."""

import json
import os
import shutil
import time
import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import places, write_series
from fake_prompts import make_promptable_model, write_prompts
from tiny_models import labels_of

from sam3dnet.cli.predict import predict
from sam3dnet.errors import PromptError

SHAPE = (6, 11, 9)


def images_of(seed):
    return np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(np.int16)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(tmp_path, model, out):
    """Predict a folder or file of DICOM into the folder "out"."""

    def predicted(given, **options):
        options = {"model_folder": model, "output_folder": out, "device": "cpu"} | options
        return predict(input_folder=tmp_path / given, **options)

    return predicted


def referenced(file):
    """The series that a SEG or RTSTRUCT refers to."""
    dataset = pydicom.dcmread(file)
    if "ReferencedSeriesSequence" in dataset:
        return {str(one.SeriesInstanceUID) for one in dataset.ReferencedSeriesSequence}
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    return {str(one.SeriesInstanceUID) for one in study.RTReferencedSeriesSequence}


def test_another_patient_of_the_same_name_is_made_anew_and_told(tmp_path, run, out, caplog):
    first = write_series(tmp_path / "a" / "DICOM", images_of(1), StudyInstanceUID="1.1")
    second = write_series(tmp_path / "b" / "DICOM", images_of(2), StudyInstanceUID="1.2")
    assert run("a/DICOM", output_format=["dicom-seg", "rtstruct"], preview=True, statistics=True).written == ["DICOM"]
    label_map = labels_of(out / "DICOM.nii.gz")
    caplog.clear()
    assert run("b/DICOM").written == ["DICOM"]
    assert f"was made of series {first} of study 1.1, and these images are series {second} of study 1.2" in caplog.text
    assert not np.array_equal(labels_of(out / "DICOM.nii.gz"), label_map)
    left = {path.name for path in out.iterdir() if path.name.startswith("DICOM")}
    assert left == {"DICOM.nii.gz"}  # what was made of the other patient went with the label map
    assert json.loads((out / "statistics.json").read_text()) == {}
    assert run("b/DICOM", output_format=["dicom-seg", "rtstruct"]).skipped == ["DICOM"]
    for ending in ("seg.dcm", "rtstruct.dcm"):
        assert referenced(out / f"DICOM.{ending}") == {second}
    assert run("a/DICOM", output_format=["dicom-seg", "rtstruct"]).written == ["DICOM"]
    for ending in ("seg.dcm", "rtstruct.dcm"):
        assert referenced(out / f"DICOM.{ending}") == {first}
    np.testing.assert_array_equal(labels_of(out / "DICOM.nii.gz"), label_map)


def test_series_that_are_equal_but_for_their_uids_are_others(tmp_path, run, out):
    for patient in "ab":
        write_series(tmp_path / patient / "DICOM", images_of(1))
    assert run("a/DICOM", output_format=["dicom-seg"]).written == ["DICOM"]
    before = referenced(out / "DICOM.seg.dcm")
    assert run("b/DICOM", output_format=["dicom-seg"]).written == ["DICOM"]
    assert referenced(out / "DICOM.seg.dcm").isdisjoint(before)


@pytest.mark.parametrize("by", ["series", "channels"])
def test_another_series_of_the_study_is_made_anew(tmp_path, run, out, by):
    largest = write_series(tmp_path / "s" / "1", images_of(1), SeriesDescription="early")
    other = write_series(tmp_path / "s" / "2", images_of(2), SeriesDescription="late", SeriesInstanceUID="1.2.3")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"channels": {"MRI": {"description": "late"}}}))
    chosen = {"series": [other]} if by == "series" else {"channels": rules}
    assert run("s", series=[largest]).written == ["s"]
    before = labels_of(out / "s.nii.gz")
    assert run("s", **chosen, output_format=["dicom-seg"]).written == ["s"]
    assert referenced(out / "s.seg.dcm") == {other}
    assert not np.array_equal(labels_of(out / "s.nii.gz"), before)
    assert run("s", **chosen).skipped == ["s"]


def test_a_zip_file_is_known_again(tmp_path, run):
    write_series(tmp_path / "s", images_of(1))
    for name in ("s.zip", "again.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in (tmp_path / "s").iterdir():
                archive.write(file, file.name)
    assert run("s.zip").written == ["s"]
    assert run("s.zip").skipped == ["s"]
    shutil.move(tmp_path / "again.zip", tmp_path / "s.zip")
    assert run("s.zip").skipped == ["s"]


def test_a_corrected_label_map_is_not_written_as_that_of_another_patient(tmp_path, run, out):
    for number, patient in enumerate("ab", 1):
        write_series(tmp_path / patient / "DICOM", images_of(number), StudyInstanceUID=f"1.{number}")
    run("a/DICOM")
    image = sitk.ReadImage(str(out / "DICOM.nii.gz"))
    sitk.WriteImage(2 - image, str(out / "DICOM.nii.gz"))
    corrected = (out / "DICOM.nii.gz").read_bytes()
    report = run("b/DICOM", output_format=["dicom-seg"])
    assert (report.written, report.skipped) == ([], [])
    assert "of study 1.1 (these images are series" in report.failed["DICOM"]
    assert not (out / "DICOM.seg.dcm").exists() and (out / "DICOM.nii.gz").read_bytes() == corrected
    assert run("a/DICOM", output_format=["dicom-seg"]).skipped == ["DICOM"]  # its own are written of it


def test_what_somebody_changed_beside_the_label_map_stays(tmp_path, run, out, caplog):
    write_series(tmp_path / "s", images_of(1))
    run("s", output_format=["seg.nrrd", "nrrd"])
    file = out / "s.seg.nrrd"
    sitk.WriteImage(2 - sitk.ReadImage(str(file)), str(file))
    changed = file.read_bytes()
    report = run("s", output_format=["seg.nrrd", "nrrd"], step_size=0.9)
    assert report.written == ["s"] and f"{file} was changed after sam3d_predict wrote it" in report.failed["s"]
    assert file.read_bytes() == changed and f"{file} is of an earlier label map of this name" in caplog.text
    np.testing.assert_array_equal(labels_of(out / "s.nrrd"), labels_of(out / "s.nii.gz"))


def test_what_earlier_versions_wrote_of_another_patient_is_told(tmp_path, run, out, caplog):
    """Of them it is not known whether somebody changed it since."""
    for number, patient in enumerate("ab", 1):
        write_series(tmp_path / patient / "DICOM", images_of(number))
    run("a/DICOM", output_format=["dicom-seg"])
    shutil.rmtree(out / "sam3d_records")
    record = json.loads((out / "sam3d_prediction.json").read_text())
    (out / "sam3d_prediction.json").write_text(json.dumps({k: v for k, v in record.items() if k != "entries"}))
    assert run("b/DICOM").skipped == ["DICOM"]  # as before: older files of this name and shape
    for file in (tmp_path / "b" / "DICOM").iterdir():
        os.utime(file, (time.time() + 5,) * 2)
    assert run("b/DICOM").written == ["DICOM"]
    assert f"{out / 'DICOM.seg.dcm'} is of an earlier label map of this name, and stays; move it away" in caplog.text


def test_prompts_may_speak_of_cases_of_other_parts_and_of_those_that_cannot_be_read(tmp_path, run):
    model = make_promptable_model(tmp_path / "promptable")
    for number in range(3):
        write_series(tmp_path / "all" / str(number), images_of(number), StudyInstanceUID=f"1.{number + 1}")
    gap = [place for number, place in enumerate(places(7)) if number != 2]
    write_series(tmp_path / "all" / "torn", images_of(3), positions=gap, StudyInstanceUID="1.9")
    click = {"lesion": {"points": [{"at": [3, 4, 2]}]}}
    prompts = write_prompts(tmp_path / "p.json", {"0": click, "1": click, "torn": click})
    parts = [run("all", model_folder=model, prompts=prompts, num_parts=2, part_id=part) for part in (0, 1)]
    assert [(part.written, list(part.failed)) for part in parts] == [(["0", "2"], ["torn"]), (["1"], [])]
    assert run("all", model_folder=model, prompts=prompts).skipped == ["0", "1", "2"]
    with pytest.raises(PromptError, match='there is no case "nobody"'):
        run("all", model_folder=model, prompts=write_prompts(tmp_path / "p.json", {"nobody": click}))
