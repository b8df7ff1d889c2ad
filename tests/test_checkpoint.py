"""Checkpoints: whole or not at all, and nothing in them runs."""

import os
import pickle

import numpy as np
import pytest
import torch

from sam3dnet.errors import CheckpointError
from sam3dnet.training.checkpoint import load_safely, newest_whole_checkpoint, plain, save_atomically


def test_numpy_values_become_plain():
    value = {"a": [np.float32(0.5), (np.int64(3), "x")], "b": np.array([1, 2])}
    assert plain(value) == {"a": [0.5, (3, "x")], "b": [1, 2]}
    assert type(plain(value)["a"][0]) is float


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_atomically({"network_weights": {"w": torch.ones(2)}}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"network_weights": {"w": lambda: None}}, path)
    assert torch.equal(load_safely(path)["network_weights"]["w"], torch.ones(2))
    assert os.listdir(tmp_path) == [path.name]


def test_a_missing_folder_is_an_error_of_ours(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        save_atomically({}, tmp_path / "nowhere" / "checkpoint.pth")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickled_payload_is_refused_and_not_run(tmp_path):
    target = str(tmp_path / "made_by_payload")
    torch.save({"network_weights": Payload(target)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="not a whole checkpoint of sam3dnet"):
        load_safely(tmp_path / "evil.pth")
    assert not os.path.exists(target)


def test_other_files_are_named(tmp_path):
    torch.save({"weights": 1}, tmp_path / "foreign.pth")
    (tmp_path / "text.pth").write_bytes(pickle.dumps("hello"))
    with pytest.raises(CheckpointError, match="expected a checkpoint with 'network_weights'"):
        load_safely(tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        load_safely(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_safely(tmp_path / "absent.pth")


def test_a_truncated_checkpoint_is_skipped_and_named(tmp_path):
    save_atomically({"network_weights": {"w": torch.zeros(1000)}}, tmp_path / "checkpoint_best.pth")
    whole = (tmp_path / "checkpoint_best.pth").read_bytes()
    (tmp_path / "checkpoint_latest.pth").write_bytes(whole[: len(whole) // 2])
    path, checkpoint, problems = newest_whole_checkpoint(tmp_path)
    assert path.name == "checkpoint_best.pth"
    assert checkpoint["network_weights"]["w"].shape == (1000,)
    assert len(problems) == 1
    assert "checkpoint_latest.pth" in problems[0]


def test_nothing_to_continue_from_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="train without --continue"):
        newest_whole_checkpoint(tmp_path)
