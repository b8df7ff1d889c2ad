"""NIfTI files with several volumes, such as the channels of a Decathlon image, split without a look at their voxels.

Volumes lie one after the other in a NIfTI file. Each becomes a file of the header, which then says three dimensions,
and of its own bytes: values, data type, scaling, both transforms, extensions and byte order stay as they are.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.checks_bytes import open_uncompressed
from sam3dnet.preprocessing.names import not_a_file

_BLOCK_BYTES = 1 << 22
_GZIP_LEVEL = 1  # as nibabel has it: higher ones take several times as long, for some percent
_HEADER_BYTES = {348: "Nifti1Header", 540: "Nifti2Header"}
_SPACE = 3


@dataclass(frozen=True)
class Volumes:
    """What a header says.

    Attributes:
        count: Volumes, one after the other; 1 of a file in three dimensions.
        dimensions: Of the file, those of length 1 too.
        first_voxel_byte: Where the first volume begins.
        bytes_each: Length of a volume.
    """

    count: int
    dimensions: int
    first_voxel_byte: int
    bytes_each: int


def read_volumes(file: Path) -> Volumes:
    """Read how many volumes a file has, and where they lie.

    Raises:
        DatasetError: If it cannot be read, or is no NIfTI file in three or four dimensions.
    """
    with _reading(file) as stream:
        header = _header_of(stream.read(max(_HEADER_BYTES)), file)
    dimensions = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : dimensions + 1]]
    if not 1 <= dimensions <= 7 or min(sizes) < 1 or any(size != 1 for size in sizes[_SPACE + 1 :]):
        raise DatasetError(f"{file}: has the dimensions {tuple(sizes)}; expected (x, y, z) or (x, y, z, channels)")
    bytes_each = int(header["bitpix"]) // 8
    for size in sizes[:_SPACE]:
        bytes_each *= size
    count = sizes[_SPACE] if dimensions > _SPACE else 1
    return Volumes(count, dimensions, max(int(header["vox_offset"]), int(header["sizeof_hdr"])), bytes_each)


def write_volumes(file: Path, targets: Sequence[Path]) -> None:
    """Write each volume of a file into a file of its own, compressed where its name ends in .gz.

    Raises:
        DatasetError: If the file is damaged, incomplete, or has another number of volumes.
    """
    volumes = read_volumes(file)
    if volumes.count != len(targets):
        raise DatasetError(f"{file}: expected {len(targets)} volumes, came {volumes.count}")
    with _reading(file) as stream:
        start = _of_one_volume(_read_exactly(stream, volumes.first_voxel_byte, file), file)
        for target in targets:
            with _writing(target) as out:
                out.write(start)
                for begin in range(0, volumes.bytes_each, _BLOCK_BYTES):
                    out.write(_read_exactly(stream, min(_BLOCK_BYTES, volumes.bytes_each - begin), file))
        while stream.read(_BLOCK_BYTES):  # at the end gzip compares its checksum
            pass


def _header_of(start: bytes, file: Path) -> Any:
    from nibabel import nifti1, nifti2

    size = next((size for size in _HEADER_BYTES for order in ("little", "big") if _first_int(start, order) == size), 0)
    if len(start) < size or not size:
        raise DatasetError(f"{file}: is no NIfTI image, whatever its name says; get it anew from where it came from")
    kind: Any = nifti1.Nifti1Header if size == min(_HEADER_BYTES) else nifti2.Nifti2Header
    return kind(start[:size], check=False)


def _first_int(start: bytes, order: Any) -> int:
    return int.from_bytes(start[:4], order)


def _of_one_volume(start: bytes, file: Path) -> bytes:
    """Give all that stands before the voxels, for a file in three dimensions."""
    header = _header_of(start, file)
    header["dim"][0] = _SPACE
    header["dim"][_SPACE + 1 :] = 1
    return bytes(header.binaryblock) + start[len(header.binaryblock) :]


def _read_exactly(stream: BinaryIO, count: int, file: Path) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise DatasetError(f"{file}: is incomplete; get it anew from where it came from")
    return content


@contextmanager
def _reading(file: Path) -> Iterator[BinaryIO]:
    if (what := not_a_file(file)) is not None:
        raise DatasetError(f"{file}: is {what}; expected an image's file")
    try:
        with open_uncompressed(file) as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise DatasetError(
            f"{file}: the compressed data are damaged or end too early ({problem}); get it anew from where it came from"
        ) from problem


@contextmanager
def _writing(file: Path) -> Iterator[BinaryIO]:
    with file.open("xb") as plain:
        if not file.name.lower().endswith(".gz"):
            yield plain
            return
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, plain, mtime=0) as packed:
            yield cast(BinaryIO, packed)
