"""Left and right, found in the headers."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import write_volume
from scipy.spatial.transform import Rotation

from sam3dnet.planning.orientation import axis_along_world, left_right_axis, orientations, read_grids
from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.serving.segment import orientation_of
from sam3dnet.serving.turning import turn_between

ITK = DatasetReader("SimpleITKIO")
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)  # left and right along the file's third axis, the array's first
CORONAL = (-1, 0, 0, 0, 0, 1, 0, 1, 0)
SWAPPED = (0, 1, 0, 1, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("direction", "axis"), [((1, 0, 0, 0, 1, 0, 0, 0, 1), 2), (SAGITTAL, 0), (CORONAL, 2), (SWAPPED, 1)]
)
def test_the_axis_is_that_of_the_files(direction, axis, tmp_path):
    write_volume(np.zeros((5, 6, 7), np.int16), tmp_path / "image.nii.gz", direction=direction)
    assert left_right_axis(read_grids([tmp_path / "image.nii.gz"], ITK), ITK) == axis


def test_most_images_decide_and_unreadable_ones_do_not_count(tmp_path):
    for name, direction in {"a": SAGITTAL, "b": SWAPPED, "c": SWAPPED}.items():
        write_volume(np.zeros((5, 6, 7), np.int16), tmp_path / f"{name}.nii.gz", direction=direction)
    (tmp_path / "d.nii.gz").write_bytes(b"nothing")
    assert left_right_axis(read_grids(sorted(tmp_path.iterdir()), ITK), ITK) == 1
    assert left_right_axis(read_grids([tmp_path / "d.nii.gz"], ITK), ITK) is None


@pytest.mark.parametrize("name", ["SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_a_reader_that_reorients_gives_left_and_right_along_the_last_axis(name, tmp_path):
    volume = np.zeros((5, 6, 7), np.int16)
    volume[:3] = 1  # one side of the body: left and right run along the stored array's first axis
    write_volume(volume, tmp_path / "image.nii.gz", direction=SAGITTAL)
    reader = DatasetReader(name)
    array_ZYX = reader.read_seg(tmp_path / "image.nii.gz")[0][0]
    assert [bool(np.ptp(array_ZYX, axis=axis).any()) for axis in range(3)] == [False, False, True]
    assert left_right_axis(read_grids([tmp_path / "image.nii.gz"], reader), reader) == 2
    assert orientations(read_grids([tmp_path / "image.nii.gz"], reader), reader) == []


def test_orientations_are_named_once(tmp_path):
    for name, direction in {"a": SAGITTAL, "b": SWAPPED, "c": SWAPPED}.items():
        write_volume(np.zeros((5, 6, 7), np.int16), tmp_path / f"{name}.nii.gz", direction=direction)
    assert orientations(read_grids(sorted(tmp_path.iterdir()), ITK), ITK) == ["PIL", "PLS"]


def grid_along(axes):
    """A grid whose axes (x, y, z) run so, a row each."""
    return Grid((5, 6, 7), (3.0, 0.7, 1.1), (0.0, 0.0, 0.0), tuple(np.transpose(axes).ravel().tolist()))


def test_no_two_axes_of_an_oblique_image_run_in_the_same_direction():
    """A short-axis view of the heart: two of its axes are nearest to left and right."""
    row, column = np.array([0.72, 0.56, -0.40]), np.array([0.0, 0.58, 0.81])
    grid = grid_along([row, column, np.cross(row, column)])
    assert grid.orientation == "LSA"
    assert turn_between("SPL", grid.orientation[::-1]).order == (1, 0, 2)
    assert [axis_along_world(grid, ITK, world) for world in range(3)] == [2, 0, 1]
    assert orientation_of({"sam3d": {"orientations": ["LSL"]}}, reorients=False) == ""  # as it was called before
    assert orientation_of({"sam3d": {"orientations": ["LSA"]}}, reorients=False) == "LSA"


def test_orientations_are_those_of_itk_and_nibabel():
    for axes in Rotation.random(300, random_state=5).as_matrix() * np.array([[1], [1], [-1]]):
        grid = grid_along(axes)
        assert grid.orientation == sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(grid.direction)
        affine = np.eye(4)
        affine[:3, :3] = np.diag([-1, -1, 1]) @ np.transpose(axes)
        assert grid.orientation == "".join(nib.aff2axcodes(affine))
