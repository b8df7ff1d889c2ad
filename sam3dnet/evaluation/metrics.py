"""The metrics of one class in one case, and what holds where truth or prediction is empty.

| | both empty | only one of them empty |
|---|---|---|
| Dice, NSD | 1 | 0 |
| HD95 | 0 | the diagonal of the image, in mm |
| volume error in ml | 0 | as it is |
| relative volume error | 0 | -1 without prediction, undefined without truth |
| lesion precision, recall | undefined | of the empty one undefined, of the other 0 |

So a case always counts in the first four; the lesions of all cases are pooled, where the undefined does not arise.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sam3dnet.evaluation.lesions import count_lesions
from sam3dnet.planning.objects import bounding_box
from sam3dnet.settings.evaluation import LESION_IOU

MM3_PER_ML = 1000.0
UNDEFINED = float("nan")
NOWHERE = (slice(0, 1),) * 3  # stands for the box of what is empty


@dataclass(frozen=True)
class MaskScore:
    """How a predicted mask compares with the truth; counts of voxels, then metrics, then counts of lesions."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    dice: float
    nsd: float
    hd95_mm: float
    truth_ml: float
    prediction_ml: float
    volume_error_ml: float
    volume_error_relative: float
    lesions_truth: int
    lesions_predicted: int
    lesions_found: int
    lesions_correct: int
    lesion_recall: float
    lesion_precision: float

    @property
    def empty(self) -> Literal["", "truth", "prediction", "both"]:
        """Say which mask is empty."""
        no_truth, no_prediction = not self.truth_ml, not self.prediction_ml
        if no_truth and no_prediction:
            return "both"
        return "truth" if no_truth else "prediction" if no_prediction else ""


@dataclass(frozen=True)
class Metric:
    """A metric in tables.

    Attributes:
        key: Field of a MaskScore.
        title: What the reader sees.
        best: Whether high, low or near to zero is good.
        pooled: Fields whose sums over the cases are divided in place of a mean over the cases.
    """

    key: str
    title: str
    best: Literal["high", "low", "zero"]
    pooled: tuple[str, str] | None = None


METRICS = (
    Metric("dice", "Dice", "high"),
    Metric("nsd", "NSD", "high"),
    Metric("hd95_mm", "HD95 [mm]", "low"),
    Metric("volume_error_ml", "volume error [ml]", "zero"),
    Metric("volume_error_relative", "volume error [share]", "zero"),
    Metric("lesion_recall", "lesion recall", "high", ("lesions_found", "lesions_truth")),
    Metric("lesion_precision", "lesion precision", "high", ("lesions_correct", "lesions_predicted")),
)


@dataclass(frozen=True)
class WholeImage:
    """What is to be known of an image where masks are but a part of it.

    Attributes:
        shape: (Z, Y, X).
        annotated_voxels: Those that count.
    """

    shape: tuple[int, ...]
    annotated_voxels: int

    @classmethod
    def of(cls, shape: Sequence[int], ignored_ZYX: np.ndarray | None) -> "WholeImage":
        """Describe an image by its shape and the voxels that nobody has annotated."""
        ignored = 0 if ignored_ZYX is None else int(np.count_nonzero(ignored_ZYX))
        return cls(tuple(shape), math.prod(shape) - ignored)


