"""How well label maps agree: what a model proposed with what was accepted."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam3dnet.evaluation.metrics import dice_coefficient
from sam3dnet.planning.objects import NEIGHBOURHOOD, mask_of
from sam3dnet.preprocessing.cases import foreground_classes

NOISE = 0.02  # by which the agreement with a case differs from one training to another
THICK = 2.0  # times the smallest spacing, above which a neighbour is too far off to be at the outline


def dice_by_class(
    proposed_ZYX: npt.NDArray[Any], accepted_ZYX: npt.NDArray[Any], dataset_json: Mapping[str, Any]
) -> dict[str, float | None]:
    """Measure the Dice of each class or region, without voxels to be ignored; None where neither label map has it."""
    found: dict[str, float | None] = {}
    known = _known(accepted_ZYX, dataset_json)
    for name, values in foreground_classes(dataset_json).items():
        masks = [mask_of(labels_ZYX, values) & known for labels_ZYX in (proposed_ZYX, accepted_ZYX)]
        found[name] = dice_coefficient(*masks) if masks[0].any() or masks[1].any() else None
    return found


def agreement(
    proposed_ZYX: npt.NDArray[Any],
    accepted_ZYX: npt.NDArray[Any],
    dataset_json: Mapping[str, Any],
    spacing_mm: Sequence[float],
) -> float:
    """Measure how well a model agrees with what a user accepted, by the Dice of all but the voxels at the outline.

    Voxels that are to be ignored count for nothing.

    What is accepted began as what a model proposed, and where nothing was wrong enough to be corrected its outline is
    still that model's: by plain Dice, each further model looks worse than the one that proposed. So nothing counts that
    lies within a voxel of the outline, but for objects so thin that nothing else is left, where these are missed. On 23
    cases of Dataset501, accepted at a Dice of 0.85 after corrections, a model that was better by the truth (0.844,
    before 0.813) was worse by plain Dice (0.934, before 0.958) and better by this (0.993, before 0.988).

    Returns:
        Mean over the classes that either has; 1 where there are none, since nothing was to be found, and nothing was.
    """
    near, known = _neighbours(spacing_mm), _known(accepted_ZYX, dataset_json)
    found = []
    for values in foreground_classes(dataset_json).values():
        proposed, accepted = (mask_of(labels_ZYX, values) & known for labels_ZYX in (proposed_ZYX, accepted_ZYX))
        if not (proposed.any() or accepted.any()):
            continue
        whole = ndimage.binary_erosion(accepted | ~known, near)  # what is not known is no outline
        inside = (whole & accepted) | _missed_thin(accepted, proposed, whole)
        missed = np.count_nonzero(inside & ~proposed)
        added = np.count_nonzero(proposed & ~ndimage.binary_dilation(accepted, near))
        hit = 2 * (np.count_nonzero(accepted) - missed)
        found.append(hit / (hit + missed + added))
    return float(np.mean(found)) if found else 1.0


def _known(accepted_ZYX: npt.NDArray[Any], dataset_json: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Tell of which voxels something is known."""
    ignored = dataset_json["labels"].get("ignore")
    return np.ones(accepted_ZYX.shape, bool) if ignored is None else accepted_ZYX != ignored


def _neighbours(spacing_mm: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Give the neighbours of a voxel, but for those along axes of thick slices."""
    neighbours = ndimage.generate_binary_structure(3, 1)
    for axis, mm in enumerate(spacing_mm):
        if mm > THICK * min(spacing_mm):
            neighbours &= np.arange(3).reshape([-1 if axis == other else 1 for other in range(3)]) == 1
    return neighbours


def _missed_thin(
    accepted: npt.NDArray[np.bool_], proposed: npt.NDArray[np.bool_], whole: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Mark the objects that are all outline, nothing of them whole, and of which no voxel was found."""
    objects, count = ndimage.label(accepted, NEIGHBOURHOOD)
    kept = np.ones(count + 1, bool)
    kept[objects[accepted & (whole | proposed)]] = False
    kept[0] = False
    return kept[objects]


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a model proposed for a case.

    Attributes:
        labels_ZYX: Label map on the grid of the image as its reader gives it.
        model: Folder of the model.
        since: When the case was opened, of `time.monotonic`.
        image: The files of the image, with what each was known by when it was opened, see `inference.images.seen`;
            empty where that is not known.
    """

    labels_ZYX: npt.NDArray[Any]
    model: str | None
    since: float
    image: Mapping[Path, str] = field(default_factory=dict)


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
        before: Mean agreement of the model before with the cases that were held back; None where there is none.
        after: Of the model.
        count: Of these cases.
    """
    return before is None or (after is not None and after >= before - NOISE / math.sqrt(max(1, count)))
