"""Checkpoints that are written whole or not at all and hold nothing but tensors and plain values."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.folders import whole_or_nothing

RESUME_ORDER = ("checkpoint_latest.pth", "checkpoint_final.pth", "checkpoint_best.pth")


def plain(value: Any) -> Any:
    """Turn numpy scalars, tuples and arrays inside a structure into plain Python values, so that it loads safely."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(entry) for entry in value) if type(value) in (list, tuple) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def save_atomically(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name, flush it to disk, then rename it.

    Args:
        checkpoint: What to write.
        path: Its final name.

    Raises:
        CheckpointError: If the folder cannot be written or the disk is full; the final name is then untouched.
    """
    try:
        with whole_or_nothing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint could not be written ({error}); free space or mend the rights"
        ) from error


def load_safely(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read one of our checkpoints without running code from it.

    Args:
        path: The file.
        device: Where its tensors go.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If the file is missing, truncated, foreign, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a whole checkpoint of sam3dnet ({reason}); remove the file") from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise CheckpointError(f"{path}: expected a checkpoint with 'network_weights'; this is another kind of file")
    return checkpoint


def newest_whole_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Find the checkpoint to go on from: latest, else final, else best, skipping files that are damaged.

    Args:
        folder: The folder of the fold.

    Returns:
        The path, the checkpoint, and one message for each damaged file that was skipped.

    Raises:
        CheckpointError: If there is none that is whole.
    """
    problems: list[str] = []
    for name in RESUME_ORDER:
        if not (folder / name).is_file():
            continue
        try:
            return folder / name, load_safely(folder / name), problems
        except CheckpointError as error:
            problems.append(str(error))
    found = "; ".join(problems) or "there is none"
    raise CheckpointError(f"{folder}: no whole checkpoint to continue from ({found}); train without --continue")
