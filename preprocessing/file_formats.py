"""The libraries that open the files of a dataset: headers, voxels, what lies beside them, and label maps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import CHANNEL_SUFFIX_LENGTH
from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.nifti_labels import write_nifti_labels
from sam3dnet.preprocessing.world import RAS_FROM_LPS, is_nifti

Array = npt.NDArray[Any]

_DIMENSIONS = 3
_IN_ORDER = "in 3 dimensions (z, y, x)"
_SPLIT = "write each channel or time step into a file of its own"


class UnfitError(Exception):
    """A file that can be read is no volume; the arguments are a check's name, and a sentence."""


class FileFormat(Protocol):
    """A library that opens files: their headers, their voxels, and what lies beside them."""

    def grid(self, file: Path, is_label: bool) -> Grid:
        """Read where the voxels lie, from the header; axes as the file stores them."""

    def voxels(self, file: Path) -> Array:
        """Read the voxels (Z, Y, X) in the type that the file has; axes as the file stores them."""

    def companions(self, file: Path, is_label: bool) -> tuple[Path, ...]:
        """Give the files that belong to a file."""

    def write(self, labels_ZYX: Array, file: Path, image: Path, spacing_mm: Sequence[float]) -> None:
        """Write a label map, axes as stored, in the place of an image; formats without a place take its spacing."""


class ItkFormat:
    """What ITK opens."""

    def grid(self, file: Path, is_label: bool) -> Grid:
        """See `FileFormat`."""
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) != _DIMENSIONS or components != 1:
            came = f"{len(size)} dimensions {size[::-1]}" + (f" of {components} values each" if components != 1 else "")
            raise UnfitError("dimension", f"expected one number a voxel {_IN_ORDER}, came {came}; {_SPLIT}")
        return Grid(size[::-1], reader.GetSpacing()[::-1], reader.GetOrigin(), reader.GetDirection())

    def voxels(self, file: Path) -> Array:
        """See `FileFormat`."""
        import SimpleITK as sitk

        voxels: Array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        return voxels

    def companions(self, file: Path, is_label: bool) -> tuple[Path, ...]:
        """See `FileFormat`."""
        return ()

    def write(self, labels_ZYX: Array, file: Path, image: Path, spacing_mm: Sequence[float]) -> None:
        """See `FileFormat`."""
        import SimpleITK as sitk

        if is_nifti(file):
            write_nifti_labels(labels_ZYX, file, image)
            return
        grid = self.grid(image, is_label=False)
        written = sitk.GetImageFromArray(labels_ZYX)
        written.SetSpacing(grid.spacing_mm[::-1])
        written.SetOrigin(grid.origin_mm)
        written.SetDirection(grid.direction)
        sitk.WriteImage(written, str(file), True)


class NibabelFormat:
    """NIfTI files as nibabel opens them: in the place of the sform, where there is one."""

    def grid(self, file: Path, is_label: bool) -> Grid:
        """See `FileFormat`."""
        import nibabel

        image: Any = nibabel.load(file, mmap=False)
        if image.ndim != _DIMENSIONS:
            raise UnfitError(
                "dimension",
                f"expected 3 dimensions (x, y, z), came {len(image.shape)} {tuple(image.shape)}; nnU-Net's reader of "
                f".nii files takes no other; drop the axes of length 1 with any NIfTI tool, or {_SPLIT}",
            )
        spacing = tuple(float(mm) for mm in image.header.get_zooms())
        return grid_of_affine(tuple(image.shape), spacing, np.asarray(image.affine, dtype=np.float64))

    def voxels(self, file: Path) -> Array:
        """See `FileFormat`."""
        import nibabel

        image: Any = nibabel.load(file, mmap=False)
        return np.asarray(image.dataobj).transpose()

    def companions(self, file: Path, is_label: bool) -> tuple[Path, ...]:
        """See `FileFormat`."""
        return ()

    def write(self, labels_ZYX: Array, file: Path, image: Path, spacing_mm: Sequence[float]) -> None:
        """See `FileFormat`."""
        write_nifti_labels(labels_ZYX, file, image)


class TiffFormat:
    """Stacks of pages in a TIFF file; their spacing stands in a JSON file beside them, their place nowhere.

    nnU-Net looks for the spacing of an image CASE_0000.tif in CASE.json, and asks none of a label; for a label without
    one, CASE.json beside the image is taken.
    """

    def grid(self, file: Path, is_label: bool) -> Grid:
        """See `FileFormat`."""
        import tifffile

        with tifffile.TiffFile(file) as tiff:
            shape = tuple(int(size) for size in tiff.series[0].shape)
        if len(shape) != _DIMENSIONS:
            raise UnfitError("dimension", f"expected pages of one number a pixel (z, y, x), came {shape}; {_SPLIT}")
        found = self.companions(file, is_label)
        spacing = read_sidecar(found[0]) if found else None
        return Grid(shape, spacing or (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()), spacing is not None)

    def voxels(self, file: Path) -> Array:
        """See `FileFormat`."""
        import tifffile

        voxels: Array = tifffile.imread(file)
        return voxels

    def companions(self, file: Path, is_label: bool) -> tuple[Path, ...]:
        """See `FileFormat`."""
        name = file.name.removesuffix(file.suffix)
        places = [file.with_name(f"{name if is_label else name[:-CHANNEL_SUFFIX_LENGTH]}.json")]
        if is_label and file.parent.name.startswith("labels"):
            places.append(file.parent.parent / file.parent.name.replace("labels", "images", 1) / f"{name}.json")
        return tuple(place for place in places if place.is_file())[:1]

    def write(self, labels_ZYX: Array, file: Path, image: Path, spacing_mm: Sequence[float]) -> None:
        """See `FileFormat`; the spacing is written beside it, where nnU-Net looks for it."""
        import tifffile

        spacing = [float(mm) for mm in spacing_mm]
        write_json(file.with_name(f"{file.name.removesuffix(file.suffix)}.json"), {"spacing": spacing})
        tifffile.imwrite(file, labels_ZYX, compression="zlib", photometric="minisblack")


def grid_of_affine(shape_ijk: Sequence[int], spacing_ijk: Sequence[float], ras_from_file: Array) -> Grid:
    """Make the grid of a NIfTI file from its transform and its spacing, which need not agree."""
    lps = RAS_FROM_LPS @ ras_from_file
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / np.where(lengths > 0, lengths, 1)
    shape = tuple(int(size) for size in shape_ijk[::-1])
    spacing = tuple(float(mm) for mm in spacing_ijk[::-1])
    return Grid(shape, spacing, tuple(map(float, lps[:3, 3])), tuple(map(float, direction.ravel())))


def read_sidecar(file: Path) -> tuple[float, float, float]:
    """Read the spacing (z, y, x) in mm that stands beside a TIFF file.

    Raises:
        DatasetError: If it cannot be read, or holds no spacing.
    """
    remedy = 'write {"spacing": [z, y, x]} there, in millimetres'
    content = read_json(file, DatasetError, remedy, nnunet_reads_it=True)
    spacing = content.get("spacing") if isinstance(content, dict) else None
    if isinstance(spacing, list) and len(spacing) == _DIMENSIONS and all(_is_length(mm) for mm in spacing):
        return (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    raise DatasetError(f'{file}: "spacing" is {spacing!r}; expected three numbers above 0 (z, y, x); {remedy}')


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
