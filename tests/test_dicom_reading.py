"""DICOM series as images: right, or refused with the reason; never on a silently wrong grid."""

import shutil
import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import FRAME, STRAIGHT, header, oblique, places, set_pixels, write_enhanced, write_series
from pydicom.uid import JPEGLSLossless, RLELossless

from sam3dnet.dicom.files import as_folder, holds_dicom, read_headers
from sam3dnet.dicom.stacks import find_stacks
from sam3dnet.dicom.volumes import labels_on_slices, read_image
from sam3dnet.errors import DatasetError

SHAPE = (5, 7, 6)


@pytest.fixture
def stored():
    return np.random.default_rng(3).integers(-900, 900, SHAPE).astype(np.int16)


def stacks_in(source):
    with as_folder(source) as folder:
        return find_stacks(read_headers(folder).instances)


def image_in(source):
    with as_folder(source) as folder:
        (stack,) = find_stacks(read_headers(folder).instances)
        return read_image(stack)


@pytest.mark.parametrize("axes", [STRAIGHT, STRAIGHT[[1, 2, 0]], STRAIGHT[[1, 0, 2]] * [1, 1, -1], oblique()])
def test_an_image_lies_where_itk_and_the_positions_say(tmp_path, stored, axes):
    write_series(tmp_path, stored, axes=axes, spacing=(0.7, 0.9, 2.5))
    image = image_in(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), stored)
    for number, position in enumerate(places(len(stored), axes)):
        assert image.TransformIndexToPhysicalPoint((0, 0, number)) == pytest.approx(position, abs=1e-5)
    other = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    for get in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(image, get)() == pytest.approx(getattr(other, get)(), abs=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(other))


def test_each_slice_is_rescaled_by_itself(tmp_path, stored):
    rescale = [(0.25 * (number + 1), number) for number in range(len(stored))]
    write_series(tmp_path, stored, rescale=rescale, modality="PT")
    expected = [values * slope + intercept for values, (slope, intercept) in zip(stored, rescale, strict=True)]
    image = image_in(tmp_path)
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), expected, rtol=1e-6)


def test_whole_numbers_stay_whole_and_take_as_many_bytes_as_they_need(tmp_path, stored):
    write_series(tmp_path / "a", stored, rescale=[(1, -1024)] * len(stored))
    write_series(tmp_path / "b", stored, rescale=[(100, 0)] * len(stored))
    small, large = image_in(tmp_path / "a"), image_in(tmp_path / "b")
    assert (small.GetPixelID(), large.GetPixelID()) == (sitk.sitkInt16, sitk.sitkInt32)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(small), stored - 1024)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(large), stored.astype(int) * 100)


@pytest.mark.parametrize("signed", [True, False])
def test_bits_that_belong_to_no_value_are_left_out(tmp_path, stored, signed):
    values = np.clip(stored, -2048, 2047) if signed else np.abs(stored)
    with_overlay = (values.astype(np.int64) & 0x0FFF) | 0xA000
    kept = with_overlay.astype(np.uint16)
    shared = {"BitsStored": 12, "HighBit": 11}
    write_series(tmp_path, kept, each={key: [value] * len(kept) for key, value in shared.items()})
    for file in tmp_path.iterdir():
        import pydicom

        dataset = pydicom.dcmread(file)
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(signed)
        dataset.save_as(file)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image_in(tmp_path)), values)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_files_are_read(tmp_path, stored, syntax):
    write_series(tmp_path, np.abs(stored).astype(np.uint16), compress=syntax)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image_in(tmp_path)), np.abs(stored))


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
def test_files_that_gdcm_compressed_are_read(tmp_path, stored, compressor):
    tall = np.repeat(np.repeat(np.abs(stored).astype(np.uint16), 8, 1), 8, 2)
    write_series(tmp_path / "raw", tall)
    (tmp_path / "packed").mkdir()
    for file in (tmp_path / "raw").iterdir():
        reader, writer = sitk.ImageFileReader(), sitk.ImageFileWriter()
        reader.SetFileName(str(file))
        reader.LoadPrivateTagsOn()
        image = reader.Execute()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / "packed" / file.name))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetCompressionLevel(0)
        writer.Execute(image)
    found = read_headers(tmp_path / "packed").instances
    assert all(one.header.file_meta.TransferSyntaxUID.is_compressed for one in found)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image_in(tmp_path / "packed")), tall)


