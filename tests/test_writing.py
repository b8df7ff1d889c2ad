"""A label map lies where its image does, as every library sees it: reader x format x header."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from sam3dnet.inference.writing import write_label_map
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.geometry import case_geometry
from sam3dnet.preprocessing.nifti_labels import GEOMETRY
from sam3dnet.preprocessing.pipeline import keep_labels
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.world import WORLD

LABELS_ZYX = np.arange(3 * 4 * 5).reshape(3, 4, 5) % 3
# rotated by 0.3 around z, anisotropic, with digits that no writer's detour through a matrix keeps
AFFINE = np.array([[0.7642, -0.2659, 0, -91.27], [0.2364, 0.8597, 0, 17.31], [0, 0, 2.4999, -3.33], [0, 0, 0, 1.0]])
SHIFTED = [*AFFINE, [0, 0, 0, 10], [0, 0, 0, -5], [0, 0, 0, 3], [0, 0, 0, 0]]
SAGITTAL = AFFINE[:, [1, 2, 0, 3]] * (1, -1, -1, 1)
SHEARED = AFFINE @ [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
# name -> (qform, its code, sform, its code)
HEADERS: dict[str, tuple[Any, int, Any, int]] = {
    "qform alone": (AFFINE, 1, None, 0),
    "sform alone": (None, 0, AFFINE, 1),
    "both": (AFFINE, 1, AFFINE, 1),
    "both, aligned": (AFFINE, 1, AFFINE, 2),
    "two places, scanner and aligned": (AFFINE, 1, SHIFTED, 2),
    "two places, both scanner": (AFFINE, 1, SHIFTED, 1),
    "neither": (None, 0, None, 0),
    "sagittal": (SAGITTAL, 1, SAGITTAL, 1),
    "flipped": (AFFINE @ np.diag([-1, 1, 1, 1.0]), 1, AFFINE @ np.diag([-1, 1, 1, 1.0]), 1),
    "sheared": (AFFINE, 0, SHEARED, 1),
}
ITK_READERS, NIBABEL_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient"), ("NibabelIO", "NibabelIOWithReorient")


def write_nifti(
    file: Path, header: tuple[Any, int, Any, int], order: str = "<", kind: Any = nibabel.Nifti1Image
) -> Any:
    """Write an image whose voxels are labels; give its header as it is read back."""
    qform, qform_code, sform, sform_code = header
    image = kind(LABELS_ZYX.T.astype(np.int16), None, kind.header_class(endianness=order))
    image.set_qform(qform, qform_code)
    image.set_sform(sform, sform_code)
    image.header.set_zooms((0.8, 0.9, 2.4999))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(file)
    return nibabel.load(file).header


def write_itk(file: Path) -> None:
    image = sitk.GetImageFromArray(LABELS_ZYX.astype(np.float32))
    image.SetSpacing((0.7, 1.3, 4.0))
    image.SetOrigin((-3.5, 8.25, 11.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(file))


def pass_on(
    reader: DatasetReader, image: Path, output: Path, change: Callable[[np.ndarray], np.ndarray] = np.array
) -> None:
    """Read an image as a model's is, and write what it holds as a label map."""
    image_CZYX, properties = reader.read_images([image])
    write_label_map(change(image_CZYX[0].astype(np.int64)), output, image, properties, reader)


def clicked(reader: DatasetReader, image: Path, coordinates: np.ndarray, space: Any) -> tuple[int, ...]:
    """Give the voxel of the file that a click in millimetres names."""
    image_CZYX, properties = reader.read_images([image])
    shape = image_CZYX.shape[1:]
    said = {**properties, WORLD: reader.world_of(image), "shape_before_cropping": shape}
    said["bbox_used_for_cropping"] = [[0, size] for size in shape]
    geometry = case_geometry(said, (0, 1, 2), shape)
    return tuple(round(v) for v in geometry.from_array(geometry.to_array(coordinates, space), "voxel"))


def itk_opens(file: Path) -> bool:
    try:
        sitk.ReadImage(str(file))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("reader_name", ITK_READERS + NIBABEL_READERS)
def test_nifti(tmp_path: Path, reader_name: str, name: str, ending: str) -> None:
    image, output = tmp_path / f"image{ending}", tmp_path / f"out{ending}"
    header = write_nifti(image, HEADERS[name], ">" if ending == ".nii" else "<")
    reader = DatasetReader(reader_name)
    if reader_name in ITK_READERS and not itk_opens(image):
        (problem,) = reader.read_grid("a", image)[1]
        assert '"overwrite_image_reader_writer": "NibabelIO"' in problem.message
        return
    pass_on(reader, image, output)
    written = nibabel.load(output)
    for field in GEOMETRY:
        np.testing.assert_array_equal(written.header[field], header[field].astype(written.header[field].dtype))
    assert written.header.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, LABELS_ZYX)
    assert itk_opens(output) == itk_opens(image)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([image.name, output.name])
    check_clicks(reader, image)


