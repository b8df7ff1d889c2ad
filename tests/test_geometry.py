"""Coordinates keep their place: file, reader, transposition, crop, resampling, and back; all 48 orientations."""

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import ORIGIN_MM, write_volume
from plans import make_plans

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.geometry import CaseGeometry, case_geometry, nearest_voxel, same_place

SHAPE = (9, 8, 7)
SPACING_MM = (3.0, 0.7, 1.1)
CROP = ((2, 8), (1, 6), (0, 5))  # of the file's array: what is not zero
MARKED = (4, 2, 5)  # (i, j, k) in the file
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
AXES = list(itertools.permutations(range(3)))
TILT = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def orientations() -> list[np.ndarray]:
    """All 48 ways to lay the axes of a file along those of the world."""
    return [np.eye(3)[list(axes)] * signs for axes in AXES for signs in itertools.product((1, -1), repeat=3)]


def reader_class(name: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)


def write_index_images(folder: Path, direction: np.ndarray, ending: str = ".nii.gz") -> list[Path]:
    """Write three channels that hold each voxel's own index i, j and k, counted from 1, and 0 outside of a box."""
    inside = np.zeros(SHAPE, dtype=bool)
    inside[tuple(slice(*ends) for ends in CROP)] = True
    files = []
    for channel, axis in enumerate((2, 1, 0)):
        index = np.indices(SHAPE, dtype=np.float32)[axis] + 1
        files.append(folder / f"image_{channel:04d}{ending}")
        write_volume(np.where(inside, index, 0), files[-1], SPACING_MM, ORIGIN_MM, direction.ravel().tolist())
    return files


def preprocess(files: list[Path], reader_name: str, axes: tuple[int, ...]) -> tuple[np.ndarray, dict, CaseGeometry]:
    """Read and preprocess as training and prediction do."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = make_plans("Dataset903_Geometry", ["NoNormalization"] * len(files))
    plans |= {"image_reader_writer": reader_name, "transpose_forward": list(axes)}
    plans["transpose_backward"] = np.argsort(axes).tolist()
    plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["force_separate_z"] = False
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    image, properties = manager.image_reader_writer_class().read_images([str(file) for file in files])
    preprocessor = configuration.preprocessor_class(verbose=False)
    image, _, properties = preprocessor.run_case_npy(image, None, properties, manager, configuration, {})
    return image, properties, case_geometry(properties, manager.transpose_forward, image.shape[1:])


@pytest.mark.parametrize("reader_name", READERS)
def test_marked_voxel_keeps_its_place_in_all_orientations(tmp_path: Path, reader_name: str) -> None:
    for number, direction in enumerate(orientations()):
        files = write_index_images(tmp_path, direction)
        image, properties, geometry = preprocess(files, reader_name, AXES[number % len(AXES)])
        assert geometry.crop_shape != image.shape[1:]
        check_preprocessed_voxels(image, geometry)
        check_marked_voxel(files[0], properties, geometry, reader_class(reader_name)(), tmp_path / "label.nii.gz")


def check_preprocessed_voxels(image: np.ndarray, geometry: CaseGeometry) -> None:
    """Each preprocessed voxel lies in the file where its own intensity, the file's index, says."""
    voxels = np.moveaxis(np.indices(image.shape[1:]), 0, -1)
    in_file = geometry.from_array(geometry.preprocessed_to_array(voxels), "voxel")
    low, high = np.array(CROP[::-1]).T
    # Beyond the outermost centres there is nothing to interpolate with.
    np.testing.assert_allclose(np.clip(in_file, low, high - 1), np.moveaxis(image, 0, -1) - 1, atol=1e-4)
    np.testing.assert_allclose(
        geometry.array_to_preprocessed(geometry.to_array(in_file, "voxel")), voxels, rtol=0, atol=1e-9
    )


def check_marked_voxel(file: Path, properties: dict, geometry: CaseGeometry, reader: Any, label_file: Path) -> None:
    """World, file and array agree on a voxel, and a label that is written there lies there in the file."""
    lps = np.array(sitk.ReadImage(str(file)).TransformIndexToPhysicalPoint(MARKED))
    for coordinates, space in ((lps, "LPS"), (lps * (-1, -1, 1), "RAS"), (MARKED, "voxel")):
        array_zyx = geometry.to_array(coordinates, space)
        np.testing.assert_allclose(geometry.from_array(array_zyx, space), coordinates, atol=1e-4)
        assert geometry.array_voxel(geometry.array_to_preprocessed(array_zyx)) == tuple(np.round(array_zyx))
    labels = np.zeros(geometry.array_shape, dtype=np.uint8)
    labels[nearest_voxel(geometry.to_array(lps, "LPS"), geometry.array_shape)] = 1
    reader.write_seg(labels, str(label_file), properties)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(label_file)))
    assert np.argwhere(written).tolist() == [list(MARKED[::-1])]


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_and_tilted_axes(tmp_path: Path, ending: str) -> None:
    direction = TILT @ orientations()[19]
    files = write_index_images(tmp_path, direction, ending)
    image, properties, geometry = preprocess(files, "SimpleITKIO", (2, 0, 1))
    check_preprocessed_voxels(image, geometry)
    check_marked_voxel(files[0], properties, geometry, reader_class("SimpleITKIO")(), tmp_path / f"label{ending}")


