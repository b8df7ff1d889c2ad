"""Datasets from DICOM: the masks that were drawn, on the images that they were drawn on, and no patient's name."""

import json
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import oblique, places, write_enhanced, write_series
from tiny_models import labels_of

from sam3dnet.cli import dicom as dicom_command
from sam3dnet.cli.dicom import import_dataset
from sam3dnet.dicom.files import read_headers
from sam3dnet.dicom.labels import stack_of
from sam3dnet.dicom.segmentation import OF_STUDY, write_segmentation
from sam3dnet.dicom.stacks import find_stacks
from sam3dnet.dicom.structures import read_structures, write_structures
from sam3dnet.dicom.volumes import labels_on_slices, read_image
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.verify import verify_dataset

SHAPE = (6, 12, 10)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "DICOM"
NAMES = ("one", "two", "three")
CLASSES = {"Liver": (1, 2), "GTV_1": (2,), "BODY": (1, 2, 3)}


@pytest.fixture
def stored():
    return np.random.default_rng(6).integers(-900, 900, SHAPE).astype(np.int16)


@pytest.fixture
def labels():
    found = np.zeros(SHAPE, np.uint8)
    found[1:5, 2:10, 2:8], found[2:4, 4:7, 3:6], found[0] = 1, 2, 3
    return found


def only_stack(folder):
    return find_stacks(read_headers(folder).instances)[0]


def make(tmp_path, source, **options):
    given = {"number": 503, "name": "Liver", "root": tmp_path / "root"} | options
    return import_dataset(source, **given)


def raw(tmp_path):
    return tmp_path / "root" / "nnUNet_raw" / "Dataset503_Liver"


def names_file(tmp_path, content):
    (tmp_path / "names.json").write_text(json.dumps(content))
    return tmp_path / "names.json"