def test_an_enhanced_file_is_read_frame_by_frame(tmp_path, stored):
    write_enhanced(tmp_path / "mf.dcm", stored, axes=oblique(), order=[2, 0, 4, 1, 3])
    image = image_in(tmp_path)
    expected = [values.astype(int) * (2 + number) - 1 for number, values in enumerate(stored)]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    for number, position in enumerate(places(len(stored), oblique())):
        assert image.TransformIndexToPhysicalPoint((0, 0, number)) == pytest.approx(position, abs=1e-5)


def made_of_places(positions, axes, spacing, shape):
    """Slices whose values are a linear function of the place, and that function."""

    def value(point):
        return 3.0 * point[..., 0] - 2.0 * point[..., 1] + 1.5 * point[..., 2]

    rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    return np.stack(
        [value(p + x[..., None] * spacing[0] * axes[0] + y[..., None] * spacing[1] * axes[1]) for p in positions]
    ), value


@pytest.mark.parametrize("tilt_mm", [(0.0, 1.1), (0.0, -1.1), (-0.8, 0.5)])
@pytest.mark.parametrize("axes", [STRAIGHT, oblique()], ids=["straight", "oblique"])
def test_slices_of_a_tilted_gantry_are_put_where_they_are(tmp_path, axes, tilt_mm):
    spacing, shape = (0.7, 0.9, 2.5), (12, 14)
    positions = places(6, axes, spacing, tilt_mm=tilt_mm)
    values, value = made_of_places(positions, axes, spacing, shape)
    stored = np.rint((values - values.min()) * 10).astype(np.uint16)
    write_series(tmp_path, stored, axes=axes, spacing=spacing, positions=positions, rescale=[(0.1, values.min())] * 6)
    (stack,) = stacks_in(tmp_path)
    assert stack.grid.is_tilted
    image = read_image(stack)
    array = sitk.GetArrayFromImage(image)
    assert array.shape[1] + array.shape[2] > sum(shape)
    sure = 0
    for z, y, x in np.ndindex(array.shape):
        point = np.array(image.TransformIndexToPhysicalPoint((x, y, z)))
        column, row = ((point - positions[z]) @ axes[:2].T) / spacing[:2]
        if 1 <= column <= shape[1] - 2 and 1 <= row <= shape[0] - 2:
            assert array[z, y, x] == pytest.approx(value(point), abs=0.2)
            sure += 1
    assert sure > 6 * 60
    on_slices = labels_on_slices((array > 0).astype(np.uint8), stack.grid)
    assert on_slices.shape == stored.shape
    clear = np.abs(values) > 3
    np.testing.assert_array_equal(on_slices.astype(bool)[clear], (values > 0)[clear])


