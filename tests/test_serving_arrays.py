"""Arrays on the wire: those of the real client, and what nobody should send."""

import struct

import blosc2
import numpy as np
import pytest
from nnInteractive.inference.remote import serialization

from sam3dnet.serving.arrays import TYPES, WireError, pack_array, unpack_array

PLENTY = 1 << 22


def an_array(dtype="int16", shape=(2, 3, 4, 5)):
    return (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)


def packed(shape=(3, 4, 5), dtype=b"int16", chunks=None, count=None, version=1, magic=b"NNIA"):
    """Make a body by hand."""
    if chunks is None:
        values = np.zeros(shape, np.int16).tobytes()
        chunks = [(len(values), blosc2.compress2(values, typesize=2))]
    head = struct.pack("<4sBBBB", magic, version, 1, len(shape), len(dtype)) + dtype
    head += struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<I", len(chunks) if count is None else count)
    return head + b"".join(struct.pack("<QQ", size, len(chunk)) + chunk for size, chunk in chunks)


@pytest.mark.parametrize("dtype", TYPES)
def test_there_and_back_with_the_real_client(dtype):
    array = an_array(dtype)
    received = unpack_array(serialization.pack_array(array), PLENTY)
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)
    np.testing.assert_array_equal(serialization.unpack_array(pack_array(array)), array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 6, 7), np.int16),
        np.full((33, 3, 3), np.nan, np.float32),
        np.ones((1, 50, 60, 71), np.float64)[:, ::-1, ::2],
        np.zeros((1, 1, 1), bool),
    ],
    ids=["zeros", "not a number", "strided", "one voxel"],
)
def test_arrays_that_are_packed_in_another_way(array):
    np.testing.assert_array_equal(unpack_array(serialization.pack_array(array), PLENTY), array)
    np.testing.assert_array_equal(unpack_array(pack_array(array), PLENTY), array)


ZEROS = np.zeros((3, 4, 5), np.int16).tobytes()
CHUNK = blosc2.compress2(ZEROS, typesize=2)
NOISE = np.random.default_rng(0).integers(0, 99, 60).astype(np.int16).tobytes()
PLAIN = blosc2.compress2(NOISE, typesize=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends after 0 bytes"),
        (packed(magic=b"NNIB"), "begins with b'NNIB'"),
        (packed(version=2), "version 2"),
        (packed(dtype=b"object"), "type 'object'"),
        (packed(dtype=b"O"), "type 'O'"),
        (packed(dtype=b"V8"), "type 'V8'"),
        (packed(shape=(3, 4, 5, 1, 1)), "5 axes"),
        (packed(shape=(0, 4, 5), chunks=[]), "sizes above 0"),
        (packed(shape=(3, -4, 5), chunks=[]), "sizes above 0"),
        (packed(shape=(1 << 20, 1 << 20, 1 << 20), chunks=[]), "4194304 are allowed"),
        (packed(shape=(1 << 62, 1 << 62, 4), chunks=[]), "4194304 are allowed"),
        (packed(chunks=[]), "hold 0 bytes"),
        (packed(count=1 << 31), "announces"),
        (packed(chunks=[(120, CHUNK), (120, CHUNK)]), "0 are left"),
        (packed(chunks=[(119, CHUNK)]), "expected 119"),
        (packed(chunks=[(1 << 40, CHUNK)]), "120 are left"),
        (packed(chunks=[(120, b"")]), "its header alone"),
        (packed(chunks=[(120, b"\0" * 40)]), "says that it holds"),
        (packed() + b"more", "4 follow"),
        (packed(chunks=[(120, PLAIN[:31] + bytes([PLAIN[31] | 0x08]) + PLAIN[32:])]), "not data alone"),
        (packed(chunks=[(120, PLAIN[:31] + bytes([0x40]) + PLAIN[32:])]), "not data alone"),
        (packed(chunks=[(120, PLAIN[:16] + bytes([35]) + PLAIN[17:])]), "not data alone"),
        (packed(chunks=[(120, PLAIN[:2] + bytes([PLAIN[2] | 0xC0]) + PLAIN[3:])]), "not data alone"),
    ],
)
def test_what_is_no_array_is_refused_in_a_sentence(body, message):
    with pytest.raises(WireError, match=message):
        unpack_array(body, PLENTY)


def test_any_changed_body_is_an_array_or_refused():
    rng = np.random.default_rng(1)
    whole = serialization.pack_array(an_array(shape=(1, 9, 11, 12)))
    refused = 0
    for _ in range(1000):
        body = bytearray(whole)
        for at in rng.integers(0, 90 if rng.random() < 0.8 else len(body), rng.integers(1, 5)):
            body[at] = rng.integers(256)
        if rng.random() < 0.2:
            del body[rng.integers(len(body)) :]
        try:
            assert unpack_array(bytes(body), PLENTY).nbytes <= PLENTY
        except WireError:
            refused += 1
    assert refused > 800
