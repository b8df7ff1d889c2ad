"""How well label maps agree: what a model proposed with what was accepted."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.evaluation.metrics import dice_coefficient
from sam3dnet.planning.objects import mask_of
from sam3dnet.preprocessing.cases import foreground_classes

NOISE = 0.02  # Dice by which that of a case differs from one training to another


def dice_by_class(
    proposed_ZYX: npt.NDArray[Any], accepted_ZYX: npt.NDArray[Any], dataset_json: Mapping[str, Any]
) -> dict[str, float | None]:
    """Measure the Dice of each class or region; None where neither label map has it."""
    found: dict[str, float | None] = {}
    for name, values in foreground_classes(dataset_json).items():
        masks = [mask_of(labels_ZYX, values) for labels_ZYX in (proposed_ZYX, accepted_ZYX)]
        found[name] = dice_coefficient(*masks) if masks[0].any() or masks[1].any() else None
    return found


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a model proposed for a case.

    Attributes:
        labels_ZYX: Label map on the grid of the image as its reader gives it.
        model: Folder of the model.
        since: When the case was opened, of `time.monotonic`.
    """

    labels_ZYX: npt.NDArray[Any]
    model: str | None
    since: float


def compare(
    proposal: Proposal | None,
    labels_ZYX: npt.NDArray[Any],
    dataset_json: Mapping[str, Any],
    corrected: bool | None,
    seconds: float | None,
) -> dict[str, Any]:
    """Say what became of a proposal, as the history keeps it.

    Args:
        proposal: None where there was none.
        labels_ZYX: What is accepted.
        dataset_json: Names the classes.
        corrected: Whether anything was changed by hand; None: if the label maps differ.
        seconds: That it took; None: since the case was opened.
    """
    if proposal is None:
        return {"corrected": corrected is not False, "seconds": seconds}
    return {
        "model": proposal.model,
        "corrected": not np.array_equal(proposal.labels_ZYX, labels_ZYX) if corrected is None else corrected,
        "dice": dice_by_class(proposal.labels_ZYX, labels_ZYX, dataset_json),
        "seconds": round(time.monotonic() - proposal.since, 1) if seconds is None else seconds,
    }


def mean_of(values: Iterable[float | None]) -> float | None:
    """Average what is there; None for nothing."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def is_no_worse(before: float | None, after: float | None, count: int) -> bool:
    """Tell whether a model may take the place of the one before: it is no worse than chance makes it.

    Args:
        before: Mean Dice of the cases that were held back, by the model before; None where there is no such mean.
        after: By the model.
        count: Of these cases.
    """
    return before is None or (after is not None and after >= before - NOISE / math.sqrt(max(1, count)))
