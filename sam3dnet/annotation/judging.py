"""How well label maps agree: what a model proposed with what was accepted."""

import math
from collections.abc import Iterable, Mapping
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
