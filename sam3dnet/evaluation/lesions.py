"""Detection of lesions: connected components of truth and prediction, and which of them match."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from sam3dnet.prompts.components import connected, partners
from sam3dnet.settings.evaluation import LESION_IOU

CONNECTIVITY: Final = 26


@dataclass(frozen=True)
class LesionCounts:
    """How many components there are, and how many of them have a partner on the other side."""

    truth: int
    predicted: int
    found: int
    correct: int


def count_lesions(
    prediction_ZYX: np.ndarray,
    truth_ZYX: np.ndarray,
    min_iou: float = LESION_IOU,
    ignored_ZYX: np.ndarray | None = None,
) -> LesionCounts:
    """Count the components of truth that were found, and those of the prediction that are correct.

    A component is connected by 26 neighbours. Two match if they share a voxel and their intersection over union is at
    least `min_iou`; one may match several, so a true lesion that was split counts once as found, and each large enough
    part of it as correct.

    Args:
        prediction_ZYX: Bool.
        truth_ZYX: Bool, on the same grid.
        min_iou: From 0 (any common voxel) to 1.
        ignored_ZYX: Bool; voxels that nobody has annotated. A component with more than half of its voxels there counts
            only if it has a partner.

    Returns:
        The counts; found is a part of truth, correct a part of predicted.
    """
    matched = partners(truth_ZYX, prediction_ZYX, min_iou, ignored_ZYX)
    known = (matched.first | ~matched.first_unknown, matched.second | ~matched.second_unknown)
    return LesionCounts(*(int(one.sum()) for one in (*known, matched.first, matched.second)))


def voxels_without_partner(mask_ZYX: np.ndarray, other_ZYX: np.ndarray, connectivity: Literal[6, 18, 26]) -> int:
    """Count the voxels of the components of a mask that share no voxel with another mask.

    Args:
        mask_ZYX: Bool.
        other_ZYX: Bool, on the same grid.
        connectivity: Neighbours by which voxels are connected.
    """
    components, count = _components(mask_ZYX, connectivity)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[np.unique(components[other_ZYX])] = 0
    sizes[0] = 0
    return int(sizes.sum())


def _components(mask_ZYX: np.ndarray, connectivity: Literal[6, 18, 26] = CONNECTIVITY) -> tuple[np.ndarray, int]:
    labels, count = connected(mask_ZYX, connectivity)
    return labels.astype(np.int64), count
