"""NIfTI label maps that lie where an image lies, by whatever rule a program finds that out."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from sam3dnet.preprocessing.checks_bytes import open_uncompressed

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
COMPRESSION_LEVEL = 3  # a third of the time of 6


def write_nifti_labels(labels_ZYX: npt.NDArray[Any], file: Path, image: Path) -> None:
    """Write a label map with both transforms of an image's header, to the last bit.

    Writers of images turn a transform into a matrix and back, which changes its last digits, and keep one of two.

    Args:
        labels_ZYX: Axes as the image's file stores them.
        file: To be written, compressed if its name says so.
        image: A NIfTI file, of version 1 or 2.
    """
    content = _content(labels_ZYX.astype(labels_ZYX.dtype.newbyteorder("<")), _header_of(image))
    if file.name.lower().endswith(".gz"):
        content = gzip.compress(content, COMPRESSION_LEVEL, mtime=0)
    file.write_bytes(content)


def _content(labels_ZYX: npt.NDArray[Any], like: "Nifti1Header") -> bytes:
    header = type(like)(endianness="<")
    header.set_data_dtype(labels_ZYX.dtype)
    header.set_data_shape(labels_ZYX.shape[::-1])
    header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    for field in GEOMETRY:
        header[field] = like[field]
    no_extension = bytes(header.single_vox_offset - header.sizeof_hdr)
    return bytes(header.binaryblock) + no_extension + labels_ZYX.tobytes()


def _header_of(image: Path) -> "Nifti1Header":
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    with open_uncompressed(image) as stream:
        start = stream.read(Nifti2Header.sizeof_hdr)
    header = Nifti1Header(start[: Nifti1Header.sizeof_hdr], check=False)
    return header if header["sizeof_hdr"] == Nifti1Header.sizeof_hdr else Nifti2Header(start, check=False)
