"""Where a preprocessed voxel lies: in the array that nnU-Net's reader gave, in the image's file, in the world.

Four kinds of coordinates, all of floats, voxel centres at integers:

    world           (x, y, z) in millimetres, "LPS" (ITK, DICOM, 3D Slicer's files) or "RAS" (NIfTI)
    file voxel      (i, j, k), the index in the image's file, "voxel"
    array voxel     (z, y, x), the index in the array that the reader gave
    preprocessed    (z, y, x), the index after transposition, crop and resampling

Functions take coordinates with any number of leading axes, the last one holding the three numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.world import RAS_FROM_LPS, WORLD, Floats, affine_of_itk

Space: TypeAlias = Literal["LPS", "RAS", "voxel"]
Mask: TypeAlias = npt.NDArray[np.bool_]
Voxel: TypeAlias = tuple[int, int, int]

_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))


@dataclass(frozen=True, eq=False)
class CaseGeometry:
    """The way between a user's coordinates and the voxels of one preprocessed case.

    Attributes:
        array_shape: Of the array that the reader gave, (Z, Y, X).
        file_from_array: (4, 4), from array voxels in reversed order (x, y, z) to file voxels (i, j, k).
        lps_from_array: (4, 4), from array voxels in reversed order (x, y, z) to millimetres, as ITK sees the file;
            None if it says nothing about the world.
        ras_from_array: (4, 4), the same as nibabel sees the file; see `world.py`.
        transpose_forward: nnU-Net's; axis n of the preprocessed array is axis transpose_forward[n] of the array.
        crop_low: First voxel that the crop keeps, in transposed axes.
        crop_shape: Shape of the crop, in transposed axes.
        preprocessed_shape: (Z, Y, X) of the preprocessed array.
    """

    array_shape: Voxel
    file_from_array: Floats
    lps_from_array: Floats | None
    ras_from_array: Floats | None
    transpose_forward: Voxel
    crop_low: Voxel
    crop_shape: Voxel
    preprocessed_shape: Voxel

    def to_array(self, coordinates: npt.ArrayLike, space: Space) -> Floats:
        """Bring a user's coordinates, (x, y, z) or (i, j, k), to array voxels (z, y, x).

        Raises:
            PromptError: If the space is in millimetres and the image's file does not say where it lies in the world.
        """
        return _apply(np.linalg.inv(self._space_from_array(space)), coordinates)[..., ::-1]

    def from_array(self, coordinates_zyx: npt.ArrayLike, space: Space) -> Floats:
        """Bring array voxels (z, y, x) to a user's coordinates, (x, y, z) or (i, j, k).

        Raises:
            PromptError: If the space is in millimetres and the image's file does not say where it lies in the world.
        """
        return _apply(self._space_from_array(space), np.asarray(coordinates_zyx, dtype=np.float64)[..., ::-1])

    def array_to_preprocessed(self, coordinates_zyx: npt.ArrayLike) -> Floats:
        """Bring array voxels to preprocessed voxels; what the crop leaves out comes to lie outside of the shape."""
        transposed = np.asarray(coordinates_zyx, dtype=np.float64)[..., self.transpose_forward]
        return (transposed - self.crop_low + 0.5) * self.voxels_per_array_voxel - 0.5

    def preprocessed_to_array(self, coordinates_zyx: npt.ArrayLike) -> Floats:
        """Bring preprocessed voxels to array voxels."""
        cropped = (np.asarray(coordinates_zyx, dtype=np.float64) + 0.5) / self.voxels_per_array_voxel - 0.5
        return (cropped + self.crop_low)[..., np.argsort(self.transpose_forward)]

    def array_voxel(self, preprocessed_zyx: npt.ArrayLike) -> Voxel:
        """Give the voxel of the array (of the label map too) that holds one point of the preprocessed array.

        For a point of `place_prompts` it is the voxel that the user clicked.
        """
        return nearest_voxel(self.preprocessed_to_array(preprocessed_zyx), self.array_shape)

    def mask_to_preprocessed(self, mask_ZYX: Mask) -> Mask:
        """Bring a mask on the array's grid to the preprocessed grid, by its nearest voxels."""
        transposed = mask_ZYX.transpose(self.transpose_forward)
        nearest = [
            low + ((np.arange(new) + 0.5) * old / new).astype(np.int64)
            for low, old, new in zip(self.crop_low, self.crop_shape, self.preprocessed_shape, strict=True)
        ]
        return np.ascontiguousarray(transposed[np.ix_(*nearest)])

    @property
    def voxels_per_array_voxel(self) -> Floats:
        """How many preprocessed voxels a voxel of the array becomes along each preprocessed axis."""
        return np.asarray(self.preprocessed_shape, dtype=np.float64) / self.crop_shape

    def _space_from_array(self, space: Space) -> Floats:
        if space == "voxel":
            return self.file_from_array
        found = self.lps_from_array if space == "LPS" else self.ras_from_array
        if found is None:
            raise PromptError(
                f"coordinates are in millimetres ({space}), but the image's file does not say where it lies in the "
                'world; give voxel indices instead, in the space "voxel"'
            )
        return found


