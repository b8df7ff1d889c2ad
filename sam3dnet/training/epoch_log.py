"""training_log.jsonl: what a training says of each epoch, a line of JSON each."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from sam3dnet.preprocessing.folders import whole_or_nothing
from sam3dnet.preprocessing.schemas import Part

LOG_FILE = "training_log.jsonl"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]  # JSON knows no NaN


class Epoch(Part):
    """One epoch.

    Attributes:
        epoch: Its number, from 0.
        iterations: Training steps until its end.
        seconds: Of training until its end, without pauses.
        learning_rate: Of its last step, of the parameters that learn fastest.
        train_loss: Mean over its steps.
        val_loss: Mean over its validation patches.
        pseudo_dice: Of each class on validation patches, without prompts; None of one that none of them has.
        prompted_dice: With prompts, None of a class that was not asked about; None where the network answers none.
        reach_tokens: How far its answers to clicks reach from then on, see `sam3dnet.network.reach`; None for no limit.
    """

    epoch: int
    iterations: int
    seconds: float
    learning_rate: float
    train_loss: float
    val_loss: Number
    pseudo_dice: tuple[Number, ...]
    prompted_dice: tuple[Number, ...] | None = None
    reach_tokens: tuple[float | None, ...] | None = None


def append_epoch(file: Path, epoch: Epoch) -> None:
    """Add a line to a log."""
    with file.open("a", encoding="utf-8") as log:
        log.write(_line(epoch))


def in_words(epoch: Epoch, class_names: Sequence[str]) -> str:
    """Say in a line how an epoch went.

    Args:
        epoch: Which.
        class_names: In the order of its scores.
    """
    dice = _scores(epoch.pseudo_dice, class_names)
    if epoch.prompted_dice is not None:
        dice += f"; with prompts {_scores(epoch.prompted_dice, class_names)}"
    loss = "nothing to score" if epoch.val_loss is None else f"{epoch.val_loss:.4f}"
    return (
        f"epoch {epoch.epoch}: {epoch.iterations} iterations, loss {epoch.train_loss:.4f}, validation loss {loss}, "
        f"Dice on validation patches {dice}"
    )


def _scores(scores: Sequence[float | None], class_names: Sequence[str]) -> str:
    named = zip(class_names, scores, strict=True)
    return ", ".join(f"{name} {'nothing to score' if score is None else f'{score:.3f}'}" for name, score in named)


def carry_on(moving: list[float], mean: float) -> None:
    """Keep an epoch whose patches held no object from the moving average, in which nnU-Net's NaN would stay for ever.

    Args:
        moving: The averages of all epochs; the last one is mended.
        mean: Of the last epoch.
    """
    before = moving[-2] if len(moving) > 1 and math.isfinite(moving[-2]) else mean
    if not math.isfinite(moving[-1]):
        moving[-1] = mean if math.isfinite(mean) else before


def read_log(file: Path) -> list[Epoch]:
    """Read a log; of an epoch that was trained twice the later entry counts, half a line at the end is left out."""
    if not file.is_file():
        return []
    by_epoch: dict[int, Epoch] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = Epoch.model_validate(json.loads(line))
        except (ValueError, ValidationError):  # the last line of a run that was killed
            continue
        by_epoch[entry.epoch] = entry
    return [by_epoch[number] for number in sorted(by_epoch)]


def keep_epochs_before(number: int, file: Path) -> None:
    """Drop what an earlier training wrote of this epoch and later ones."""
    if not file.is_file():
        return
    kept = [entry for entry in read_log(file) if entry.epoch < number]
    with whole_or_nothing(file) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")


def _line(epoch: Epoch) -> str:
    return json.dumps(epoch.model_dump(), allow_nan=False) + "\n"
