"""The checks of single files: truncated, damaged, NaN, no contrast, foreign, twice."""

import gzip
import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import SimpleITK as sitk
from faults import ENDINGS, check, found, image_of, label_of, make, message_of, read, rewrite, set_voxels, truncate
from phantoms import SPACING_MM, write_volume

from sam3dnet.preprocessing.verify import require_sound


def flip_a_bit(path: Path) -> None:
    """In the middle of the compressed voxels."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.99])
@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated_file(tmp_path: Path, ending: str, share: float, kind: str) -> None:
    folder = make(tmp_path, file_ending=ending, num_cases=2)
    truncate(image_of(folder, 1) if kind == "image" else label_of(folder, 1), share)
    checks = {case_and_check[1:] for case_and_check in found(folder)}
    assert checks <= {("case_1", "truncated file"), ("case_1", "unreadable file"), ("case_1", "damaged file")}
    assert len(checks) == 1
    if ending.startswith(".nii"):
        assert checks == {("case_1", "truncated file")}


def test_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    folder = make(tmp_path, file_ending=".nii")
    image = image_of(folder, 1)
    expected = image.stat().st_size
    os.truncate(image, expected - 2)
    message = f"its header promises {expected} bytes (uncompressed), there are {expected - 2}"
    assert message in message_of(folder, "truncated file")


@pytest.mark.parametrize("voxel_type", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("kept", [-1, 300, 100])
def test_truncated_gipl(tmp_path: Path, kept: int, voxel_type: type) -> None:
    """ITK fills it up with whatever the memory held."""
    folder = make(tmp_path, file_ending=".gipl")
    image = image_of(folder, 1)
    rewrite(image, lambda voxels: voxels.astype(voxel_type))
    assert found(folder) == set()
    size = image.stat().st_size
    os.truncate(image, kept % size)
    if kept == 100:  # not even the header
        assert found(folder) == {("error", "case_1", "unreadable file")}
        return
    assert found(folder) == {("error", "case_1", "truncated file")}
    message = f"its header promises {size} bytes, there are {kept % size}"
    assert message in message_of(folder, "truncated file")


def test_truncated_without_loss_of_compressed_data_is_still_found(tmp_path: Path) -> None:
    """A stream that ends well, but too early: as when a program was killed while it wrote."""
    folder = make(tmp_path)
    image = image_of(folder, 1)
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:-20]))
    assert found(folder) == {("error", "case_1", "truncated file")}


@pytest.mark.parametrize("size", [0.0, float("nan")])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_header_without_the_size_of_voxels(tmp_path: Path, kind: str, size: float) -> None:
    folder = make(tmp_path, file_ending=".nii")
    file = image_of(folder, 1) if kind == "image" else label_of(folder, 1)
    content = bytearray(file.read_bytes())
    content[88:92] = struct.pack("<f", size)
    file.write_bytes(content)
    assert ("warning", "case_1", "implausible spacing") in found(folder)
    assert "says 0 for the size of a voxel, which programs read as 1 mm" in message_of(folder, "implausible spacing")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_flipped_bit_in_compressed_data(tmp_path: Path, ending: str) -> None:
    folder = make(tmp_path, file_ending=ending)
    flip_a_bit(image_of(folder, 1))
    checks = {problem[1:] for problem in found(folder)}
    assert checks in ({("case_1", "damaged file")}, {("case_1", "truncated file")})


def test_wrong_checksum(tmp_path: Path) -> None:
    folder = make(tmp_path)
    image = image_of(folder, 1)
    content = bytearray(image.read_bytes())
    content[-6] ^= 1
    image.write_bytes(content)
    assert found(folder) == {("error", "case_1", "damaged file")}
    assert "CRC check failed" in message_of(folder, "damaged file")


@pytest.mark.parametrize("ending", ENDINGS)
def test_file_that_is_no_image(tmp_path: Path, ending: str) -> None:
    folder = make(tmp_path, file_ending=ending)
    image_of(folder, 1).write_text("a table, or a web page of a failed download\n" * 20)
    assert found(folder) == {("error", "case_1", "unreadable file")}


def test_uncompressed_file_with_a_compressed_name(tmp_path: Path) -> None:
    folder = make(tmp_path)
    image = image_of(folder, 1)
    image.write_bytes(gzip.decompress(image.read_bytes()))
    assert found(folder) == {("warning", "case_1", "not compressed")}
    truncate(image, 0.7)
    assert ("error", "case_1", "truncated file") in found(folder)


def test_another_format_beside_an_image(tmp_path: Path) -> None:
    """ITK takes the header of x.nii.gz and the voxels of x.nii."""
    folder = make(tmp_path)
    image = image_of(folder, 1)
    other = read(image) * 0 + 7
    write_volume(other, image.with_suffix(""))
    assert (read(image) == other).all()
    assert ("error", "case_1", "two formats") in found(folder)
    assert "case_1_0000.nii lies beside case_1_0000.nii.gz" in message_of(folder, "two formats")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", ENDINGS)
def test_nan_and_infinity(tmp_path: Path, ending: str, value: float) -> None:
    folder = make(tmp_path, file_ending=ending)
    rewrite(image_of(folder, 1), lambda image: set_voxels(image, value, count=3))
    assert found(folder) == {("error", "case_1", "non-finite voxels")}
    assert ": 3 voxels are NaN or infinite" in message_of(folder, "non-finite voxels")


def write_nifti2(path: Path, array: np.ndarray, order: Literal["<", ">"]) -> None:
    """A NIfTI-2 file with identity orientation."""
    header = bytearray(544)
    datatype, bits = {"f4": (16, 32), "f8": (64, 64)}[array.dtype.str[1:]]
    struct.pack_into(f"{order}i", header, 0, 540)
    header[4:12] = b"n+2\x00\r\n\x1a\n"
    struct.pack_into(f"{order}2h", header, 12, datatype, bits)
    struct.pack_into(f"{order}8q", header, 16, 3, *array.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(f"{order}8d", header, 104, 1, *SPACING_MM[::-1], 1, 1, 1, 1)
    struct.pack_into(f"{order}q", header, 168, 544)
    path.write_bytes(bytes(header) + array.astype(array.dtype.newbyteorder(order)).tobytes())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("number", ["f4", "f8"])
def test_nan_in_nifti_2_of_either_byte_order(tmp_path: Path, number: str, order: Literal["<", ">"]) -> None:
    folder = make(tmp_path, file_ending=".nii")
    array = set_voxels(read(image_of(folder, 1)), np.nan, count=2).astype(number)
    write_nifti2(image_of(folder, 1), array, order)
    assert ": 2 voxels are NaN or infinite" in message_of(folder, "non-finite voxels")
    truncate(image_of(folder, 1), 0.9)
    assert ("error", "case_1", "truncated file") in found(folder)


def test_nan_in_a_large_file_is_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.preprocessing import checks_bytes

    monkeypatch.setattr(checks_bytes, "_BLOCK_BYTES", 102)
    folder = make(tmp_path)
    rewrite(image_of(folder, 1), lambda image: set_voxels(image, np.nan, count=200))
    assert ": 200 voxels are NaN or infinite" in message_of(folder, "non-finite voxels")


@pytest.mark.parametrize(("value", "check_name"), [(0, "all-zero image"), (-1000, "constant image")])
def test_image_without_contrast(tmp_path: Path, value: int, check_name: str) -> None:
    folder = make(tmp_path)
    for case in (1, 2):
        rewrite(image_of(folder, case), lambda image: np.full_like(image, value))
    assert found(folder) == {("error", "case_1", check_name), ("error", "case_2", check_name)}


def test_image_in_four_dimensions(tmp_path: Path) -> None:
    folder = make(tmp_path)
    image = sitk.JoinSeries([sitk.ReadImage(str(image_of(folder, 1)))] * 2)
    sitk.WriteImage(image, str(image_of(folder, 1)))
    assert found(folder) == {("error", "case_1", "dimension")}
    assert "expected one number a voxel in 3 dimensions (z, y, x), came 4 dimensions (2, 6, 8, 8)" in message_of(
        folder, "dimension"
    )


def test_image_of_vectors(tmp_path: Path) -> None:
    folder = make(tmp_path)
    image = sitk.ReadImage(str(image_of(folder, 1)))
    sitk.WriteImage(sitk.Compose(image, image), str(image_of(folder, 1)))
    assert "of 2 values each" in message_of(folder, "dimension")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_same_image_under_two_names(tmp_path: Path, ending: str) -> None:
    folder = make(tmp_path, file_ending=ending)
    write_volume(read(image_of(folder, 0)), image_of(folder, 3))
    write_volume(read(label_of(folder, 0)), label_of(folder, 3))
    assert found(folder) == {("error", "case_0", "duplicate image")}
    assert f"lies in case_0_0000{ending}, case_3_0000{ending}; remove" in message_of(folder, "duplicate image")


def test_training_image_among_the_test_images_is_a_warning(tmp_path: Path) -> None:
    folder = make(tmp_path, num_test=1)
    (folder / "imagesTs" / "test_0_0000.nii.gz").write_bytes(image_of(folder, 2).read_bytes())
    assert found(folder) == {("warning", "case_2", "duplicate image")}


def test_faults_of_test_images_are_warnings(tmp_path: Path) -> None:
    folder = make(tmp_path, num_test=2)
    truncate(folder / "imagesTs" / "test_1_0000.nii.gz", 0.5)
    assert found(folder) == {("warning", "test_1", "truncated file")}
    require_sound(check(folder))