def test_tilted_axes_through_a_reader_that_reorients(tmp_path: Path) -> None:
    files = write_index_images(tmp_path, TILT @ orientations()[30])
    image, properties, geometry = preprocess(files, "SimpleITKIOWithReorient", (1, 0, 2))
    check_preprocessed_voxels(image, geometry)
    reader = reader_class("SimpleITKIOWithReorient")()
    check_marked_voxel(files[0], properties, geometry, reader, tmp_path / "label.nii.gz")


def test_nibabel_and_itk_agree_on_a_header_by_nibabel(tmp_path: Path) -> None:
    affine = np.array([[0, -0.7, 0, 4.0], [1.1, 0, 0, -3.0], [0, 0, -3.0, 8.0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE[::-1], dtype=np.float32), affine), tmp_path / "image_0000.nii.gz")
    for reader_name in READERS:
        _, _, geometry = preprocess([tmp_path / "image_0000.nii.gz"], reader_name, (0, 1, 2))
        ras = (affine @ (*MARKED, 1))[:3]
        in_array = geometry.to_array(ras, "RAS")
        np.testing.assert_allclose(geometry.from_array(in_array, "voxel"), MARKED, atol=1e-5)
        np.testing.assert_allclose(geometry.from_array(in_array, "LPS"), ras * (-1, -1, 1), atol=1e-5)


def make_properties(**more: Any) -> dict[str, Any]:
    """What nnU-Net says of an array (5, 6, 7) that is transposed by (2, 0, 1), and cropped."""
    return {
        "spacing": list(SPACING_MM),
        "shape_before_cropping": (7, 5, 6),
        "bbox_used_for_cropping": [[1, 7], [0, 5], [2, 5]],
        **more,
    }


def test_without_a_place_in_the_world_only_voxels_are_known() -> None:
    geometry = case_geometry(make_properties(), (2, 0, 1), (4, 5, 9))
    assert (geometry.array_shape, geometry.crop_low, geometry.crop_shape) == ((5, 6, 7), (1, 0, 2), (6, 5, 3))
    assert geometry.to_array((6, 4, 3), "voxel").tolist() == [3, 4, 6]
    for space in ("LPS", "RAS"):
        with pytest.raises(PromptError, match=f"millimetres .{space}.*does not say where.*give voxel indices"):
            geometry.to_array((6, 4, 3), space)


def test_crop_and_resampling_by_hand() -> None:
    geometry = case_geometry(make_properties(), (2, 0, 1), (3, 5, 9))
    assert geometry.voxels_per_array_voxel.tolist() == [0.5, 1.0, 3.0]
    # The first voxel of the crop is half a preprocessed one along the first axis, three along the last.
    assert geometry.array_to_preprocessed((0, 2, 1)).tolist() == [-0.25, 0.0, 1.0]
    assert geometry.array_to_preprocessed((0, 1, 0))[[0, 2]].tolist() == [-0.75, -2.0]
    assert geometry.preprocessed_to_array((-0.25, 0.0, 1.0)).tolist() == [0, 2, 1]


def test_every_voxel_of_the_crop_is_found_again() -> None:
    geometry = case_geometry(make_properties(), (2, 0, 1), (4, 3, 7))
    for voxel in itertools.product(range(5), range(2, 5), range(1, 7)):
        placed = geometry.array_to_preprocessed(voxel)
        assert geometry.array_voxel(placed) == voxel
        assert np.all(np.floor(placed + 0.5) >= 0)
        assert np.all(np.floor(placed + 0.5) < geometry.preprocessed_shape)


def test_mask_follows_its_voxels() -> None:
    geometry = case_geometry(make_properties(), (2, 0, 1), (12, 5, 6))
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[1:3, 3, 4:6] = True
    placed = geometry.mask_to_preprocessed(mask)
    assert placed.dtype == bool
    expected = np.zeros((12, 5, 6), dtype=bool)
    expected[6:10, 1:3, 2:4] = True
    np.testing.assert_array_equal(placed, expected)


def test_flat_image_is_refused() -> None:
    stored = {"spacing": (1.0, 2.0), "origin": (0.0, 0.0), "direction": (1.0, 0.0, 0.0, 1.0)}
    with pytest.raises(PromptError, match="has 2 dimensions, prompts want 3"):
        case_geometry(make_properties(sitk_stuff=stored), (2, 0, 1), (4, 5, 9))


def test_same_place_allows_for_rounding_only() -> None:
    def stored(**changes: Any) -> dict[str, Any]:
        given = {"spacing": (1.1, 0.7, 3.0), "origin": ORIGIN_MM, "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
        return {"sitk_stuff": {**given, **changes}}

    for changes, is_same in (
        ({"origin": (-11.05, 23.0, 5.0)}, True),
        ({"origin": (-11.2, 23.0, 5.0)}, False),
        ({"spacing": (1.1, 0.7, 3.01)}, True),
        ({"spacing": (1.1, 0.75, 3.0)}, False),
        ({"direction": (1, 0, 0, 0, -1, 0, 0, 0, 1)}, False),
    ):
        assert same_place(stored(), stored(**changes), (5, 6, 7), 0.1) is is_same, changes
    assert same_place(stored(), {"spacing": [1, 1, 1]}, (5, 6, 7), 0.1)
