"""The protocol of the interactive task of autoPET/CT IV, MICCAI 2025.

Ten pairs of a click in a lesion and a click in the background are drawn before the model is asked; it answers 11 times,
to the first 0 to 10 pairs. Written after the challenge's public description and scripts; the draws are ours, one seed a
case and class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import numpy as np
from numpy.random import Generator

from sam3dnet.evaluation.clicks import Mask, Session, prompt_session
from sam3dnet.evaluation.lesions import voxels_without_partner
from sam3dnet.evaluation.metrics import MM3_PER_ML, UNDEFINED, dice_coefficient
from sam3dnet.prompts.components import connected
from sam3dnet.prompts.depth import Voxel, cut_out, near_surface
from sam3dnet.prompts.sampling import innermost_voxel, random_voxel
from sam3dnet.prompts.types import ClassPrompts, Point

NUM_PAIRS = 10
UPTAKE_PERCENTILE = 99.75  # of what is no lesion; above it background is clicked
CONNECTIVITY: Final = 18
IN_VOXELS = (1.0, 1.0, 1.0)

RULE = (
    f"0 to {NUM_PAIRS} pairs of a click in the class and one beside it, drawn beforehand. Dice is undefined where the "
    f"truth is empty. False positive: components of the prediction ({CONNECTIVITY} neighbours) without a true voxel; "
    "false negative: those of the truth without a predicted one. AUC: area under the curve of all steps by the "
    f"trapezoid rule with steps of 1, not divided by its width. Final: after {NUM_PAIRS} pairs. Background clicks go "
    f"to the brightest {100 - UPTAKE_PERCENTILE:g} % outside of the class in the last channel, PET in autoPET's images."
)


@dataclass(frozen=True)
class Clicks:
    """Places (z, y, x) in the order in which they are given."""

    foreground: tuple[Voxel, ...]
    background: tuple[Voxel, ...]

    def first(self, pairs: int) -> ClassPrompts:
        """Give so many pairs."""
        positive = [Point(voxel) for voxel in self.foreground[:pairs]]
        negative = [Point(voxel, positive=False) for voxel in self.background[:pairs]]
        return ClassPrompts(points=(*positive, *negative))


def draw_clicks(truth_ZYX: Mask, image_ZYX: np.ndarray, ignored_ZYX: Mask | None, rng: Generator) -> Clicks:
    """Draw the clicks of a class, without a look at any answer.

    Foreground: the innermost voxels of up to ten components, drawn, then voxels of their surfaces in turn. Background:
    the same with the components of what is brightest outside of the class, but further voxels from anywhere in them.

    Args:
        truth_ZYX: Where the class is; without a voxel there are no foreground clicks.
        image_ZYX: Whose brightest voxels are clicked in the background.
        ignored_ZYX: Voxels that nobody has annotated; no background click goes there.
        rng: Source of randomness.
    """
    outside = ~truth_ZYX if ignored_ZYX is None else ~(truth_ZYX | ignored_ZYX)
    foreground = _clicks_in(truth_ZYX, lambda part: near_surface(part, IN_VOXELS, 1.0), rng)
    return Clicks(foreground, _clicks_in(_brightest(image_ZYX, outside), lambda part: part, rng))


def curves_of_class(
    session: Session, truth_ZYX: Mask, class_name: str, clicks: Clicks, spacing_mm: Sequence[float]
) -> dict[str, list[float]]:
    """Prompt one class with 0, 1, ... 10 pairs, each time in a fresh session, and score.

    Args:
        session: Holds the image; its prompts are forgotten before each step.
        truth_ZYX: Where the class is, on the image's grid.
        class_name: Of the class.
        clicks: From `draw_clicks`.
        spacing_mm: (Z, Y, X).

    Returns:
        Of each metric, its value at every step: "dice" (NaN where the truth is empty), "false_positive_ml" and
        "false_negative_ml".
    """
    curves: dict[str, list[float]] = {"dice": [], "false_positive_ml": [], "false_negative_ml": []}
    voxel_ml = float(np.prod(spacing_mm)) / MM3_PER_ML
    for pairs in range(NUM_PAIRS + 1):
        session.reset()
        mask = prompt_session(session, clicks.first(pairs), class_name).mask
        curves["dice"].append(dice_coefficient(mask, truth_ZYX) if truth_ZYX.any() else UNDEFINED)
        curves["false_positive_ml"].append(voxels_without_partner(mask, truth_ZYX, CONNECTIVITY) * voxel_ml)
        curves["false_negative_ml"].append(voxels_without_partner(truth_ZYX, mask, CONNECTIVITY) * voxel_ml)
    return curves


def _brightest(image_ZYX: np.ndarray, outside_ZYX: Mask) -> Mask:
    """Mark the brightest voxels outside of a class: those above the percentile, at it where there are none."""
    if not outside_ZYX.any():
        return outside_ZYX
    threshold = np.percentile(image_ZYX[outside_ZYX], UPTAKE_PERCENTILE)
    bright = outside_ZYX & (image_ZYX > threshold)
    return bright if bright.any() else outside_ZYX & (image_ZYX >= threshold)


def _clicks_in(mask_ZYX: Mask, further: Callable[[Mask], Mask], rng: Generator) -> tuple[Voxel, ...]:
    """Click the middle of random components, then in turn a random voxel of what `further` gives of each."""
    components, count = connected(mask_ZYX)
    parts = [cut_out(components == number + 1) for number in rng.permutation(count)[:NUM_PAIRS]]
    voxels = [_shifted(innermost_voxel(part, IN_VOXELS), corner) for corner, part in parts]
    for corner, part in cycle(parts):
        if len(voxels) >= NUM_PAIRS:
            break
        voxels.append(_shifted(random_voxel(further(part), rng), corner))
    return tuple(voxels)


def _shifted(voxel: Voxel, corner: Voxel) -> Voxel:
    z, y, x = (position + first for position, first in zip(voxel, corner, strict=True))
    return z, y, x
