"""Predictions straight from DICOM: those of the same images as files, and back on the series in every format."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import FRAME, header, oblique, places, write_enhanced, write_series
from tiny_models import LABELS, REGIONS, labels_of, make_model

from sam3dnet.cli import predict as predict_command
from sam3dnet.cli.predict import predict
from sam3dnet.dicom.cases import on_grid
from sam3dnet.dicom.choosing import choose_stacks, read_rules, rule_of_name, rules_of
from sam3dnet.dicom.files import read_headers
from sam3dnet.dicom.segmentation import write_segmentation
from sam3dnet.dicom.stacks import find_stacks
from sam3dnet.dicom.structures import read_structures, write_structures
from sam3dnet.dicom.volumes import labels_on_slices, read_image
from sam3dnet.errors import DatasetError
from sam3dnet.outputs.run import ENDINGS
from sam3dnet.planning.objects import mask_of
from sam3dnet.preprocessing.cases import foreground_classes

SHAPE = (6, 11, 9)
ALL = list(ENDINGS)


@pytest.fixture
def stored():
    return np.random.default_rng(4).integers(-900, 900, SHAPE).astype(np.int16)


@pytest.fixture(params=["axial", "oblique", "tilted", "enhanced"])
def study(request, tmp_path, stored):
    """A folder with one series, and what its name says."""
    folder = tmp_path / "patient" / "deep" / "er"
    if request.param == "enhanced":
        write_enhanced(folder / "mf.dcm", stored, axes=oblique(), order=[2, 0, 4, 1, 5, 3])
    elif request.param == "tilted":
        write_series(folder, stored, positions=places(len(stored), tilt_mm=(0.0, 0.9)))
    else:
        write_series(folder, stored, **({"axes": oblique()} if request.param == "oblique" else {}))
    return tmp_path / "patient"


def only_stack(folder):
    (stack,) = find_stacks(read_headers(folder).instances)
    return stack


def run(source, out, model, **options):
    return predict(input_folder=source, output_folder=out, model_folder=model, device="cpu", **options)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_predictions_are_those_of_the_image_as_a_file_and_every_format_says_the_same(study, tmp_path, labels):
    model = make_model(tmp_path / "results", labels=labels)
    stack = only_stack(study)
    image = read_image(stack)
    (tmp_path / "images").mkdir()
    sitk.WriteImage(image, str(tmp_path / "images" / "patient_0000.nii.gz"))
    run(tmp_path / "images", tmp_path / "of_file", model)
    out = tmp_path / "out"
    report = run(study, out, model, output_format=ALL)
    assert report.written == ["patient"] and not report.failed
    label_map = labels_of(out / "patient.nii.gz")
    np.testing.assert_array_equal(label_map, labels_of(tmp_path / "of_file" / "patient.nii.gz"))
    assert sorted(path.name for path in out.iterdir() if path.name.startswith("patient")) == sorted(
        f"patient{ending}" for ending in ENDINGS.values()
    )
    classes = foreground_classes(json.loads((model / "dataset.json").read_text()))
    on_slices = labels_on_slices(label_map, stack.grid)
    masks = {name: mask_of(on_slices, values) for name, values in classes.items()}
    assert all(mask.any() for mask in masks.values())

    np.testing.assert_array_equal(labels_of(out / "patient.nrrd"), label_map)
    check_slicer(out / "patient.seg.nrrd", {name: mask_of(label_map, values) for name, values in classes.items()})
    check_segmentation(out / "patient.seg.dcm", masks, stack)
    found = read_structures(out / "patient.rtstruct.dcm", stack.grid)
    assert found.keys() == masks.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)


def check_slicer(file, masks):
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    layers = array if array.ndim == 4 else array[..., None]
    for number, (name, mask) in enumerate(masks.items()):
        keys = ("Name", "LabelValue", "Layer", "Extent", "Color")
        said = {key: image.GetMetaData(f"Segment{number}_{key}") for key in keys}
        assert said["Name"] == name
        found = layers[..., int(said["Layer"])] == int(said["LabelValue"])
        np.testing.assert_array_equal(found, mask)
        places_zyx = np.nonzero(mask)
        extent = [int(number) for axis in reversed(places_zyx) for number in (axis.min(), axis.max())]
        assert said["Extent"] == " ".join(map(str, extent))
        assert len({float(value) for value in said["Color"].split()}) > 1


def check_segmentation(file, masks, stack):
    """Each frame of a SEG lies where a slice of the series does, and holds that slice of the mask; none is empty."""
    segmentation = highdicom.seg.segread(file)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == list(masks)
    assert {segment.SegmentAlgorithmType for segment in segmentation.SegmentSequence} == {"AUTOMATIC"}
    assert segmentation.FrameOfReferenceUID == stack.frame_of_reference
    positions = np.asarray([frame.position_mm for frame in stack.frames])
    found = {name: np.zeros_like(mask) for name, mask in masks.items()}
    frames = segmentation.pixel_array.reshape(-1, *next(iter(masks.values())).shape[1:])
    for pixels, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = np.asarray(group.PlanePositionSequence[0].ImagePositionPatient, float)
        at = int(np.argmin(np.linalg.norm(positions - place, axis=1)))
        assert np.linalg.norm(positions[at] - place) < 1e-3
        assert pixels.any()
        found[list(masks)[number - 1]][at] = pixels
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)
    referenced = {
        reference.ReferencedSOPInstanceUID
        for series in segmentation.ReferencedSeriesSequence
        for reference in series.ReferencedInstanceSequence
    }
    assert referenced == {str(instance.header.SOPInstanceUID) for instance in stack.files}
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    axes = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    np.testing.assert_allclose(axes.reshape(2, 3), stack.frames[0].axes, atol=1e-6)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools' dciodvfy is not installed")
@pytest.mark.parametrize("write", [write_segmentation, write_structures])
def test_what_is_written_conforms_to_the_standard(study, tmp_path, write):
    stack = only_stack(study)
    labels = np.zeros(sitk.GetArrayViewFromImage(read_image(stack)).shape, np.uint8)
    labels[1:3, 2:5, 2:5], labels[3, 3:6, 1:4] = 1, 2
    write(labels, tmp_path / "made.dcm", stack, {"kidney_left": (1,), "GTV": (2,), "thing": (1, 2)}, "model")
    done = subprocess.run(["dciodvfy", "-new", str(tmp_path / "made.dcm")], capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if line.startswith("Error")] == []
    assert any(line in ("Segmentation", "RTStructureSet") for line in said)


def test_itk_reads_a_segmentation_in_its_place(tmp_path, stored):
    whole_bytes = stored[:, :8, :8]  # ITK reads the last voxel of other sizes from beyond the end
    write_series(tmp_path / "s", whole_bytes, axes=oblique())
    stack = only_stack(tmp_path / "s")
    labels = np.zeros_like(whole_bytes, np.uint8)
    labels[1:4, 2:7, 3:8] = 1
    write_segmentation(labels, tmp_path / "seg.dcm", stack, {"organ": (1,)}, "m")
    image = sitk.ReadImage(str(tmp_path / "seg.dcm"))
    array = sitk.GetArrayFromImage(image)
    expected = read_image(stack)
    for z, y, x in ((0, 0, 0), (2, 3, 4)):
        point = image.TransformIndexToPhysicalPoint((x, y, z))
        assert (array[z, y, x] > 0) == labels[expected.TransformPhysicalPointToIndex(point)[::-1]]
    assert int((array > 0).sum()) == int(labels.sum())


@pytest.mark.parametrize("write", [write_segmentation, write_structures])
def test_a_case_without_any_object_is_a_result_too(tmp_path, stored, write):
    write_series(tmp_path / "s", stored)
    stack = only_stack(tmp_path / "s")
    write(np.zeros(SHAPE, np.uint8), tmp_path / "out.dcm", stack, {"organ": (1,), "lesion": (2,)}, "m")
    dataset = pydicom.dcmread(tmp_path / "out.dcm")
    names = dataset.get("SegmentSequence") or dataset.StructureSetROISequence
    assert [one.get("SegmentLabel") or one.ROIName for one in names] == ["organ", "lesion"]


def test_structures_with_holes_islands_and_single_voxels_come_back_as_they_were(tmp_path, stored):
    write_series(tmp_path / "s", stored, axes=oblique())
    stack = only_stack(tmp_path / "s")
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 1  # up to every border
    labels[1, 1:10, 1:8], labels[1, 3:8, 3:6], labels[1, 5, 4] = 1, 0, 1
    labels[2, 4, 4] = labels[3, 2, 2] = labels[3, 3, 3] = 1  # the last two touch at a corner
    labels[4:] = np.random.default_rng(1).integers(0, 2, (2, *SHAPE[1:]))
    write_structures(labels, tmp_path / "rt.dcm", stack, {"organ": (1,)}, "m")
    np.testing.assert_array_equal(read_structures(tmp_path / "rt.dcm", stack.grid)["organ"], labels.astype(bool))


def test_structures_of_another_series_are_refused(tmp_path, stored):
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored, positions=places(len(stored), origin=(-30, 12, 900)))
    labels = np.ones(SHAPE, np.uint8)
    write_structures(labels, tmp_path / "rt.dcm", only_stack(tmp_path / "a"), {"organ": (1,)}, "m")
    with pytest.raises(DatasetError, match=r"organ: an outline lies at slice -200.00 of 6"):
        read_structures(tmp_path / "rt.dcm", only_stack(tmp_path / "b").grid)


def test_what_is_there_already_is_left_and_newer_files_are_predicted_again(tmp_path, stored, model):
    write_series(tmp_path / "s", stored)
    out = tmp_path / "out"
    assert run(tmp_path / "s", out, model).written == ["s"]
    assert run(tmp_path / "s", out, model, output_format=["rtstruct"]).skipped == ["s"]
    first = (out / "s.rtstruct.dcm").read_bytes()
    assert run(tmp_path / "s", out, model, output_format=["rtstruct"]).skipped == ["s"]
    assert (out / "s.rtstruct.dcm").read_bytes() == first
    write_series(tmp_path / "s" / "new", stored[:2], SeriesInstanceUID="1.2.3")  # a smaller series: not chosen
    assert run(tmp_path / "s", out, model).skipped == ["s"]
    shutil.rmtree(tmp_path / "s")
    write_series(tmp_path / "s", stored + 1)
    assert run(tmp_path / "s", out, model, output_format=["rtstruct"]).written == ["s"]
    assert (out / "s.rtstruct.dcm").read_bytes() != first
    assert not [path.name for path in out.iterdir() if "unfinished" in path.name]


def test_processes_share_the_studies(tmp_path, stored, model):
    for number in range(3):
        write_series(tmp_path / "all" / str(number), stored, StudyInstanceUID=f"1.{number + 1}")
    write_series(
        tmp_path / "all" / "torn",
        stored[[0, 1, 3]],
        positions=[(0, 0, 0), (0, 0, 1), (0, 0, 9)],
        StudyInstanceUID="1.9",
    )
    parts = [run(tmp_path / "all", tmp_path / "out", model, num_parts=4, part_id=part) for part in range(4)]
    assert [part.written for part in parts] == [["0"], ["1"], ["2"], []]
    assert [list(part.failed) for part in parts] == [["torn"], [], [], []]


def test_each_study_is_a_case_and_fails_alone(tmp_path, stored, model, capsys):
    root = tmp_path / "all"
    write_series(root / "one", stored, StudyInstanceUID="1.1", modality="MR")
    write_series(root / "two" / "ct", stored, StudyInstanceUID="1.2")
    first, second = places(2)
    gap = [first + number * (second - first) for number in (0, 1, 3, 4, 5, 6)]
    write_series(root / "three", stored, StudyInstanceUID="1.3", positions=gap)
    words = ["-i", str(root), "-o", str(tmp_path / "out"), "-m", str(model), "--device", "cpu"]
    assert predict_command.main(words) == 1
    shown = capsys.readouterr()
    assert "2 written, 0 there already, 1 failed" in shown.out
    assert "case three failed: no series fits channel MRI" in shown.err
    assert (tmp_path / "out" / "one.nii.gz").is_file() and (tmp_path / "out" / "two_ct.nii.gz").is_file()


@pytest.fixture
def petct(tmp_path, stored):
    """A CT, and a PET on a grid of its own, in one frame of reference; a model of both."""
    study = tmp_path / "petct"
    ct = write_series(study / "1", stored, modality="CT", SeriesDescription="thorax")
    pet = write_series(
        study / "2",
        np.abs(stored[:4, :6, :5]),
        spacing=(1.4, 1.6, 4.0),
        modality="PT",
        rescale=[(0.5 + number, 0) for number in range(4)],
    )
    model = make_model(tmp_path / "results", num_channels=2)
    described = json.loads((model / "dataset.json").read_text()) | {"channel_names": {"0": "CT", "1": "PET"}}
    (model / "dataset.json").write_text(json.dumps(described))
    return SimpleNamespace(study=study, model=model, ct=ct, pet=pet, out=tmp_path / "out", images=tmp_path / "images")


def test_channels_are_brought_onto_the_grid_of_the_first(petct):
    stacks = {stack.modality: stack for stack in find_stacks(read_headers(petct.study).instances)}
    ct, pet = read_image(stacks["CT"]), read_image(stacks["PT"])
    petct.images.mkdir()
    sitk.WriteImage(ct, str(petct.images / "petct_0000.nii.gz"))
    empty = float(sitk.GetArrayFromImage(pet).min())
    moved = sitk.Resample(pet, ct, sitk.Transform(), sitk.sitkLinear, empty)
    sitk.WriteImage(moved, str(petct.images / "petct_0001.nii.gz"))
    run(petct.images, petct.out / "a", petct.model)
    run(petct.study, petct.out / "b", petct.model)
    expected = labels_of(petct.out / "a" / "petct.nii.gz")
    np.testing.assert_array_equal(labels_of(petct.out / "b" / "petct.nii.gz"), expected)
    run(petct.study, petct.out / "c", petct.model, series=[petct.ct, petct.pet])
    np.testing.assert_array_equal(labels_of(petct.out / "c" / "petct.nii.gz"), expected)


def test_channels_whose_places_do_not_refer_to_the_same_are_refused(petct, stored):
    shutil.rmtree(petct.study / "2")
    write_series(petct.study / "2", stored[:4], modality="PT", FrameOfReferenceUID="1.9", spacing=(1, 1, 5))
    with pytest.raises(DatasetError, match=r"PT, .* and CT.*do not refer to the same.*register them first"):
        run(petct.study, petct.out, petct.model)


def test_channels_that_lie_elsewhere_are_refused(petct, stored):
    shutil.rmtree(petct.study / "2")
    write_series(petct.study / "2", stored, modality="PT", positions=places(6, origin=(-30, 12, 4000)))
    with pytest.raises(DatasetError, match="have no place in common"):
        run(petct.study, petct.out, petct.model)


MISTAKES = {
    "no such series": ({"series": ["1.2", "1.3"]}, r"no series fits channel CT \(series 1.2\); there is CT, 9 x 11"),
    "too few series": ({"series": ["1.2"]}, r"1 series were named, and the model has 2 channel\(s\), CT, PET"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_choice_says_what_there_is(petct, mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(DatasetError, match=message):
        run(petct.study, petct.out, petct.model, **options)


RULES = {
    "wrong channels": ({"channels": {"CT": {}}}, "holds rules of the channels CT; the model has CT, PET"),
    "a misspelt key": ({"channels": {"CT": {"modalty": "CT"}, "PET": {}}}, "modalty"),
    "no expression": ({"channels": {"CT": {"description": "("}, "PET": {}}}, "is no regular expression"),
    "nothing": ({}, "channels"),
}


@pytest.mark.parametrize("fault", RULES)
def test_damaged_rules_are_told(tmp_path, fault):
    content, message = RULES[fault]
    (tmp_path / "rules.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"rules.json.*{message}"):
        read_rules(tmp_path / "rules.json", ["CT", "PET"])


def test_series_are_chosen_by_what_channels_are_called(tmp_path, stored):
    write_series(tmp_path / "1", stored, modality="MR", SeriesDescription="AX T1 POST")
    write_series(tmp_path / "2", stored[:5], modality="MR", SeriesDescription="AX T2 FLAIR")
    write_series(tmp_path / "3", stored[:4], modality="CT", SeriesDescription="plain")
    write_series(tmp_path / "4", stored, modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    stacks = find_stacks(read_headers(tmp_path).instances)

    def chosen(*channels, rules=None):
        given = [rule_of_name(channel) for channel in channels] if rules is None else rules
        return [stack.description for stack in choose_stacks(stacks, channels, given)]

    assert chosen("CT") == ["plain"]
    assert chosen("T1", "T2") == ["AX T1 POST", "AX T2 FLAIR"]
    assert chosen("MRI") == ["AX T1 POST"]  # the largest
    assert chosen("FLAIR", "t1", "CT") == ["AX T2 FLAIR", "AX T1 POST", "plain"]
    with pytest.raises(DatasetError, match=r"channels MRI and T1ce would both be MR.*say which series each is"):
        chosen("MRI", "T1ce")
    (tmp_path / "rules.json").write_text(
        json.dumps({"channels": {"late": {"modality": "mr", "description": "flair"}, "early": {"description": "t1"}}})
    )
    rules = rules_of(["early", "late"], None, tmp_path / "rules.json")
    assert chosen("early", "late", rules=rules) == ["AX T1 POST", "AX T2 FLAIR"]
    with pytest.raises(DatasetError, match=r"no series fits channel PET \(modality PT\); there is MR"):
        chosen("PET")


def test_formats_that_need_dicom_or_another_kind_of_image_say_so(tmp_path, images, model, stored):
    with pytest.raises(DatasetError, match="--output-format dicom-seg refers to the DICOM series"):
        run(images, tmp_path / "out", model, output_format=["dicom-seg"])
    assert not (tmp_path / "out").exists()
    report = run(images, tmp_path / "out", model, output_format=["nrrd", "seg.nrrd", "nifti"])
    assert not report.failed
    np.testing.assert_array_equal(labels_of(tmp_path / "out" / "a.nrrd"), labels_of(tmp_path / "out" / "a.nii.gz"))
    write_series(tmp_path / "s", stored, FrameOfReferenceUID=None)
    with pytest.raises(DatasetError, match="names no frame of reference, which rtstruct refer to"):
        run(tmp_path / "s", tmp_path / "out", model, output_format=["rtstruct"])
    tiff = make_model(tmp_path / "tiff", ending=".tif")
    with pytest.raises(DatasetError, match=r"reads images ending in .tif, which DICOM is not turned into"):
        run(tmp_path / "s", tmp_path / "out", tiff)


def test_a_folder_without_images_says_what_it_is(tmp_path, model):
    (tmp_path / "s").mkdir()
    report = header(sop_class="1.2.840.10008.5.1.4.1.1.88.11", SeriesInstanceUID="1.2.3")
    report.save_as(tmp_path / "s" / "report.dcm", enforce_file_format=True)
    with pytest.raises(DatasetError, match="1 DICOM files and no image with a place in space"):
        run(tmp_path / "s", tmp_path / "out", model)


def test_nothing_of_the_patient_is_in_what_is_not_dicom(tmp_path, stored, model):
    write_series(tmp_path / "s", stored)
    run(tmp_path / "s", tmp_path / "out", model, output_format=["nrrd", "seg.nrrd", "dicom-seg"])
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert (b"Secret" in file.read_bytes()) == file.name.endswith(".dcm")


@pytest.mark.parametrize(("frame", "is_refused"), [(None, False), (FRAME, False), ("1.9", True)])
def test_equal_places_of_other_frames_of_reference_are_not_the_same(tmp_path, stored, frame, is_refused):
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored + 1, FrameOfReferenceUID=frame)
    fixed, moved = ((stack, read_image(stack)) for stack in map(only_stack, (tmp_path / "a", tmp_path / "b")))
    if is_refused:
        with pytest.raises(DatasetError, match=r"do not refer to the same \(frame of reference\).*register them first"):
            on_grid(moved, fixed)
    else:
        assert on_grid(moved, fixed) is moved[1]
