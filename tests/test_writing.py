"""A label map lies where its image does, in whatever format and number of dimensions."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from sam3dnet.inference.writing import GEOMETRY, TEMPORARY_FOLDER, write_label_map

LABELS_ZYX = np.arange(3 * 4 * 5).reshape(3, 4, 5) % 3
# rotated by 0.3 around z, anisotropic, with digits that no writer's detour through a matrix keeps
AFFINE = np.array([[0.7642, -0.2659, 0, -91.27], [0.2364, 0.8597, 0, 17.31], [0, 0, 2.4999, -3.33], [0, 0, 0, 1.0]])


def write(image: Path, output: Path, labels_ZYX: np.ndarray = LABELS_ZYX) -> None:
    reader = SimpleITKIO()
    _, properties = reader.read_images([str(image)])
    write_label_map(labels_ZYX, output, image, properties, reader)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("codes", [(1, 0), (1, 1), (2, 1)])
def test_the_geometry_of_a_nifti_image_is_kept_to_the_bit(
    tmp_path: Path, ending: str, order: str, codes: tuple[int, int]
) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), None, nibabel.Nifti1Header(endianness=order))
    image.set_qform(AFFINE, codes[0])
    image.set_sform(AFFINE if codes[1] else None, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / f"image{ending}")
    write(tmp_path / f"image{ending}", tmp_path / f"out{ending}")
    written = nibabel.load(tmp_path / f"out{ending}")
    read_back = nibabel.load(tmp_path / f"image{ending}").header
    for field in GEOMETRY:
        np.testing.assert_array_equal(written.header[field], read_back[field].astype(written.header[field].dtype))
    assert written.header.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, LABELS_ZYX)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [TEMPORARY_FOLDER, f"image{ending}", f"out{ending}"]
    )


def test_many_labels_take_two_bytes(tmp_path: Path) -> None:
    nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), AFFINE).to_filename(tmp_path / "image.nii.gz")
    write(tmp_path / "image.nii.gz", tmp_path / "out.nii.gz", LABELS_ZYX * 200)
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.header.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, LABELS_ZYX * 200)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_an_image_in_two_dimensions_gets_a_label_map_in_two(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 5), np.float32))
    image.SetSpacing((0.7, 1.3))
    image.SetOrigin((-3.5, 8.25))
    sitk.WriteImage(image, str(tmp_path / f"image{ending}"))
    write(tmp_path / f"image{ending}", tmp_path / f"out{ending}", LABELS_ZYX[:1])
    written = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    assert written.GetDimension() == 2
    np.testing.assert_allclose((*written.GetSpacing(), *written.GetOrigin()), (0.7, 1.3, -3.5, 8.25), rtol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), LABELS_ZYX[0])


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_other_formats_keep_their_geometry(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.float32))
    image.SetSpacing((0.7, 1.3, 4.0))
    image.SetOrigin((-3.5, 8.25, 11.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(tmp_path / f"image{ending}"))
    write(tmp_path / f"image{ending}", tmp_path / f"out{ending}")
    written = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, name)() == getattr(image, name)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), LABELS_ZYX)


def test_a_photograph_gets_a_photograph(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), str(tmp_path / "image.png"))
    reader = NaturalImage2DIO()
    _, properties = reader.read_images([str(tmp_path / "image.png")])
    write_label_map(LABELS_ZYX[:1], tmp_path / "out.png", tmp_path / "image.png", properties, reader)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.png"))), LABELS_ZYX[0])