def case_geometry(
    properties: Mapping[str, Any], transpose_forward: Sequence[int], preprocessed_shape: Sequence[int]
) -> CaseGeometry:
    """Read the geometry of a preprocessed case from what nnU-Net says about it.

    Of nnU-Net's readers SimpleITKIO, NibabelIO and both that reorient say where the image lies in the world. With
    others, and for an image given as an array, only the space "voxel" is known, the array's own index reversed.

    Args:
        properties: Of nnU-Net's reader, completed by its preprocessor: shape before the crop, box of the crop; with the
            file's `World` under `WORLD`, where the two views of it may differ.
        transpose_forward: Of the plan.
        preprocessed_shape: (Z, Y, X) of the preprocessed array, without the channels.

    Raises:
        PromptError: If the image has other than three dimensions.
    """
    z, y, x = (int(axis) for axis in transpose_forward)
    array_shape = _triple(np.asarray(properties["shape_before_cropping"])[np.argsort((z, y, x))])
    low, high = np.asarray(properties["bbox_used_for_cropping"]).T
    lps_from_array, file_from_array = _image_affines(properties, array_shape)
    ras_from_array = None if lps_from_array is None else RAS_FROM_LPS @ lps_from_array
    if WORLD in properties:
        lps_from_array = properties[WORLD].lps_from_file @ file_from_array
        ras_from_array = properties[WORLD].ras_from_file @ file_from_array
    return CaseGeometry(
        array_shape=array_shape,
        file_from_array=file_from_array,
        lps_from_array=lps_from_array,
        ras_from_array=ras_from_array,
        transpose_forward=(z, y, x),
        crop_low=_triple(low),
        crop_shape=_triple(high - low),
        preprocessed_shape=_triple(preprocessed_shape),
    )


