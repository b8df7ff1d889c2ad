"""Arrays as the protocol of nnInteractive sends them, version 1; what comes is checked before room is made for it.

    4s "NNIA", u8 version, u8 codec, u8 number of axes, u8 length of the type's name, the name,
    i64 a size of each axis, u32 number of chunks, of each: u64 its length, u64 its packed length, a Blosc2 chunk

All little-endian, values in C order. Of Blosc2's chunks only those are unpacked that are data alone: no lazy ones,
which name files, and no filters or codecs that are loaded from elsewhere.
"""

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import Sam3dError

MAGIC, VERSION, ZSTD = b"NNIA", 1, 1
TYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64"),
)
LARGEST_CHUNK = 1 << 30
AXES = (3, 4)
_HEAD, _SIZES, _COUNT = struct.Struct("<4sBBBB"), struct.Struct("<QQ"), struct.Struct("<I")
# Of the header of a Blosc2 chunk, version 5 of the format.
_CHUNK = struct.Struct("<BBBBiii6sBB6sBB")
_FILTERS = {0, 1, 2}  # none, shuffle, bit shuffle
_CODECS = {0, 1, 3, 4}  # BloscLZ, LZ4, zlib, Zstandard
_IS_LAZY, _KIND_OF_SPECIAL = 0x08, 0x70
_UNINITIALISED = 0x40
_MEMCPYED = 0x02


class WireError(Sam3dError):
    """What came over the network is not what the protocol says."""


def pack_array(array: npt.NDArray[Any]) -> bytes:
    """Pack an array whose type is one of `TYPES`, with Zstandard."""
    import blosc2

    data = np.ascontiguousarray(array)
    name = data.dtype.name.encode()
    head = _HEAD.pack(MAGIC, VERSION, ZSTD, data.ndim, len(name)) + name
    head += struct.pack(f"<{data.ndim}q", *data.shape)
    values = data.reshape(-1).view(np.uint8).data
    step = LARGEST_CHUNK - LARGEST_CHUNK % data.itemsize
    parts = [head, _COUNT.pack(math.ceil(len(values) / step))]
    for start in range(0, len(values), step):
        raw = values[start : start + step]
        packed = blosc2.compress2(
            raw, typesize=data.itemsize, codec=blosc2.Codec.ZSTD, clevel=3, filters=[blosc2.Filter.NOFILTER]
        )
        parts += [_SIZES.pack(len(raw), len(packed)), packed]
    return b"".join(parts)


def unpack_array(body: bytes, largest_bytes: int) -> npt.NDArray[Any]:
    """Unpack an array.

    Args:
        body: What came.
        largest_bytes: That the array may take.

    Raises:
        WireError: If it is not as the protocol says, has a type or shape that no image has, or is too large.
    """
    reader = _Reader(body)
    magic, version, _, num_axes, length = reader.take(_HEAD)
    if magic != MAGIC or version != VERSION:
        raise WireError(f"the body begins with {magic!r}, version {version}; expected {MAGIC!r}, version {VERSION}")
    name = reader.raw(length).decode("ascii", "replace")
    if name not in TYPES:
        raise WireError(f"an array of type {name!r} came, expected one of {', '.join(TYPES)}")
    if num_axes not in AXES:
        raise WireError(f"an array with {num_axes} axes came, expected 3 or 4")
    shape = reader.take(struct.Struct(f"<{num_axes}q"))
    if min(shape) < 1:
        raise WireError(f"an array of shape {shape} came, expected sizes above 0")
    dtype = np.dtype(name)
    size = math.prod(shape) * dtype.itemsize
    if size > largest_bytes:
        raise WireError(f"an array of {size} bytes came, {largest_bytes} are allowed; see --max-upload")
    values = np.empty(size, np.uint8)
    _fill(values, reader, dtype)
    if dtype.kind == "b":
        return (values != 0).reshape(shape)
    return values.view(dtype).reshape(shape)


class _Reader:
    """Takes one part of a body after the other."""

    def __init__(self, body: bytes):
        self._body, self._at = memoryview(body), 0

    def raw(self, length: int) -> bytes:
        if length > len(self._body) - self._at:
            raise WireError(f"the body ends after {len(self._body)} bytes, within an array; send it again")
        self._at += length
        return bytes(self._body[self._at - length : self._at])

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.raw(form.size))

    @property
    def left(self) -> int:
        return len(self._body) - self._at


def _fill(values: npt.NDArray[np.uint8], reader: _Reader, dtype: np.dtype[Any]) -> None:
    """Unpack all chunks into the bytes of an array."""
    import blosc2

    (count,) = reader.take(_COUNT)
    if count * _SIZES.size > reader.left:
        raise WireError(f"the body announces {count} chunks and is shorter than that")
    filled = 0
    for _ in range(count):
        length, packed_length = reader.take(_SIZES)
        packed = reader.raw(packed_length)
        if not 0 < length <= min(LARGEST_CHUNK, len(values) - filled):
            raise WireError(f"a chunk of {length} bytes came where {len(values) - filled} are left of the array")
        _require_data_alone(packed, length)
        try:
            blosc2.decompress2(packed, dst=values[filled : filled + length].data)
        except (RuntimeError, ValueError, TypeError) as problem:
            raise WireError(f"a chunk cannot be unpacked ({problem}); send the array again") from problem
        filled += length
    if filled != len(values) or reader.left:
        raise WireError(f"the chunks hold {filled} bytes and {reader.left} follow, the array has {len(values)}")


def _require_data_alone(packed: bytes, length: int) -> None:
    """Check the header of a Blosc2 chunk."""
    if len(packed) < _CHUNK.size:
        raise WireError(f"a chunk of {len(packed)} bytes came, its header alone takes {_CHUNK.size}")
    _, _, flags, typesize, plain, block, whole, filters, _, _, _, _, special = _CHUNK.unpack_from(packed)
    if plain != length or whole != len(packed) or typesize < 1 or not 0 <= block <= plain:
        raise WireError(f"a chunk says that it holds {plain} bytes in {whole}, expected {length} in {len(packed)}")
    is_foreign = not set(filters) <= _FILTERS or flags >> 5 not in _CODECS
    if is_foreign or special & _IS_LAZY or special & _KIND_OF_SPECIAL == _UNINITIALISED:
        raise WireError("a chunk is not data alone, or packed by another codec than Zstandard or LZ4")
