"""Checkpoints: whole or not at all, and nothing in them runs."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import disk_that_ends_after

from sam3dnet.errors import CheckpointError
from sam3dnet.training.checkpoint import continue_from_newest, load_safely, plain, save_atomically


def test_numpy_values_become_plain():
    value = {"a": [np.float32(0.5), (np.int64(3), "x")], "b": np.array([1, 2])}
    assert plain(value) == {"a": [0.5, (3, "x")], "b": [1, 2]}
    assert type(plain(value)["a"][0]) is float


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_atomically({"network_weights": {"w": torch.ones(2)}}, path)
    with pytest.raises(Exception, match=r"local object .*<lambda>"):  # pickle's; its class differs between Pythons
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


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_atomically({"network_weights": {"w": torch.ones(2)}}, path)
    with (
        disk_that_ends_after(2000),
        pytest.raises(CheckpointError, match=r"latest.pth: the checkpoint could not be written .*free space"),
    ):
        save_atomically({"network_weights": {"w": torch.zeros(5000)}}, path)
    assert torch.equal(load_safely(path)["network_weights"]["w"], torch.ones(2))
    assert os.listdir(tmp_path) == [path.name]


class InterruptedFile(io.BytesIO):
    """A file in the middle of whose writing somebody presses Ctrl-C."""

    def write(self, content):
        if self.tell() > 10_000:
            raise KeyboardInterrupt
        return super().write(bytes(content))


def test_an_interrupt_while_writing_is_an_interrupt_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_latest.pth"
    save_atomically({"network_weights": {"w": torch.ones(2)}}, path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: InterruptedFile())
        with pytest.raises(KeyboardInterrupt):
            save_atomically({"network_weights": {str(n): torch.zeros(5000) for n in range(5)}}, path)
    assert torch.equal(load_safely(path)["network_weights"]["w"], torch.ones(2))
    assert os.listdir(tmp_path) == [path.name]


def refuse_other_networks(checkpoint):
    if checkpoint["network_weights"]["w"].shape != (1000,):
        raise CheckpointError("weights of another network")
    if "epoch" not in checkpoint:
        raise KeyError("epoch")


def test_truncated_and_foreign_checkpoints_are_named_and_the_one_before_is_used(tmp_path, caplog):
    whole = {"network_weights": {"w": torch.zeros(1000)}, "epoch": 3}
    save_atomically(whole, tmp_path / "checkpoint_best.pth")
    content = (tmp_path / "checkpoint_best.pth").read_bytes()
    others = [
        ("not a whole checkpoint", lambda path: path.write_bytes(content[: len(content) // 2])),
        ("weights of another network", lambda path: torch.save({"network_weights": {"w": torch.zeros(7)}}, path)),
        ("KeyError", lambda path: torch.save({"network_weights": whole["network_weights"]}, path)),
        ("expected a checkpoint", lambda path: torch.save([1, 2], path)),
        ("not a whole checkpoint", lambda path: path.write_bytes(b"")),
    ]
    for reason, spoil in others:
        spoil(tmp_path / "checkpoint_latest.pth")
        caplog.clear()
        used = continue_from_newest(tmp_path, refuse_other_networks)
        assert used == tmp_path / "checkpoint_best.pth"
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert str(tmp_path / "checkpoint_latest.pth") in warning
        assert reason in warning
    (tmp_path / "checkpoint_best.pth").unlink()
    with pytest.raises(CheckpointError, match=r"no whole checkpoint .*checkpoint_latest.pth.*train without --continue"):
        continue_from_newest(tmp_path, refuse_other_networks)


def test_the_latest_checkpoint_is_preferred(tmp_path):
    for name in ("best", "final", "latest"):
        save_atomically({"network_weights": {"w": torch.zeros(1000)}, "epoch": 1}, tmp_path / f"checkpoint_{name}.pth")
        assert continue_from_newest(tmp_path, refuse_other_networks).stem == f"checkpoint_{name}"


def test_nothing_to_continue_from_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is none.*train without --continue"):
        continue_from_newest(tmp_path, refuse_other_networks)
