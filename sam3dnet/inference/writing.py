"""A label map in a file that appears whole or not at all, with the image's own geometry."""

import errno
import gzip
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.inference.images import Case, is_damaged
from sam3dnet.preprocessing.checks_bytes import open_uncompressed
from sam3dnet.preprocessing.checks_case import read_grid

TEMPORARY_FOLDER = ".sam3d_unfinished"
HEADER_BYTES = 348
NIFTI_ENDINGS = (".nii", ".nii.gz")
PIXDIM = slice(76, 108)
UNITS = slice(123, 124)
TRANSFORMS = slice(252, 328)  # qform and sform codes, quaternion, offset, sform rows
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
        _require_whole(Path(name) / path.name)
        written = sorted(Path(name).iterdir(), key=lambda file: file.name == path.name)
        for file in written:  # the label map last: it says that the case is finished
            os.replace(file, path.parent / file.name)


def _write(
    label_map_ZYX: np.ndarray, path: Path, image: Path, properties: Mapping[str, Any], reader_writer: Any
) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if type(reader_writer) is not SimpleITKIO or not path.name.endswith(NIFTI_ENDINGS):
        reader_writer.write_seg(label_map_ZYX, str(path), properties)
        return
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as name:
        uncompressed = Path(name) / "labels.nii"
        reader_writer.write_seg(label_map_ZYX, str(uncompressed), properties)
        _require_whole(uncompressed)
        copy_geometry(image, uncompressed, path)


def _require_whole(path: Path) -> None:
    """Raise what ITK's writer of NIfTI does not: on a full disk it ends in silence and leaves half a file."""
    if is_damaged(path):
        raise OSError(errno.ENOSPC, "could not be written whole; is the disk full?", str(path))


def is_finished(output: Path, case: Case) -> bool:
    """Tell whether the output is whole, has the shape of the image, and is not older than the image."""
    if not output.is_file() or is_damaged(output):
        return False
    if any(file.stat().st_mtime_ns > output.stat().st_mtime_ns for file in case.files):
        return False
    (written, _), (image, _) = read_grid(case.name, output), read_grid(case.name, case.files[0])
    return written is not None and image is not None and written.shape == image.shape


def copy_geometry(like: Path, source: Path, target: Path) -> None:
    """Write an uncompressed NIfTI file again with the geometry of another, compressed if its name says so.

    Writers of images turn the transform into a matrix and back, which changes its last digits.

    Args:
        like: Image whose geometry is taken.
        source: Uncompressed file of the same size.
        target: File to write, .nii or .nii.gz.
    """
    content = source.read_bytes()
    content = with_geometry_of(content[:HEADER_BYTES], read_header(like)) + content[HEADER_BYTES:]
    if target.name.endswith(".gz"):
        content = gzip.compress(content, COMPRESSION_LEVEL, mtime=0)
    target.write_bytes(content)


def read_header(path: Path) -> bytes:
    """Return the first 348 bytes of a file, decompressed."""
    with open_uncompressed(path) as stream:
        return stream.read(HEADER_BYTES)


def byte_order(header: bytes) -> str | None:
    """Return "<" or ">" for a NIfTI-1 header, None for anything else."""
    if len(header) < HEADER_BYTES:
        return None
    return next((order for order in "<>" if struct.unpack_from(f"{order}i", header)[0] == HEADER_BYTES), None)


def with_geometry_of(header: bytes, like: bytes) -> bytes:
    """Return the header with spacing, units and transforms of another one; unchanged if the byte orders differ."""
    if byte_order(header) is None or byte_order(header) != byte_order(like):
        return header
    changed = bytearray(header)
    for field in (PIXDIM, UNITS, TRANSFORMS):
        changed[field] = like[field]
    return bytes(changed)
