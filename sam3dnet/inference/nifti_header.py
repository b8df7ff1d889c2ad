"""The few fields of a NIfTI-1 header that must survive prediction bit for bit."""

import gzip
import struct
from pathlib import Path

from sam3dnet.preprocessing.checks_bytes import open_uncompressed

HEADER_BYTES = 348
NIFTI_ENDINGS = (".nii", ".nii.gz")
PIXDIM = slice(76, 108)
UNITS = slice(123, 124)
TRANSFORMS = slice(252, 328)  # qform and sform codes, quaternion, offset, sform rows
COMPRESSION_LEVEL = 6


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