def score_masks(
    prediction_ZYX: np.ndarray,
    truth_ZYX: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float,
    lesion_iou: float = LESION_IOU,
    ignored_ZYX: np.ndarray | None = None,
    image: WholeImage | None = None,
) -> MaskScore:
    """Compare a predicted mask with the truth.

    Args:
        prediction_ZYX: Bool.
        truth_ZYX: Bool, on the same grid.
        spacing_mm: (Z, Y, X).
        tolerance_mm: Distance up to which a piece of surface counts as right in the NSD.
        lesion_iou: Intersection over union from which on two components match.
        ignored_ZYX: Bool; voxels that nobody has annotated: they belong to neither mask and count nowhere, but
            connect what is predicted on either side of them to one lesion.
        image: What the masks are a part of, which holds all that they mark; None: they are the whole image.

    Returns:
        The score; the table above says what holds for empty masks.
    """
    lesions = count_lesions(prediction_ZYX, truth_ZYX, lesion_iou, ignored_ZYX)
    if ignored_ZYX is not None:
        prediction_ZYX, truth_ZYX = prediction_ZYX & ~ignored_ZYX, truth_ZYX & ~ignored_ZYX
    image = image or WholeImage.of(truth_ZYX.shape, ignored_ZYX)
    diagonal_mm = float(np.linalg.norm(np.multiply(image.shape, spacing_mm)))
    box = bounding_box(prediction_ZYX | truth_ZYX) or NOWHERE
    prediction, truth = prediction_ZYX[box], truth_ZYX[box]
    nsd, hd95_mm = surface_metrics(prediction, truth, spacing_mm, tolerance_mm, diagonal_mm)
    hit = int(np.count_nonzero(prediction & truth))
    extra = int(np.count_nonzero(prediction)) - hit
    missed = int(np.count_nonzero(truth)) - hit
    voxel_ml = float(np.prod(spacing_mm)) / MM3_PER_ML
    return MaskScore(
        true_positive=hit,
        false_positive=extra,
        false_negative=missed,
        true_negative=image.annotated_voxels - hit - extra - missed,
        dice=_dice(hit, extra, missed),
        nsd=nsd,
        hd95_mm=hd95_mm,
        truth_ml=(hit + missed) * voxel_ml,
        prediction_ml=(hit + extra) * voxel_ml,
        volume_error_ml=(extra - missed) * voxel_ml,
        volume_error_relative=_share(extra - missed, hit + missed, otherwise=UNDEFINED if extra else 0.0),
        lesions_truth=lesions.truth,
        lesions_predicted=lesions.predicted,
        lesions_found=lesions.found,
        lesions_correct=lesions.correct,
        lesion_recall=_share(lesions.found, lesions.truth, otherwise=UNDEFINED),
        lesion_precision=_share(lesions.correct, lesions.predicted, otherwise=UNDEFINED),
    )


def dice_coefficient(prediction_ZYX: np.ndarray, truth_ZYX: np.ndarray) -> float:
    """Measure the Dice of two bool masks on one grid; 1 where both are empty, as in `score_masks`."""
    hit = int(np.count_nonzero(prediction_ZYX & truth_ZYX))
    return _dice(hit, int(np.count_nonzero(prediction_ZYX)) - hit, int(np.count_nonzero(truth_ZYX)) - hit)


def surface_metrics(
    prediction_ZYX: np.ndarray,
    truth_ZYX: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    penalty_mm: float,
) -> tuple[float, float]:
    """Measure surfaces with MONAI: NSD with sub-voxel surfaces, and HD95 between the outermost voxels.

    Args:
        prediction_ZYX: Bool.
        truth_ZYX: Bool, on the same grid.
        spacing_mm: (Z, Y, X).
        tolerance_mm: Of the NSD.
        penalty_mm: HD95 where exactly one of the two is empty.

    Returns:
        NSD and HD95 in mm.
    """
    there = bool(prediction_ZYX.any()), bool(truth_ZYX.any())
    if not all(there):
        return (0.0, penalty_mm) if any(there) else (1.0, 0.0)
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    # A margin of one voxel closes the surface of an object that touches the border.
    y_pred, y = (torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (prediction_ZYX, truth_ZYX))
    spacing = [float(mm) for mm in spacing_mm]
    with _without_warnings_about_monai_itself():
        nsd = compute_surface_dice(
            y_pred, y, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
        )
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing)
    return float(nsd), float(hd95)


def surface_implementation() -> str:
    """Name the implementation of the surface metrics and its settings, without which their values mean little."""
    from importlib.metadata import version

    return (
        f"MONAI {version('monai')}: NSD by compute_surface_dice(use_subvoxels=True), "
        "HD95 by compute_hausdorff_distance(percentile=95)"
    )


@contextmanager
def _without_warnings_about_monai_itself() -> Iterator[None]:
    """Silence the warning that MONAI gives when its own functions call each other with a deprecated argument."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        yield


def _dice(hit: int, extra: int, missed: int) -> float:
    return _share(2 * hit, 2 * hit + extra + missed, otherwise=1.0)


def _share(part: float, whole: float, *, otherwise: float) -> float:
    return part / whole if whole else otherwise
