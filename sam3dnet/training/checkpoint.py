"""Checkpoints that are written whole or not at all and hold nothing but tensors and plain values."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.folders import whole_or_nothing

logger = logging.getLogger(__name__)

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
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer trips over what Ctrl-C cut short
            raise error.__context__ from None
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


def continue_from_newest(folder: Path, load: Callable[[dict[str, Any]], object]) -> Path:
    """Continue from the latest checkpoint, else the final, else the best, that is whole and that the trainer takes.

    Those that are damaged or belong to another network are named in the log.

    Args:
        folder: The folder of the fold.
        load: Takes a checkpoint; raises CheckpointError if it is another network's.

    Returns:
        The file that was loaded.

    Raises:
        CheckpointError: If there is none.
    """
    problems: list[str] = []
    for path in (folder / name for name in RESUME_ORDER):
        if not path.is_file():
            continue
        try:
            load(load_safely(path))
        except CheckpointError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # what torch and the trainer raise on the way
            problems.append(f"{path}: not a checkpoint of this training ({type(error).__name__}: {error})")
            continue
        for problem in problems:
            logger.warning("%s; left out", problem)
        logger.info("continuing from %s", path)
        return path
    found = "; ".join(problems) or "there is none"
    raise CheckpointError(f"{folder}: no whole checkpoint to continue from ({found}); train without --continue")
