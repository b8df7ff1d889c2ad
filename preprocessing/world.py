"""Where an image's file lies in the world, as each kind of viewer sees it.

A NIfTI header may hold two transforms, and programs differ in which they follow where both are there: ITK (3D Slicer,
ITK-SNAP, most of DICOM) by its own rule, nibabel (FSLeyes, napari, most of Python) the sform. Millimetres in LPS are
understood as ITK's, those in RAS as nibabel's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

NIFTI_ENDINGS = (".nii", ".nii.gz")
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
WORLD = "sam3d_world"  # among the properties of an image


@dataclass(frozen=True, eq=False)
class World:
    """The place of a file.

    Attributes:
        lps_from_file: (4, 4), from file voxels (i, j, k) to millimetres as ITK sees them.
        ras_from_file: (4, 4), the same as nibabel sees them; of other formats than NIfTI, ITK's.
    """

    lps_from_file: Floats
    ras_from_file: Floats

    def voxels_apart(self, shape_ijk: tuple[int, ...]) -> float:
        """Say how far apart the two views of a corner of the image are at most, in voxels."""
        corners = np.stack(np.meshgrid(*((0, size - 1) for size in shape_ijk)), axis=-1)
        way = np.linalg.inv(self.lps_from_file) @ RAS_FROM_LPS @ self.ras_from_file
        return float(np.abs(corners @ way[:3, :3].T + way[:3, 3] - corners).max())


def is_nifti(file: Path) -> bool:
    """Tell by its name whether a file is a NIfTI file."""
    return file.name.lower().endswith(NIFTI_ENDINGS)


def world_of(file: Path) -> World | None:
    """Read from its header where a file of three dimensions lies, with both libraries; None where neither can say."""
    by_itk, by_nibabel = _lps_by_itk(file), _ras_by_nibabel(file) if is_nifti(file) else None
    if by_itk is None and by_nibabel is None:
        return None
    lps = RAS_FROM_LPS @ by_nibabel if by_itk is None else by_itk
    return World(lps, RAS_FROM_LPS @ lps if by_nibabel is None else by_nibabel)


def _lps_by_itk(file: Path) -> Floats | None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # shear, NIfTI-2, another format
        return None
    if reader.GetDimension() != 3:
        return None
    return affine_of_itk(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def affine_of_itk(spacing_xyz: Any, origin_xyz: Any, direction: Any) -> Floats:
    """Make the matrix (4, 4) from voxels to millimetres in LPS of what ITK says."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing_xyz)
    affine[:3, 3] = origin_xyz
    return affine


def _ras_by_nibabel(file: Path) -> Floats | None:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nibabel.load(file, mmap=False)
        return np.asarray(image.affine, dtype=np.float64)
    except (ImageFileError, OSError, ValueError):
        return None
