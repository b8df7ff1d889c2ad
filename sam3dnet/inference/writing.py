"""A label map in a file that appears whole or not at all, with the image's own geometry."""

import errno
import gzip
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam3dnet.inference.images import Case, is_damaged
from sam3dnet.preprocessing.checks_bytes import open_uncompressed
from sam3dnet.preprocessing.checks_case import read_grid

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

TEMPORARY_FOLDER = ".sam3d_unfinished"
NIFTI_ENDINGS = (".nii", ".nii.gz")
GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
LARGEST_BYTE = 255
COMPRESSION_LEVEL = 6


def write_label_map(
    label_map_ZYX: np.ndarray, path: Path, image: Path, properties: Mapping[str, Any], reader_writer: Any
) -> None:
    """Write a label map with the image's geometry, under a temporary name first.

    Args:
        label_map_ZYX: Labels on the image's grid.
        path: Final name.
        image: The image's file; of a NIfTI image the header's geometry is taken over bit for bit.
        properties: Geometry, as the reader gave it.
        reader_writer: nnU-Net's reader and writer of the plan.

    Raises:
        OSError, RuntimeError: If writing fails; nothing is left under the final name then.
    """
    temporary = path.parent / TEMPORARY_FOLDER
    temporary.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary) as name:
        _write(label_map_ZYX, Path(name) / path.name, image, properties, reader_writer)
        written = sorted(Path(name).iterdir(), key=lambda file: file.name == path.name)
        for file in written:  # the label map last: it says that the case is finished
            os.replace(file, path.parent / file.name)


def _write(
    label_map_ZYX: np.ndarray, path: Path, image: Path, properties: Mapping[str, Any], reader_writer: Any
) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    is_nifti = type(reader_writer) is SimpleITKIO and path.name.endswith(NIFTI_ENDINGS)
    header = _header_of(image) if is_nifti else None
    if header is None or header["dim"][0] != label_map_ZYX.ndim:  # of an image in two dimensions so is the label map
        reader_writer.write_seg(label_map_ZYX, str(path), properties)
        _require_whole(path)
        return
    content = _nifti(label_map_ZYX, header)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, COMPRESSION_LEVEL, mtime=0)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _not_whole(path) from error


def _nifti(label_map_ZYX: np.ndarray, like: "Nifti1Header") -> bytes:
    """Make a NIfTI-1 file that lies where another one does, to the last bit.

    Writers of images turn the transform into a matrix and back, which changes its last digits.

    Args:
        label_map_ZYX: Labels.
        like: Header of the image.
    """
    from nibabel.nifti1 import Nifti1Header

    smallest = np.dtype("<u1" if label_map_ZYX.max() < LARGEST_BYTE else "<u2")  # as nnU-Net's writer
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(smallest)
    header.set_data_shape(label_map_ZYX.shape[::-1])
    header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    for field in GEOMETRY:
        header[field] = like[field]
    no_extension = bytes(header.single_vox_offset - header.sizeof_hdr)
    return bytes(header.binaryblock) + no_extension + label_map_ZYX.astype(smallest).tobytes()


def _header_of(image: Path) -> "Nifti1Header | None":
    """Read a NIfTI header; None of a file that has none."""
    from nibabel.nifti1 import Nifti1Header

    with open_uncompressed(image) as stream:
        start = stream.read(Nifti1Header.sizeof_hdr)
    header = Nifti1Header(start, check=False) if len(start) == Nifti1Header.sizeof_hdr else None
    return header if header is not None and header["sizeof_hdr"] == Nifti1Header.sizeof_hdr else None


def _require_whole(path: Path) -> None:
    """Raise what ITK's writers do not: on a full disk they may end in silence and leave half a file."""
    if is_damaged(path):
        raise _not_whole(path)


def _not_whole(path: Path) -> OSError:
    return OSError(errno.ENOSPC, "could not be written whole; is the disk full?", str(path))


def is_finished(output: Path, case: Case) -> bool:
    """Tell whether the output is whole, has the shape of the image, and is not older than the image."""
    if not output.is_file() or is_damaged(output):
        return False
    if any(file.stat().st_mtime_ns > output.stat().st_mtime_ns for file in case.files):
        return False
    (written, _), (image, _) = read_grid(case.name, output), read_grid(case.name, case.files[0])
    return written is not None and image is not None and written.shape == image.shape
