"""Check the bytes of an image file: readers fill a truncated NIfTI up with zeros, and turn NaN into zero.

Everything here reads the file as a stream, in blocks, and never trusts a reader.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.problems import Problem, error, warning

_BLOCK_BYTES = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = (348, 540)
# NIfTI's datatype codes for real numbers that may be NaN or infinite.
_FLOAT_TYPES = {16: "f4", 64: "f8"}
# By ending: where the header ends, and what it says if the voxels are compressed.
_PACKED_FORMATS = {
    ".mha": (re.compile(rb"ElementDataFile\s*=\s*LOCAL\r?\n"), re.compile(rb"CompressedData\s*=\s*True")),
    ".nrrd": (re.compile(rb"\r?\n\r?\n"), re.compile(rb"encoding:\s*gz")),
}
_GIPL_HEADER_BYTES = 256
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_DAMAGED = "get the file anew from where it came from, or leave the case out"


@dataclass(frozen=True)
class NiftiLayout:
    """Where the voxels of a NIfTI file lie, and what they are.

    Attributes:
        lacks_spacing: Whether the header says 0, or no number, for the size of a voxel along x, y or z.
    """

    first_voxel_byte: int
    voxel_bytes: int
    float_type: np.dtype | None
    lacks_spacing: bool

    @property
    def total_bytes(self) -> int:
        """Length of the whole file, uncompressed."""
        return self.first_voxel_byte + self.voxel_bytes


class _BrokenFileError(Exception):
    """A file is not as its format wants it; the arguments are the check's name and the finding."""


def check_bytes(case: str, file: Path) -> list[Problem]:
    """Check that a file is complete and undamaged, and for NIfTI that no voxel is NaN or infinite.

    An error of check "non-finite voxels" leaves the file readable; after any other error its voxels mean nothing.
    """
    try:
        return _check(case, file)
    except _BrokenFileError as problem:
        check, finding = problem.args
        return [error(case, check, f"{file}: {finding}; {_DAMAGED}")]
    except EOFError:
        message = f"{file}: the compressed data end too early, so the file is incomplete; {_DAMAGED}"
        return [error(case, "truncated file", message)]
    except (gzip.BadGzipFile, zlib.error) as problem:
        message = f"{file}: the compressed data are damaged ({problem}); {_DAMAGED}"
        return [error(case, "damaged file", message)]
    except OSError as problem:
        message = f"{file}: cannot be read ({problem.strerror or problem}); make it readable, or leave the case out"
        return [error(case, "unreadable file", message)]


def _check(case: str, file: Path) -> list[Problem]:
    if (what := not_a_file(file)) is not None:
        raise _BrokenFileError("unreadable file", f"is {what}; expected an image's file")
    if file.stat().st_size == 0:
        raise _BrokenFileError("truncated file", "is empty (0 bytes)")
    name = file.name.lower()
    if file.suffix.lower() in _PACKED_FORMATS:
        _require_sound_packing(file)
    if name.endswith(".gipl"):
        _require_whole_gipl(file)
    if not name.endswith((".nii", ".nii.gz")):
        return []
    problems = _check_sibling(case, file)
    if name.endswith(".gz") and not _starts_with_gzip(file):
        message = (
            f"{file}: is not compressed although its name ends with .gz; some programs cannot read it; compress it"
        )
        problems.append(warning(case, "not compressed", message))
    with open_uncompressed(file) as stream:
        layout, num_non_finite = _read_nifti(stream)
    if layout.lacks_spacing:
        message = f"{file}: its header says 0 for the size of a voxel, which programs read as 1 mm; write the right one"
        problems.append(warning(case, "implausible spacing", message))
    if num_non_finite:
        message = (
            f"{file}: {num_non_finite} voxels are NaN or infinite; expected finite numbers; replace them by a value "
            "that makes sense there, such as the lowest of the image"
        )
        problems.append(error(case, "non-finite voxels", message))
    return problems


def _check_sibling(case: str, file: Path) -> list[Problem]:
    """Look for x.nii beside x.nii.gz: asked for the second, ITK reads its header, but the voxels of the first."""
    sibling = file.with_suffix("")
    if file.suffix.lower() != ".gz" or not sibling.is_file():
        return []
    message = (
        f"{sibling.name} lies beside {file.name}: programs made with ITK read the voxels of the former when they are "
        "asked for the latter; move it elsewhere"
    )
    return [error(case, "two formats", message)]


def _starts_with_gzip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == _GZIP_MAGIC


@contextmanager
def open_uncompressed(file: Path) -> Iterator[BinaryIO]:
    """Open a file to read what its gzip data hold, or the file itself if it holds no such data, whatever its name."""
    with gzip.open(file, "rb") if _starts_with_gzip(file) else file.open("rb") as stream:
        yield cast(BinaryIO, stream)