FAULTS = {
    "a missing slice": ([0, 1, 3, 4, 5], r"1 slice is missing between 402.50 and 407.50 mm: the others are 2.50 mm"),
    "two missing slices": ([0, 1, 2, 5, 6], r"2 slices are missing between"),
    "uneven slices": ([0, 1, 2.4, 3, 4], r"unevenly spaced: 2.50 mm apart, but 3.50 mm between"),
    "a slice twice": ([0, 1, 1, 2, 3], r"1 slices lie where another one lies, the first at 402.50 mm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_volume_says_why(tmp_path, stored, fault):
    numbers, message = FAULTS[fault]
    first, second = places(2)
    write_series(tmp_path, stored, positions=[first + number * (second - first) for number in numbers])
    (stack,) = stacks_in(tmp_path)
    assert stack.grid is None
    with pytest.raises(DatasetError, match=rf"MR, 6 x 7 x 5.*{message}"):
        read_image(stack)


def test_slices_that_are_shifted_here_and_there_are_no_volume(tmp_path, stored):
    positions = places(5)
    positions[2] = positions[2] + [2.0, 0, 0]
    write_series(tmp_path, stored, positions=positions)
    assert "shifted irregularly" in stacks_in(tmp_path)[0].fault


def test_rounded_positions_are_no_fault(tmp_path, stored):
    positions = [np.round(position * 10) / 10 for position in places(5, spacing=(0.7, 0.9, 1.25))]
    write_series(tmp_path, stored, positions=positions)
    assert stacks_in(tmp_path)[0].grid.spacing_mm[2] == pytest.approx(1.25, abs=0.03)


def test_one_slice_has_its_thickness_or_is_no_volume(tmp_path, stored):
    write_series(tmp_path / "a", stored[:1], SliceThickness=4)
    write_series(tmp_path / "b", stored[:1])
    assert image_in(tmp_path / "a").GetSpacing()[2] == 4
    assert "single slice whose header says no thickness" in stacks_in(tmp_path / "b")[0].fault


def test_colours_are_no_values(tmp_path, stored):
    write_series(tmp_path, stored, each={"SamplesPerPixel": [3] * 5})
    assert "3 values, as colours have" in stacks_in(tmp_path)[0].fault


def test_volumes_of_one_series_are_told_apart(tmp_path, stored):
    uid = write_series(tmp_path, stored, modality="MR", EchoTime=10)
    write_series(tmp_path / "b", stored + 1, modality="MR", EchoTime=20, SeriesInstanceUID=uid)
    write_series(tmp_path / "c", stored[:2], axes=STRAIGHT[[1, 2, 0]], modality="MR", SeriesInstanceUID=uid)
    stacks = stacks_in(tmp_path)
    assert [len(stack.frames) for stack in stacks] == [5, 5, 2]
    assert all(stack.fault is None for stack in stacks)
    arrays = sorted(sitk.GetArrayFromImage(read_image(stack)).tolist() for stack in stacks[:2])
    assert arrays == sorted([stored.tolist(), (stored + 1).tolist()])


def test_copies_count_once_and_what_is_no_image_does_not_count(tmp_path, stored):
    write_series(tmp_path / "a", stored)
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a").iterdir():
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "readme.txt").write_text("no DICOM")
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00")
    report = header(sop_class="1.2.840.10008.5.1.4.1.1.88.11", SeriesInstanceUID="1.2.3")
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    dose = header(sop_class="1.2.840.10008.5.1.4.1.1.481.2", SeriesInstanceUID="1.2.4")
    dose.Modality = "RTDOSE"
    set_pixels(dose, stored[0])
    dose.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
    found = read_headers(tmp_path)
    assert (len(found.instances), found.others, [file.name for file in found.damaged]) == (7, 1, ["cut.dcm"])
    assert [len(stack.frames) for stack in find_stacks(found.instances)] == [5]


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_files_without_preamble_are_read_too(tmp_path, stored, implicit, packed):
    write_series(tmp_path / "whole", stored)
    (tmp_path / "old").mkdir()
    for file in (tmp_path / "whole").iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.file_meta, dataset.preamble
        pydicom.dcmwrite(tmp_path / "old" / file.name, dataset, implicit_vr=implicit, little_endian=True)
    (tmp_path / "old" / "note").write_bytes(b"\x08\x00 no DICOM after all" * 20)
    if packed:
        shutil.make_archive(tmp_path / "old", "zip", tmp_path / "old")
    source = tmp_path / ("old.zip" if packed else "old")
    assert holds_dicom(source)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image_in(source)), stored)


def test_a_damaged_image_is_named(tmp_path, stored):
    write_series(tmp_path, stored)
    file = sorted(tmp_path.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DatasetError, match=rf"{file.name}: cannot be decoded.*export it again"):
        image_in(tmp_path)


def test_zip_files_are_unpacked_inside_of_a_folder_that_goes(tmp_path, stored):
    write_series(tmp_path / "a", stored)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number, file in enumerate(sorted((tmp_path / "a").iterdir())):
            archive.write(file, f"../../out/{number}" if number else "/absolute")
    assert holds_dicom(tmp_path / "study.zip")
    with as_folder(tmp_path / "study.zip") as folder:
        (stack,) = find_stacks(read_headers(folder).instances)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(stack)), stored)
    assert not folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "study.zip"]


def test_what_is_no_source_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 128 + b"DICM" + bytes(range(256)) * 40)
    damaged.write_bytes(damaged.read_bytes().replace(b"\x01\x02", b"\x09\x09"))
    for name, message in (
        ("a.txt", "is neither a folder"),
        ("b", "does not exist"),
        ("damaged.zip", "cannot be unpacked"),
    ):
        with pytest.raises(DatasetError, match=message), as_folder(tmp_path / name):
            pass
    assert not holds_dicom(tmp_path)


def test_frames_of_reference_and_localizers_are_known(tmp_path, stored):
    write_series(tmp_path, stored[:2], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (stack,) = stacks_in(tmp_path)
    assert stack.is_no_choice and stack.frame_of_reference == FRAME
