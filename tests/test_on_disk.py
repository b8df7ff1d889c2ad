"""Arrays larger than memory: in a file that goes with them, and in memory where the disk has no room."""

import errno
import gc
import logging
import os

import numpy as np
import pytest
import torch

from sam3dnet.inference import on_disk
from sam3dnet.inference.on_disk import let_go, reserve, room_for

SHAPE = (3, 4, 5, 6)


def mapped_files(folder):
    with open("/proc/self/maps") as maps:
        return [line for line in maps if f"{folder}/" in line]


@pytest.fixture
def little_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(on_disk, "SHARE_OF_MEMORY", 0.0)
    monkeypatch.setattr(on_disk.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_small_ones_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk.tempfile, "mkdtemp", None)
    room = room_for(SHAPE, torch.half, "logits")
    assert room.shape == SHAPE and room.dtype == torch.half
    let_go(room.fill_(2))
    assert (room == 2).all()


def test_large_ones_are_in_a_file_that_goes_with_them(little_memory):
    room = room_for(SHAPE, torch.half, "logits")
    assert room.shape == SHAPE and room.dtype == torch.half and not room.any()
    if os.name == "posix":
        assert not list(little_memory.iterdir())  # nothing is left even if the process is killed
    room[1:, 2] = torch.arange(2 * 5 * 6).view(2, 5, 6)
    let_go(room)
    part = room[1, 2, 1:3]
    del room
    assert part.tolist() == np.arange(30).reshape(5, 6)[1:3].tolist()
    if os.path.exists("/proc/self/maps"):
        assert len(mapped_files(little_memory)) == 1
        del part
        gc.collect()
        assert not mapped_files(little_memory)


def test_without_room_on_disk_they_are_in_memory_and_it_is_said(little_memory, monkeypatch, caplog):
    def full(_file, _offset, _size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with caplog.at_level(logging.WARNING):
        room = room_for(SHAPE, torch.half, "logits")
    assert room.shape == SHAPE
    (said,) = (record.getMessage() for record in caplog.records)
    assert "no room for logits of 0.00 GB; they stay in memory; let TMPDIR name a folder with more room" in said
    assert not list(little_memory.iterdir())


def test_room_is_made_where_the_system_cannot_reserve_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(on_disk, "_ZEROS", bytes(7))
    reserve(tmp_path / "zeros", 16, "probabilities")
    assert (tmp_path / "zeros").read_bytes() == bytes(16)