def _read_nifti(stream: BinaryIO) -> tuple[NiftiLayout, int]:
    """Read a NIfTI file to its end, which makes gzip compare its checksum.

    Returns:
        What the header says, and the number of voxels that are NaN or infinite.

    Raises:
        _BrokenFileError: If the header is no NIfTI header, or promises more bytes than there are.
    """
    header = stream.read(max(_HEADER_BYTES))
    layout = _parse_header(header)
    came, num_non_finite, voxels_left = len(header), 0, layout.voxel_bytes
    # Voxels may begin before the end of what was read as a header: 352 < 540.
    pending = header[layout.first_voxel_byte :]
    came += _skip(stream, layout.first_voxel_byte - len(header))
    while block := pending or stream.read(_BLOCK_BYTES):
        came += 0 if pending else len(block)
        # Whole voxels only, so that a number is never cut in two.
        more = stream.read(-len(block) % 8)
        came += len(more)
        num_non_finite += _count_non_finite((block + more)[:voxels_left], layout.float_type)
        voxels_left = max(0, voxels_left - len(block) - len(more))
        pending = b""
    if came < layout.total_bytes:
        raise _BrokenFileError(
            "truncated file",
            f"is incomplete: its header promises {layout.total_bytes} bytes (uncompressed), there are {came}",
        )
    return layout, num_non_finite


def _parse_header(header: bytes) -> NiftiLayout:
    if len(header) < min(_HEADER_BYTES):
        raise _BrokenFileError("truncated file", f"has {len(header)} bytes, fewer than a NIfTI header")
    order = next((o for o in "<>" if struct.unpack(f"{o}i", header[:4])[0] in _HEADER_BYTES), None)
    if order is None:
        raise _BrokenFileError("unreadable file", "is not a NIfTI image, whatever its name says")
    if struct.unpack(f"{order}i", header[:4])[0] == 348:
        dimensions = struct.unpack(f"{order}8h", header[40:56])
        datatype, bits = struct.unpack(f"{order}2h", header[70:74])
        first_voxel_byte = int(struct.unpack(f"{order}f", header[108:112])[0])
        voxel_size = struct.unpack(f"{order}3f", header[80:92])
    else:
        if len(header) < 540:
            raise _BrokenFileError("truncated file", f"has {len(header)} bytes, fewer than a NIfTI-2 header")
        datatype, bits = struct.unpack(f"{order}2h", header[12:16])
        dimensions = struct.unpack(f"{order}8q", header[16:80])
        first_voxel_byte = struct.unpack(f"{order}q", header[168:176])[0]
        voxel_size = struct.unpack(f"{order}3d", header[112:136])
    number, sizes = dimensions[0], dimensions[1:]
    if not 1 <= number <= 7 or min(sizes[:number]) < 1:
        raise _BrokenFileError(
            "unreadable file", f"has an impossible header (dimensions {sizes}, {number} of them used)"
        )
    voxels = int(np.prod(sizes[:number], dtype=object))
    float_type = np.dtype(f"{order}{_FLOAT_TYPES[datatype]}") if datatype in _FLOAT_TYPES else None
    # Offsets that point into the header itself are taken for its end, as readers do.
    first_voxel_byte = max(first_voxel_byte, struct.unpack(f"{order}i", header[:4])[0])
    lacks_spacing = any(size == 0 or not math.isfinite(size) for size in voxel_size[: min(number, 3)])
    return NiftiLayout(first_voxel_byte, (voxels * bits + 7) // 8, float_type, lacks_spacing)


def _skip(stream: BinaryIO, count: int) -> int:
    return len(stream.read(count)) if count > 0 else 0


def _count_non_finite(block: bytes, float_type: np.dtype | None) -> int:
    if float_type is None:
        return 0
    whole = len(block) - len(block) % float_type.itemsize
    return int(np.count_nonzero(~np.isfinite(np.frombuffer(block[:whole], float_type))))


def _require_sound_packing(file: Path) -> None:
    """Unpack a compressed MetaImage or NRRD, so that zlib compares its checksum; their readers do not."""
    data = file.read_bytes()
    end_of_header, says_compressed = _PACKED_FORMATS[file.suffix.lower()]
    end = end_of_header.search(data)
    if end is None or not says_compressed.search(data[: end.end()]):
        return
    unpacker = zlib.decompressobj(_ZLIB_OR_GZIP)
    packed = memoryview(data)[end.end() :]
    for start in range(0, len(packed), _BLOCK_BYTES):
        unpacker.decompress(packed[start : start + _BLOCK_BYTES])
    if not unpacker.eof:
        raise EOFError


def _require_whole_gipl(file: Path) -> None:
    """Compare the size of a GIPL file with what its header says; of voxels that lack, ITK reads what memory holds."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # told where the grid is read
        return
    voxel_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
    expected, came = _GIPL_HEADER_BYTES + math.prod(reader.GetSize()) * voxel_bytes, file.stat().st_size
    if came < expected:
        raise _BrokenFileError(
            "truncated file", f"is incomplete: its header promises {expected} bytes, there are {came}"
        )
