"""Checkpoints: what of a training is in them, written whole or not at all, nothing but tensors and plain values."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sam3dnet.devices import half_type
from sam3dnet.errors import CheckpointError
from sam3dnet.inference.models import EARLIER, PSEUDO_LABELLED, STARTED_FROM, TRAINING_CASES, training_cases
from sam3dnet.network.earlier_weights import completed
from sam3dnet.preprocessing.folders import whole_or_nothing
from sam3dnet.training.random_state import random_state

logger = logging.getLogger(__name__)

LATEST, FINAL, BEST = "checkpoint_latest.pth", "checkpoint_final.pth", "checkpoint_best.pth"
RESUME_ORDER = (LATEST, FINAL, BEST)
BEGUN_ANEW = "begun_anew.txt"  # there until the first epoch of a training that began anew beside older checkpoints ends


class Checkpointed(Protocol):
    """What of a trainer is in a checkpoint."""

    device: torch.device
    optimizer: Any
    grad_scaler: Any
    logger: Any
    budget: Any
    prompts: Any
    current_epoch: int
    iterations_done: int
    training_cases: frozenset[str]
    started_from: frozenset[str]
    pseudo_labelled: dict[str, str]
    my_init_kwargs: dict[str, Any]
    inference_allowed_mirroring_axes: Any
    _best_ema: float | None
    _rare_classes: Any
    _resume: dict[str, Any] | None
    _seconds_before: float

    def _bare_network(self) -> torch.nn.Module:
        """Return the network without what wraps it."""

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        """Restore what the parts of the training count."""


def content_of(trainer: Checkpointed) -> dict[str, Any]:
    """Give what a checkpoint holds: nnU-Net's keys and, below "sam3d", ours; loadable with weights_only=True."""
    counted = [part.state() for part in (trainer.prompts, trainer._rare_classes) if part is not None]
    ours = {
        "seconds": trainer.budget.seconds(),
        "iterations": trainer.iterations_done,
        "random_state": random_state(),
        "trained_in": str(half_type(trainer.device) or torch.float32).removeprefix("torch."),
        TRAINING_CASES: sorted(trainer.training_cases),
        STARTED_FROM: sorted(trainer.started_from),
        PSEUDO_LABELLED: dict(trainer.pseudo_labelled),
    }
    for state in counted:
        ours |= state
    return {
        "network_weights": trainer._bare_network().state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": trainer.grad_scaler.state_dict() or None,
        "logging": plain(trainer.logger.get_checkpoint()),
        "_best_ema": plain(trainer._best_ema),
        "current_epoch": trainer.current_epoch + 1,
        "init_args": plain(trainer.my_init_kwargs),
        "trainer_name": trainer.__class__.__name__,
        "inference_allowed_mirroring_axes": plain(trainer.inference_allowed_mirroring_axes),
        "sam3d": ours,
    }


def restore(trainer: Checkpointed, checkpoint: Mapping[str, Any], name: str) -> None:
    """Put the content of a checkpoint into an initialised trainer.

    Raises:
        CheckpointError: If it belongs to another network.
    """
    try:
        network = trainer._bare_network()
        network.load_state_dict(completed(checkpoint["network_weights"], network.state_dict()))
    except RuntimeError as error:
        raise CheckpointError(
            f"{name}: weights of another network than the plan's "
            f"({str(error).splitlines()[0]}); train anew, or plan as the checkpoint was planned"
        ) from error
    trainer.my_init_kwargs = checkpoint["init_args"]
    trainer.current_epoch = checkpoint["current_epoch"]
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"] or None
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if checkpoint.get("grad_scaler_state"):
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    trainer.training_cases = training_cases([checkpoint])
    trainer.started_from = training_cases([checkpoint], STARTED_FROM)
    trainer.pseudo_labelled = dict(checkpoint.get("sam3d", {}).get(PSEUDO_LABELLED, {}))
    trainer._resume = checkpoint.get("sam3d")
    if trainer._resume is not None:
        trainer._seconds_before = trainer._resume["seconds"]
        trainer.iterations_done = trainer._resume["iterations"]
        trainer._go_on_from(trainer._resume)


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
        CheckpointError: If there is none, or they are of the training before one that was begun anew.
    """
    if (folder / BEGUN_ANEW).is_file() and any((folder / name).is_file() for name in RESUME_ORDER):
        raise CheckpointError(
            f"{folder}: the last training was begun anew and ended before its first epoch did, so that the checkpoints "
            f"are of the one before; train without --continue, or remove {BEGUN_ANEW} to go on with the one before"
        )
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


def note_new_training(folder: Path) -> None:
    """Note that a training begins anew beside checkpoints of one before, which stay as they are for now."""
    if any((folder / name).is_file() for name in RESUME_ORDER):
        (folder / BEGUN_ANEW).write_text(
            "A training was begun anew here. While this file is there, no epoch of it is over, and the checkpoints "
            "are of the training before.\n",
            encoding="utf-8",
        )


def put_earlier_away(folder: Path) -> str | None:
    """Keep the checkpoint of the training before under a name that nothing takes for the new training's.

    Its final checkpoint is kept; if there is none, the latest one, unless another is kept already.

    Returns:
        What to tell the user; None if there was none.
    """
    final, latest, earlier = (folder / name for name in (FINAL, LATEST, EARLIER))
    kept = next((file for file in (final, latest) if file.is_file()), None)
    if kept is not None and (kept == final or not earlier.is_file()):
        os.replace(kept, earlier)
    (folder / BEGUN_ANEW).unlink(missing_ok=True)
    if kept is None:
        return None
    return f"the checkpoint of the training before is kept as {earlier} until this training has ended"


def remove_earlier(folder: Path) -> None:
    """Remove what `put_earlier_away` kept and `note_new_training` noted, after the end of a training."""
    for name in (EARLIER, BEGUN_ANEW):
        (folder / name).unlink(missing_ok=True)