def check_clicks(reader: DatasetReader, image: Path) -> None:
    """Clicks in LPS obey ITK, those in RAS nibabel, whatever reads the image."""
    voxel = (3, 1, 2)
    affine = nibabel.load(image).affine
    assert clicked(reader, image, (affine @ (*voxel, 1))[:3], "RAS") == voxel
    if itk_opens(image):
        lps = sitk.ReadImage(str(image)).TransformIndexToPhysicalPoint(voxel)
        assert clicked(reader, image, np.array(lps), "LPS") == voxel


@pytest.mark.parametrize("reader_name", NIBABEL_READERS)
def test_nifti_of_the_second_version(tmp_path: Path, reader_name: str) -> None:
    header = write_nifti(tmp_path / "image.nii", HEADERS["both"], kind=nibabel.Nifti2Image)
    pass_on(DatasetReader(reader_name), tmp_path / "image.nii", tmp_path / "out.nii")
    written = nibabel.load(tmp_path / "out.nii")
    assert isinstance(written, nibabel.Nifti2Image)
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "image.nii").affine)
    assert header["sform_code"] == written.header["sform_code"]
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, LABELS_ZYX)


@pytest.mark.parametrize("reader_name", ITK_READERS)
@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii.gz"])
def test_other_formats_keep_their_place_and_large_labels(tmp_path: Path, reader_name: str, ending: str) -> None:
    image, output = tmp_path / f"image{ending}", tmp_path / f"out{ending}"
    write_itk(image)
    pass_on(DatasetReader(reader_name), image, output, lambda labels: labels * 200)
    before, written = sitk.ReadImage(str(image)), sitk.ReadImage(str(output))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, name)() == getattr(before, name)()
    assert written.GetPixelID() == sitk.sitkUInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), LABELS_ZYX * 200)


@pytest.mark.parametrize("ending", [".tif", ".tiff"])
def test_the_spacing_of_tiff_lies_beside(tmp_path: Path, ending: str) -> None:
    image, output = tmp_path / f"a_0000{ending}", tmp_path / "out" / f"a{ending}"
    output.parent.mkdir()
    tifffile.imwrite(image, LABELS_ZYX.astype(np.float32), photometric="minisblack")
    (tmp_path / "a.json").write_text('{"spacing": [4, 0.5, 0.25]}')
    reader = DatasetReader("Tiff3DIO")
    pass_on(reader, image, output)
    grid, problems = reader.read_grid("a", output, is_label=True)
    assert not problems and grid is not None
    assert (grid.shape, grid.spacing_mm, grid.is_spaced) == ((3, 4, 5), (4.0, 0.5, 0.25), True)
    np.testing.assert_array_equal(tifffile.imread(output), LABELS_ZYX)
    np.testing.assert_array_equal(reader.read_seg(output)[0][0], LABELS_ZYX)
    assert properties_are(reader.read_seg(output)[1], spacing=[4, 0.5, 0.25])


@pytest.mark.parametrize(("stored", "kept"), [(".nii", ".nii.gz"), (".nii.gz", ".nii"), (".nii.gz", ".nii.gz")])
def test_kept_labels_are_what_their_names_say(tmp_path: Path, stored: str, kept: str) -> None:
    label, folder = tmp_path / f"of_a{stored}", tmp_path / "gt_segmentations"
    write_nifti(label, HEADERS["both"])
    for _ in range(2):
        keep_labels([TrainingCase("a", (), label)], folder, kept, DatasetReader("SimpleITKIO"))
        assert ((folder / f"a{kept}").read_bytes()[:2] == b"\x1f\x8b") == kept.endswith(".gz")
        np.testing.assert_array_equal(np.asarray(nibabel.load(folder / f"a{kept}").dataobj).T, LABELS_ZYX)


@pytest.mark.parametrize("beside", ["labelsTr", "imagesTr"])
def test_the_kept_labels_of_tiff_keep_their_spacing(tmp_path: Path, beside: str) -> None:
    """A validation writes its label maps in the place of the kept labels."""
    label, kept = tmp_path / "labelsTr" / "of_a.tif", tmp_path / "gt_segmentations"
    for folder in (label.parent, tmp_path / "imagesTr", kept):
        folder.mkdir()
    tifffile.imwrite(label, LABELS_ZYX.astype(np.uint8), photometric="minisblack")
    (tmp_path / beside / "of_a.json").write_text('{"spacing": [4.0, 0.5, 0.7]}')
    (kept / "b.tif").write_bytes(label.read_bytes())
    (kept / "b.json").write_text('{"spacing": [1, 1, 1]}')
    reader = DatasetReader("Tiff3DIO")
    keep_labels([TrainingCase("a", (), label)], kept, ".tif", reader)
    assert sorted(file.name for file in kept.iterdir()) == ["a.json", "a.tif"]
    properties = reader.read_seg(kept / "a.tif")[1]
    write_label_map(LABELS_ZYX, tmp_path / "a.tif", kept / "a.tif", properties, reader)
    grid, _ = reader.read_grid("a", tmp_path / "a.tif", is_label=True)
    assert grid is not None and grid.spacing_mm == (4.0, 0.5, 0.7)


def properties_are(properties: Mapping[str, Any], **expected: Any) -> bool:
    return all(list(properties[key]) == value for key, value in expected.items())