def as_stored(array_ZYX: npt.NDArray[Any], properties: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Bring an array from the axes in which nnU-Net's reader gave the image to those of the image's file.

    Args:
        array_ZYX: On the grid of the image.
        properties: That the reader gave.

    Returns:
        A view, which is the array itself for readers that do not reorient.
    """
    shape = _triple(array_ZYX.shape)
    _, file_from_array = _image_affines(properties, shape)
    array_axes = np.abs(file_from_array[:3, :3]).argmax(1)
    stored_xyz = array_ZYX.transpose().transpose(array_axes)
    backwards = file_from_array[range(3), array_axes] < 0
    return stored_xyz[tuple(slice(None, None, -1 if back else None) for back in backwards)].transpose()


def place_in_file(place_ZYX: Sequence[int], shape_ZYX: Sequence[int], properties: Mapping[str, Any]) -> Voxel:
    """Give the index (i, j, k) in the image's file of a voxel of the array in which nnU-Net's reader gave the image."""
    _, file_from_array = _image_affines(properties, _triple(shape_ZYX))
    return _triple(np.rint(file_from_array @ [*reversed(place_ZYX), 1])[:3])


def place_in_array(at: Sequence[int], shape_ZYX: Sequence[int], properties: Mapping[str, Any]) -> Voxel:
    """Give the voxel (z, y, x) of the array in which nnU-Net's reader gave an image; the reverse of `place_in_file`."""
    _, file_from_array = _image_affines(properties, _triple(shape_ZYX))
    return _triple(np.rint(np.linalg.inv(file_from_array) @ [*at, 1])[2::-1])


def nearest_voxel(coordinates: npt.ArrayLike, shape: Sequence[int]) -> Voxel:
    """Give the voxel of a grid that holds a point, or the nearest one; a point between two belongs to the higher."""
    return _triple(np.clip(np.floor(np.asarray(coordinates) + 0.5), 0, np.asarray(shape) - 1))


DRIFT_VOXELS = 0.1  # by which programs round places when they save


def same_place(one: Mapping[str, Any], other: Mapping[str, Any], array_shape: Voxel, tolerance_voxels: float) -> bool:
    """Tell whether two images of one shape lie in the same place, as far as their files say where.

    Args:
        one: Properties that nnU-Net's reader gave.
        other: The same of the other image.
        array_shape: (Z, Y, X) of both.
        tolerance_voxels: What the corners of the image may be apart.
    """
    first, second = (_image_affines(properties, array_shape)[0] for properties in (one, other))
    if first is None or second is None:
        return True
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in array_shape[::-1])), axis=-1)
    apart = _apply(np.linalg.inv(first) @ second, corners) - corners
    return bool(np.abs(apart).max() <= tolerance_voxels)


def _image_affines(properties: Mapping[str, Any], array_shape: Voxel) -> tuple[Floats | None, Floats]:
    """Give `lps_from_array` and `file_from_array` of an image."""
    if "sitk_stuff" in properties:
        return _affines_of_sitk(properties["sitk_stuff"], array_shape)
    if "nibabel_stuff" in properties:
        return _affines_of_nibabel(properties["nibabel_stuff"])
    return None, np.eye(4)


def _affines_of_sitk(stored: Mapping[str, Any], array_shape: Voxel) -> tuple[Floats, Floats]:
    if len(stored["spacing"]) != 3:
        raise PromptError(
            f"the image's file has {len(stored['spacing'])} dimensions, prompts want 3; write it as a volume"
        )
    lps_from_array = affine_of_itk(stored["spacing"], stored["origin"], stored["direction"])
    if "original_orientation" not in stored:
        return lps_from_array, np.eye(4)
    return lps_from_array, _undo_orienting(stored, array_shape)


def _undo_orienting(stored: Mapping[str, Any], array_shape: Voxel) -> Floats:
    """Make the matrix from a reoriented image's voxels to those of its file, from the letters of both orientations."""
    import SimpleITK as sitk

    letters = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(stored["direction"])
    file_from_array = np.zeros((4, 4))
    file_from_array[3, 3] = 1
    for file_axis, letter in enumerate(stored["original_orientation"]):
        if letter in letters:
            file_from_array[file_axis, letters.index(letter)] = 1
        else:
            array_axis = letters.index(_OPPOSITE[letter])
            file_from_array[file_axis, array_axis] = -1
            file_from_array[file_axis, 3] = array_shape[::-1][array_axis] - 1
    return file_from_array


def _affines_of_nibabel(stored: Mapping[str, Any]) -> tuple[Floats, Floats]:
    ras_from_file = np.asarray(stored["original_affine"], dtype=np.float64)
    ras_from_array = np.asarray(stored.get("reoriented_affine", ras_from_file), dtype=np.float64)
    # Axes are only swapped and mirrored, so the entries are whole numbers but for rounding.
    return RAS_FROM_LPS @ ras_from_array, np.round(np.linalg.inv(ras_from_file) @ ras_from_array)


def _apply(affine: npt.NDArray[np.floating[Any]], coordinates: npt.ArrayLike) -> Floats:
    return np.asarray(coordinates, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]


def _triple(values: "Sequence[int] | npt.NDArray[Any]") -> Voxel:
    z, y, x = (int(value) for value in values)
    return z, y, x
