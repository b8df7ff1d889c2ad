"""The protocol of "Foundation Models for Interactive 3D Biomedical Image Segmentation", CVPR 2025.

A box for each class, then five clicks on what is wrong, each step for all classes. Written after the challenge's public
description and evaluation; deviations: a model is asked class by class, so that the masks of two classes may overlap
and regions can be scored, and surfaces are measured as everywhere in this package.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator, RandomState
from scipy.ndimage import distance_transform_edt

from sam3dnet.evaluation.clicks import Mask, Session, Step, click_at, prompt_session
from sam3dnet.evaluation.metrics import score_masks
from sam3dnet.prompts.components import connected
from sam3dnet.prompts.depth import box_of, cut_out
from sam3dnet.prompts.types import Box, ClassPrompts, Point

NUM_CLICKS = 5
TOLERANCE_MM = 2.0
LEAST_DICE = 0.2  # up to which the NSD counts as 0
MOST_SECONDS = 90.0  # a class may take
MOST_WIDENING = 5  # of the box, where the image is `WIDENING_SIZE` voxels wide
WIDENING_SIZE = 256
TIE_SEED = 42

RULE = (
    f"A box, then {NUM_CLICKS} corrective clicks for each class. AUC: area under the curve of the {NUM_CLICKS} steps "
    "with clicks by the trapezoid rule with steps of 1, not divided by its width. Final: after click "
    f"{NUM_CLICKS}. NSD is 0 where Dice is at most {LEAST_DICE:g}. A class that takes more than {MOST_SECONDS:g} s, "
    "its share of reading the image included, scores 0, as does the first step of a class without box."
)


@dataclass(frozen=True)
class StepScore:
    """Dice and NSD after one step, and the seconds that it took."""

    dice: float
    nsd: float
    seconds: float = 0.0


def slice_box(truth_ZYX: Mask, rng: Generator) -> Box:
    """Draw the challenge's box: as high as the class, as wide as it is in one slice, a little widened.

    Its z range is that of the class. Its x and y range are those of the class in the middle one of the slices that hold
    it (of an even number, the upper of the two), widened on each side by int(u * dimension / 256) voxels, with one u
    drawn from 0 to 5, and clipped to the image.

    Args:
        truth_ZYX: At least one voxel is True.
        rng: Source of randomness.

    Returns:
        In voxels (z, y, x), both corners belong to it.
    """
    slices = np.flatnonzero(truth_ZYX.any((1, 2)))
    middle = slices[len(slices) // 2]
    _, y, x = box_of(truth_ZYX[middle : middle + 1])
    widening = int(rng.integers(MOST_WIDENING + 1))
    low, high = [int(slices[0])], [int(slices[-1])]
    for part, size in ((y, truth_ZYX.shape[1]), (x, truth_ZYX.shape[2])):
        by = int(widening * size / WIDENING_SIZE)
        low.append(max(0, part.start - by))
        high.append(min(size - 1, part.stop - 1 + by))
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def error_click(predicted_ZYX: Mask, truth_ZYX: Mask) -> Point | None:
    """Click in the middle of the largest error, as the challenge does.

    Missed and false voxels together form components by 26 neighbours. In the largest one (the first of equals) the
    voxel is taken that is deepest in voxels, spacing left aside; the border of the array counts as outside. Of equally
    deep ones one is drawn, always with the same seed.

    Args:
        predicted_ZYX: The present mask.
        truth_ZYX: What it should be.

    Returns:
        A positive click where the class is, else a negative one; None if nothing is wrong.
    """
    wrong = predicted_ZYX ^ truth_ZYX
    if not wrong.any():
        return None
    components, _ = connected(wrong)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    corner, largest = cut_out(components == sizes.argmax())
    depth = distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    z, y, x = (int(v) for v in deepest[RandomState(TIE_SEED).choice(len(deepest))] + corner)
    return Point((z, y, x), positive=bool(truth_ZYX[z, y, x]))


def steps_of_class(session: Session, truth_ZYX: Mask, class_name: str, box: Box | None) -> Iterator[Step]:
    """Prompt one class.

    Args:
        session: Holds the image; its prompts are forgotten first.
        truth_ZYX: Where the class is, not empty, on the image's grid.
        class_name: Of the class.
        box: In voxels (z, y, x); None for a class that gets none, whose first step is an empty mask.

    Yields:
        The first step and one after each click; a mask without an error gets no further click.
    """
    session.reset()
    step = Step(np.zeros_like(truth_ZYX), None, 0.0)
    if box is not None:
        step = prompt_session(session, ClassPrompts(boxes=(box,)), class_name)
    yield step
    for _ in range(NUM_CLICKS):
        point = error_click(step.mask, truth_ZYX)
        step = replace(step, seconds=0.0) if point is None else click_at(session, point, class_name)
        yield step


def score_steps(
    steps: Iterable[Step], truth_ZYX: Mask, spacing_mm: Sequence[float], ignored_ZYX: Mask | None
) -> list[StepScore]:
    """Score the steps of one class; the NSD is as measured, whatever the Dice.

    Args:
        steps: From `steps_of_class`.
        truth_ZYX: Where the class is.
        spacing_mm: (Z, Y, X).
        ignored_ZYX: Voxels that nobody has annotated.
    """
    scores = []
    for step in steps:
        found = score_masks(step.mask, truth_ZYX, spacing_mm, tolerance_mm=TOLERANCE_MM, ignored_ZYX=ignored_ZYX)
        scores.append(StepScore(found.dice, found.nsd, step.seconds))
    return scores


def mean_of_classes(scores: Sequence[Sequence[StepScore]]) -> list[StepScore]:
    """Average the classes of a case step by step; where their mean Dice is at most 0.2, the NSD is 0.

    Args:
        scores: By class and step.
    """
    means = []
    for step in zip(*scores, strict=True):
        dice, nsd = (float(np.mean(values)) for values in zip(*((one.dice, one.nsd) for one in step), strict=True))
        means.append(StepScore(dice, nsd if dice > LEAST_DICE else 0.0))
    return means