@pytest.mark.parametrize("write", [write_segmentation, write_structures])
@pytest.mark.parametrize("series", ["axial", "oblique", "tilted", "enhanced"])
def test_masks_come_onto_the_image_that_they_were_drawn_on(tmp_path, stored, labels, series, write):
    source = tmp_path / "export"
    if series == "enhanced":
        write_enhanced(source / "mf.dcm", stored, axes=oblique(), order=[2, 0, 4, 1, 5, 3])
    elif series == "tilted":
        write_series(source, stored, positions=places(len(stored), tilt_mm=(0.0, 0.9)))
    else:
        write_series(source, stored, **({"axes": oblique()} if series == "oblique" else {}))
    stack = only_stack(source)
    image = read_image(stack)
    on_image = np.zeros(sitk.GetArrayViewFromImage(image).shape, np.uint8)
    on_image[: SHAPE[0], -SHAPE[1] :, : SHAPE[2]] = labels
    write(on_image, source / "labels.dcm", stack, CLASSES, "m")
    made = make(tmp_path, source, names=names_file(tmp_path, {"GTV.*": "tumour", "liver": "liver", "body": None}))
    assert (made.dataset, made.cases, made.channels) == ("Dataset503_Liver", 1, ("MRI",))
    assert made.classes == ("tumour", "liver")
    found = labels_of(raw(tmp_path) / "labelsTr" / "case_000.nii.gz")
    expected = np.where(labels_on_slices(on_image, stack.grid) == 2, 1, 0)
    back = labels_on_slices(found, stack.grid)
    liver = np.isin(labels_on_slices(on_image, stack.grid), (1, 2))
    np.testing.assert_array_equal(back == 2, liver)  # the later class of the two goes over the earlier
    assert not (back == 1).any() and expected.any()
    written = sitk.ReadImage(str(raw(tmp_path) / "imagesTr" / "case_000_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(image))
    assert written.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-3)
    assert not [problem for problem in verify_dataset(raw(tmp_path), 0, False) if problem.severity == "error"]


KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


@pytest.mark.parametrize("tilt_mm", [(0.0, 0.0), (0.0, 0.9)])
@pytest.mark.parametrize("kind", KINDS)
def test_segments_of_every_kind_come_onto_slices_of_a_gantry_that_may_be_tilted(
    tmp_path, stored, labels, kind, tilt_mm
):
    write_series(tmp_path / "ct", stored, positions=places(len(stored), tilt_mm=tilt_mm))
    write_made_segmentation(tmp_path / "ct" / "labels.dcm", only_stack(tmp_path / "ct"), labels, kind)
    make(tmp_path, tmp_path / "ct")
    found = labels_of(raw(tmp_path) / "labelsTr" / "case_000.nii.gz")
    classes = json.loads((raw(tmp_path) / "dataset.json").read_text())["labels"]
    on_slices = labels_on_slices(found, only_stack(tmp_path / "ct").grid)
    for number, name in enumerate(NAMES, 1):
        np.testing.assert_array_equal(on_slices == classes[name], labels == number)


def test_segments_beside_the_slices_of_a_tilted_gantry_are_told(tmp_path, stored, labels):
    tilted = {"positions": places(len(stored), tilt_mm=(0.0, 0.9))}
    write_series(tmp_path / "ct", stored, **tilted)
    write_made_segmentation(tmp_path / "ct" / "labels.dcm", only_stack(tmp_path / "ct"), labels, "BINARY")
    moved = pydicom.dcmread(tmp_path / "ct" / "labels.dcm")
    moved.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient[1] += 0.5
    moved.save_as(tmp_path / "ct" / "labels.dcm")
    with pytest.raises(DatasetError, match=r"labels.dcm: frame 2 does not lie on a slice of the series"):
        make(tmp_path, tmp_path / "ct")


@pytest.mark.parametrize("tilt_mm", [(0.0, 0.0), (0.0, 0.9)])
@pytest.mark.parametrize("kind", KINDS)
def test_segments_of_one_name_are_one_class(tmp_path, stored, labels, kind, tilt_mm):
    write_series(tmp_path / "ct", stored, positions=places(len(stored), tilt_mm=tilt_mm))
    stack = only_stack(tmp_path / "ct")
    write_made_segmentation(tmp_path / "ct" / "labels.dcm", stack, labels, kind, ("lesion", "organ", "lesion"))
    made = make(tmp_path, tmp_path / "ct")
    found = labels_on_slices(labels_of(raw(tmp_path) / "labelsTr" / "case_000.nii.gz"), stack.grid)
    assert made.classes == ("lesion", "organ")
    np.testing.assert_array_equal(found, np.array([0, 1, 2, 1])[labels])


def test_outlines_of_one_name_are_one_class(tmp_path, stored, labels):
    write_series(tmp_path / "e", stored)
    classes = {"lesion": (1,), "organ": (2,), "lesion 2": (3,)}
    write_structures(labels, tmp_path / "e" / "rt.dcm", only_stack(tmp_path / "e"), classes, "m")
    changed = pydicom.dcmread(tmp_path / "e" / "rt.dcm")
    changed.StructureSetROISequence[2].ROIName = "lesion"
    changed.save_as(tmp_path / "e" / "rt.dcm")
    assert make(tmp_path, tmp_path / "e").classes == ("lesion", "organ")
    found = labels_of(raw(tmp_path) / "labelsTr" / "case_000.nii.gz")
    np.testing.assert_array_equal(found, np.array([0, 1, 2, 1])[labels])


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("write", [write_segmentation, write_structures])
def test_a_file_that_was_cut_off_fails_alone(tmp_path, stored, labels, write, share):
    for number in range(2):
        folder = tmp_path / "e" / str(number)
        write_series(folder, stored, StudyInstanceUID=f"1.{number}")
        write(labels, folder / f"labels_{number}.dcm", only_stack(folder), CLASSES, "m")
    cut = tmp_path / "e" / "1" / "labels_1.dcm"
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    made = make(tmp_path, tmp_path / "e")
    assert made.cases == 1
    assert list(made.failed) == ["labels_1.dcm"] and "cannot be read" in made.failed["labels_1.dcm"]


def test_a_file_whose_header_is_damaged_is_told(tmp_path, stored, labels):
    write_series(tmp_path / "e", stored)
    write_structures(labels, tmp_path / "e" / "rt.dcm", only_stack(tmp_path / "e"), {"organ": (1,)}, "m")
    for folder in ("a", "b"):
        (tmp_path / "e" / folder).mkdir()
        (tmp_path / "e" / folder / "other.dcm").write_bytes((tmp_path / "e" / "rt.dcm").read_bytes()[:300])
    made = make(tmp_path, tmp_path / "e")
    assert made.cases == 1 and sorted(made.failed) in (["a/other.dcm", "other.dcm"], ["b/other.dcm", "other.dcm"])
    assert all("begins as DICOM does and cannot be read" in why for why in made.failed.values())


def write_phases(folder, stored, count=3):
    """Write a series of several times; give the volume of each."""
    each = {"TemporalPositionIdentifier": [phase for phase in range(count) for _ in stored]}
    write_series(
        folder,
        np.concatenate([stored + 100 * phase for phase in range(count)]),
        positions=places(len(stored)) * count,
        each=each,
    )
    return sorted(find_stacks(read_headers(folder).instances), key=lambda stack: stack.instance.of(next(iter(each))))


@pytest.mark.parametrize("with_rules", [False, True])
@pytest.mark.parametrize("write", [write_segmentation, write_structures])
def test_of_several_times_it_is_the_one_that_was_drawn_on(tmp_path, stored, labels, write, with_rules):
    phases = write_phases(tmp_path / "e", stored)
    write(labels, tmp_path / "e" / "labels.dcm", phases[1], {"organ": (1,)}, "m")
    (tmp_path / "rules.json").write_text(json.dumps({"channels": {"T1": {"modality": "MR"}}}))
    made = make(tmp_path, tmp_path / "e", **({"channels": tmp_path / "rules.json"} if with_rules else {}))
    assert (made.cases, made.failed) == (1, {})
    image = sitk.ReadImage(str(raw(tmp_path) / "imagesTr" / "case_000_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), stored + 100)


def test_times_that_are_drawn_on_each_are_cases_each(tmp_path, stored, labels):
    phases = write_phases(tmp_path / "e", stored)
    for number in (1, 2):
        write_structures(labels, tmp_path / "e" / f"rt_{number}.dcm", phases[number], {"organ": (number,)}, "m")
    assert make(tmp_path, tmp_path / "e").cases == 2
    for number in range(2):
        image = sitk.ReadImage(str(raw(tmp_path) / "imagesTr" / f"case_{number:03d}_0000.nii.gz"))
        phase = round(float((sitk.GetArrayFromImage(image) - stored).mean() / 100))
        found = labels_of(raw(tmp_path) / "labelsTr" / f"case_{number:03d}.nii.gz")
        np.testing.assert_array_equal(found > 0, labels == phase)


@pytest.mark.parametrize("write", [write_segmentation, write_structures])
def test_structures_that_name_no_images_of_one_time_are_refused(tmp_path, stored, labels, write):
    phases = write_phases(tmp_path / "e", stored)
    file = tmp_path / "e" / "labels.dcm"
    write(labels, file, phases[2], {"organ": (1,)}, "m")
    changed = pydicom.dcmread(file)
    changed.walk(without_images)
    changed.save_as(file)
    with pytest.raises(DatasetError, match=r"labels.dcm: 3 volumes are of the series that it was drawn on"):
        make(tmp_path, tmp_path / "e")


def without_images(dataset, element):
    if element.keyword in ("ContourImageSequence", "SourceImageSequence", "ReferencedInstanceSequence"):
        del dataset[element.tag]


def test_frames_of_one_file_are_told_apart_by_their_numbers(tmp_path, stored, labels):
    write_enhanced(tmp_path / "mf.dcm", np.concatenate([stored, stored + 100]))
    file = pydicom.dcmread(tmp_path / "mf.dcm")
    for number, group in enumerate(file.PerFrameFunctionalGroupsSequence):
        content = pydicom.Dataset()
        content.TemporalPositionIndex = 1 + number // len(stored)
        first = file.PerFrameFunctionalGroupsSequence[number % len(stored)]
        group.FrameContentSequence, group.PlanePositionSequence = [content], first.PlanePositionSequence
    file.save_as(tmp_path / "mf.dcm")
    stacks = find_stacks(read_headers(tmp_path).instances)
    assert [len(stack.frames) for stack in stacks] == [len(stored)] * 2
    for stack in stacks:
        write_structures(labels, tmp_path / "rt.dcm", stack, {"organ": (1,)}, "m")
        (drawn,) = (one for one in read_headers(tmp_path).instances if one.file.name == "rt.dcm")
        assert stack_of(drawn, stacks) is stack


def write_squares(file, stack, squares):
    """Write outlines of one structure: slice, which may lie between slices, first and last row and column."""
    write_structures(np.ones(stack.grid.shape[::-1], np.uint8), file, stack, {"organ": (1,)}, "m")
    dataset = pydicom.dcmread(file)
    roi, grid = dataset.ROIContourSequence[0], stack.grid
    pattern = roi.ContourSequence[0]
    contours = []
    for at, first, last in squares:
        low, high = first - 0.5, last + 0.5
        corners = np.array([[low, low, at], [high, low, at], [high, high, at], [low, high, at]])
        contour = pydicom.Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = pattern.ContourGeometricType, len(corners)
        placed = grid.origin_mm + corners * grid.spacing_mm @ grid.axes
        contour.ContourData = [f"{value:.3f}" for value in placed.ravel()]
        contours.append(contour)
    roi.ContourSequence = contours
    dataset.save_as(file)


OUTLINES = {  # slice, first and last row and column -> voxels of each slice
    "of one plane": ([(2, 1, 8), (2, 3, 5)], {2: 64 - 9}),
    "of planes closer than slices": ([(1.8, 1, 8), (2.1, 2, 7), (2.4, 2, 6)], {2: 36}),
    "the same in two planes": ([(1.7, 1, 8), (2.2, 1, 8)], {2: 64}),
    "of a plane with a hole beside one without": ([(2.1, 1, 8), (2.1, 3, 5), (2.4, 1, 8)], {2: 64 - 9}),
    "half a slice beyond": ([(-0.5, 1, 8), (5.5, 2, 3)], {0: 64, 5: 4}),
    "half way between slices": ([(at + 0.5, 1, 8) for at in range(4)], {1: 64, 2: 64, 3: 64, 4: 64}),
}


@pytest.mark.parametrize("case", OUTLINES)
def test_outlines_are_filled_plane_by_plane(tmp_path, stored, case):
    squares, expected = OUTLINES[case]
    write_series(tmp_path / "e", stored)
    stack = only_stack(tmp_path / "e")
    write_squares(tmp_path / "rt.dcm", stack, squares)
    mask = read_structures(tmp_path / "rt.dcm", stack.grid)["organ"]
    assert {at: int(count) for at, count in enumerate(mask.sum((1, 2))) if count} == expected


@pytest.mark.parametrize("at", [-0.6, 5.6])
def test_outlines_beside_the_slices_are_told(tmp_path, stored, at):
    write_series(tmp_path / "e", stored)
    stack = only_stack(tmp_path / "e")
    write_squares(tmp_path / "rt.dcm", stack, [(at, 1, 8)])
    with pytest.raises(DatasetError, match=rf"organ: an outline lies at slice {at:.2f} of 6"):
        read_structures(tmp_path / "rt.dcm", stack.grid)


def write_made_segmentation(file, stack, labels, kind, names=NAMES):
    """Write labels 1 to 3 as others do, by highdicom."""
    from pydicom.sr.codedict import codes

    described = [
        highdicom.seg.SegmentDescription(
            number,
            name,
            codes.SCT.AnatomicalStructure,
            codes.SCT.Liver,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, 1)
    ]
    pixels = labels if kind == "LABELMAP" else np.stack([labels == number for number in (1, 2, 3)], -1)
    pixels = pixels.astype(np.float32) * 0.75 if kind == "FRACTIONAL" else pixels.astype(np.uint8)
    more = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    headers = [pydicom.dcmread(instance.file) for instance in stack.files]
    for header in headers:
        for keyword in OF_STUDY:
            if keyword not in header:
                setattr(header, keyword, None)
        header.SliceThickness = 2.5
    highdicom.seg.Segmentation(
        headers, pixels, kind, described, highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "1", **more
    ).save_as(file)


def test_the_order_of_the_table_says_which_class_goes_over_which(tmp_path, stored, labels, caplog):
    write_series(tmp_path / "e", stored)
    write_segmentation(labels, tmp_path / "e" / "seg.dcm", only_stack(tmp_path / "e"), CLASSES, "m")
    make(tmp_path, tmp_path / "e", names=names_file(tmp_path, {"Liver": "liver", "GTV_1": "tumour"}))
    found = labels_of(raw(tmp_path) / "labelsTr" / "case_000.nii.gz")
    np.testing.assert_array_equal(found, np.where(labels == 3, 0, labels))
    count = int((labels == 2).sum())
    assert f"case_000: {count} voxels are both liver and tumour; they become tumour" in caplog.text
    assert "left out, since the table does not name them: BODY" in caplog.text


def test_without_a_table_each_name_is_a_class_and_cases_need_not_have_all(tmp_path, stored, labels):
    for number, classes in enumerate(({"Liver": (1, 2)}, {"Liver": (1,), "Spleen": (2,)})):
        write_series(tmp_path / "e" / str(number), stored, StudyInstanceUID=f"1.{number}")
        stack = only_stack(tmp_path / "e" / str(number))
        write_structures(labels, tmp_path / "e" / str(number) / "rt.dcm", stack, classes, "m")
    made = make(tmp_path, tmp_path / "e")
    assert (made.cases, made.classes, made.failed) == (2, ("Liver", "Spleen"), {})
    described = json.loads((raw(tmp_path) / "dataset.json").read_text())
    assert described == {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Liver": 1, "Spleen": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def test_no_name_or_id_of_a_patient_is_copied(tmp_path, stored, labels):
    write_series(tmp_path / "e", stored)
    write_segmentation(labels, tmp_path / "e" / "seg.dcm", only_stack(tmp_path / "e"), CLASSES, "m")
    make(tmp_path, tmp_path / "e")
    for file in raw(tmp_path).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            import gzip

            plain = gzip.decompress(content) if file.name.endswith(".gz") else content
            assert b"Secret" not in plain and b"secret" not in plain


def test_of_several_channels_those_of_a_study_become_a_case(tmp_path, stored, labels, capsys):
    for number in range(2):
        folder = tmp_path / "e" / str(number)
        write_series(folder / "ct", stored, modality="CT", StudyInstanceUID=f"1.{number}")
        stack = only_stack(folder / "ct")
        if number == 0:
            write_series(folder / "pet", np.abs(stored[:4]), modality="PT", StudyInstanceUID="1.0", spacing=(1, 1, 4))
        write_structures(labels, folder / "rt.dcm", stack, {"organ": (1,)}, "m")
    rules = {"CT": {"modality": "CT"}, "PET": {"modality": "PT"}}
    (tmp_path / "rules.json").write_text(json.dumps({"channels": rules}))
    words = ["import", str(tmp_path / "e"), "-d", "503", "--name", "Liver", "--root", str(tmp_path / "root")]
    assert dicom_command.main([*words, "--channels", str(tmp_path / "rules.json")]) == 1
    shown = capsys.readouterr()
    assert "Dataset503_Liver: 1 cases, channels CT, PET, classes organ" in shown.out
    assert "study 2: no case: no series fits channel PET" in shown.err
    images = [sitk.ReadImage(str(raw(tmp_path) / "imagesTr" / f"case_000_000{number}.nii.gz")) for number in range(2)]
    assert images[0].GetSize() == images[1].GetSize()


def test_structures_on_different_modalities_need_rules(tmp_path, stored, labels):
    for modality in ("CT", "PT"):
        write_series(tmp_path / modality, stored, modality=modality)
        write_structures(labels, tmp_path / modality / "rt.dcm", only_stack(tmp_path / modality), {"organ": (1,)}, "m")
    with pytest.raises(DatasetError, match="drawn on CT, PT; say with --channels"):
        make(tmp_path, tmp_path)


MISTAKES = {
    "no labels": (lambda folder: (folder / "rt.dcm").unlink(), "no series with structures: no DICOM SEG or RTSTRUCT"),
    "no image": (
        lambda folder: [file.unlink() for file in folder.iterdir() if file.name != "rt.dcm"],
        r"rt.dcm: the series that it was drawn on is not known: it is not there",
    ),
    "a gap": (lambda folder: sorted(folder.glob("*-*"))[2].unlink(), "was drawn on MR.*no volume: 1 slice is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_imported_says_why_and_leaves_nothing(tmp_path, stored, labels, mistake):
    change, message = MISTAKES[mistake]
    write_series(tmp_path / "e", stored)
    write_structures(labels, tmp_path / "e" / "rt.dcm", only_stack(tmp_path / "e"), {"organ": (1,)}, "m")
    change(tmp_path / "e")
    with pytest.raises(DatasetError, match=message):
        make(tmp_path, tmp_path / "e")
    assert not raw(tmp_path).parent.exists() or not list(raw(tmp_path).parent.iterdir())


def test_tables_and_numbers_are_checked(tmp_path, stored, labels):
    write_series(tmp_path / "e", stored)
    write_structures(labels, tmp_path / "e" / "rt.dcm", only_stack(tmp_path / "e"), {"organ": (1,)}, "m")
    for content, message in (({"(": "x"}, "no regular expression"), (["x"], "names.json"), ({"a": 1}, "names.json")):
        with pytest.raises(DatasetError, match=message):
            make(tmp_path, tmp_path / "e", names=names_file(tmp_path, content))
    with pytest.raises(DatasetError, match="none of its structures is a class"):
        make(tmp_path, tmp_path / "e", names=names_file(tmp_path, {"other": "x"}))
    make(tmp_path, tmp_path / "e")
    with pytest.raises(DatasetError, match="there is Dataset503_Liver already"):
        make(tmp_path, tmp_path / "e")


REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@REAL
@pytest.mark.parametrize("modality", ["CT", "PET", "MR_T1"])
def test_structures_of_a_real_patient_are_those_of_the_reference(tmp_path, modality):
    make(tmp_path, SHARED / "sts002_rtstruct" / modality)
    found = labels_of(raw(tmp_path) / "labelsTr" / "case_000.nii.gz") > 0
    references = (SHARED / "sts002_rtstruct" / "reference_nifti").iterdir()
    (reference,) = (file for file in references if modality in file.name)
    assert dice(found, labels_of(reference) > 0) > 0.999


@REAL
def test_real_segmentations_lie_where_others_put_them(tmp_path):
    source = tmp_path / "e"
    source.mkdir()
    for file in (*(SHARED / "dcmqi_seg" / "ct-3slice").iterdir(), SHARED / "dcmqi_seg" / "liver.dcm"):
        (source / file.name).write_bytes(file.read_bytes())
    made = make(tmp_path, source)
    assert made.classes == ("Liver",) and made.channels == ("CT",)
    label_map = sitk.ReadImage(str(raw(tmp_path) / "labelsTr" / "case_000.nii.gz"))
    theirs = sitk.ReadImage(str(SHARED / "dcmqi_seg" / "liver_seg.nrrd"))
    reference = sitk.Resample(theirs, label_map, sitk.Transform(), sitk.sitkNearestNeighbor)
    found, expected = (sitk.GetArrayFromImage(one) > 0 for one in (label_map, reference))
    assert expected.any()
    np.testing.assert_array_equal(found, expected)
