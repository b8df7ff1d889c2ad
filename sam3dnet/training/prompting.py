"""Prompts in training: drawn from the target in the loader, answered by the network, corrected where it is wrong.

Clicks that agree with the network are among them; a query that has nothing else to say gets one click that does not.

Axes in names: B batch, K logits, Q queries (one class of one image each), z y x voxels of the patch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from sam3dnet.network.prompt_decoder import ImageFeatures, margin_of_class
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.preprocessing.geometry import nearest_voxel
from sam3dnet.prompts.sampling import MISSED, click_on_errors, errors, random_voxel
from sam3dnet.prompts.types import ClassPrompts, Point
from sam3dnet.training.drawing import Question
from sam3dnet.training.spoiling import SeenMasks, is_poor
from sam3dnet.training.target_classes import Classes

SHARE_OF_CORRECTIONS = (0.4, 0.3, 0.2, 0.1)  # how often none, one, two, three
SHARE_OF_CLICKS = {1: 0.6, 2: 0.2, 4: 0.12, 8: 0.08}  # how often a correction is so many clicks at once
APART = 2  # voxels along each axis that a click of these leaves free around it
ANYWHERE = 0.15  # how often a correction is any voxel of the errors, in place of the innermost one of the largest
DICE_SMOOTHING = 1.0


class Promptable(Protocol):
    """A network that answers prompts, see `SAM3D.prompted`."""

    def prompted(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Return what the prompts add to the margin."""


@dataclass(frozen=True)
class PromptAnswer:
    """The network's answer to made-up prompts.

    Attributes:
        margin_Qzyx: Logit of each query's class against all others, after the prompts.
        truth_Qzyx: Where the class is.
        valid_Qzyx: Where the target says what is there.
        class_Q: Channel of the logits.
    """

    margin_Qzyx: Tensor
    truth_Qzyx: Tensor
    valid_Qzyx: Tensor
    class_Q: Tensor

    def loss(self) -> Tensor:
        """Return cross entropy plus soft Dice loss of the classes that were asked for."""
        margin, truth, valid = self.margin_Qzyx.float(), self.truth_Qzyx.float(), self.valid_Qzyx.float()
        entropy = F.binary_cross_entropy_with_logits(margin, truth, weight=valid, reduction="sum")
        probability = margin.sigmoid() * valid
        overlap = (probability * truth).flatten(1).sum(1)
        sizes = probability.flatten(1).sum(1) + (truth * valid).flatten(1).sum(1)
        dice = (2 * overlap + DICE_SMOOTHING) / (sizes + DICE_SMOOTHING)
        return entropy / valid.sum().clamp(min=1) + (1 - dice).mean()

    def hard_dice_counts(self) -> tuple[Tensor, Tensor]:
        """Return twice the overlap, and the sum of the sizes, of each query: (Q,) each."""
        predicted = (self.margin_Qzyx > 0) & self.valid_Qzyx
        truth = self.truth_Qzyx & self.valid_Qzyx
        sizes = predicted.flatten(1).sum(1) + truth.flatten(1).sum(1)
        return 2 * (predicted & truth).flatten(1).sum(1), sizes


class TrainingPrompter:
    """Ask the questions of a batch, then click where the answers are wrong.

    Args:
        questions: From `draw_questions`.
        target_BCzyx: nnU-Net's target at full resolution, on the CPU.
        classes: How to read it.
        corrections: How often to click before the answer that counts.
        rng: Draws which voxel of an error is clicked.
        seen: Counts the automatic masks, and says how many of the poor ones are mended; None mends all.

    Attributes:
        queries: As they were asked last.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        target_BCzyx: Tensor,
        classes: Classes,
        corrections: int,
        rng: Generator,
        seen: SeenMasks | None = None,
    ):
        self._rng, self._seen = rng, seen
        self._questions = questions
        self.queries = [question.query for question in questions]
        self._classes = classes
        self._corrections = corrections
        targets = [target_BCzyx[query.sample].numpy() for query in self.queries]
        self._valid_Qzyx = np.stack([classes.valid(target) for target in targets])
        truths = [classes.truth(target, query.class_index) for target, query in zip(targets, self.queries, strict=True)]
        self._truth_Qzyx = np.stack(truths) & self._valid_Qzyx

    def __call__(self, network: Promptable, features: ImageFeatures) -> PromptAnswer:
        """Ask, correct without gradient, and return the last answer, which has one."""
        margin_Qzyx = self._margin(features.logits[0].detach())
        before_Qzyx = _is_positive(margin_Qzyx)
        agrees = [agrees_with(query.prompts, mask) for query, mask in zip(self.queries, before_Qzyx, strict=True)]
        if any(agrees):
            self._correct(before_Qzyx, agrees)
        for _ in range(self._corrections):
            with torch.no_grad():
                answer_Qzyx = _is_positive(self._ask(network, features, margin_Qzyx))
            self._correct(answer_Qzyx, [True] * len(self.queries))
        return PromptAnswer(
            self._ask(network, features, margin_Qzyx),
            torch.from_numpy(self._truth_Qzyx).to(margin_Qzyx.device),
            torch.from_numpy(self._valid_Qzyx).to(margin_Qzyx.device),
            torch.tensor([query.class_index for query in self.queries], device=margin_Qzyx.device),
        )

    def _margin(self, logits_BKzyx: Tensor) -> Tensor:
        """Give the logit of each query's class against all others, with the errors that are put into it."""
        margin_Qzyx = logits_BKzyx.new_empty((len(self.queries), *logits_BKzyx.shape[2:]), dtype=torch.float32)
        for question, margin_zyx, truth in zip(self._questions, margin_Qzyx, self._truth_Qzyx, strict=True):
            query = question.query
            margin_zyx.copy_(margin_of_class(logits_BKzyx[query.sample], query.class_index, self._classes.regions))
            self._mend(question, margin_zyx, truth)
            if question.spoiling is not None:
                question.spoiling.apply(margin_zyx)
        return margin_Qzyx

    def _mend(self, question: Question, margin_zyx: Tensor, truth_zyx: npt.NDArray[np.bool_]) -> None:
        """Count a mask, and mend it if it is poor and too few were good."""
        poor, index = is_poor(margin_zyx, truth_zyx), question.query.class_index
        share = 1.0 if self._seen is None else self._seen.share_to_mend(index)
        if self._seen is not None and truth_zyx.any():
            self._seen.note(index, not poor)
        if poor and question.mending is not None and question.mending.chance < share:
            question.mending.apply(margin_zyx, truth_zyx)

    def _ask(self, network: Promptable, features: ImageFeatures, margin_Qzyx: Tensor) -> Tensor:
        batch = PromptBatch.of(self.queries, margin_Qzyx.shape[1:]).to(margin_Qzyx.device)
        return margin_Qzyx + network.prompted(features, batch, margin_Qzyx)

    def _correct(self, predicted_Qzyx: npt.NDArray[np.bool_], which: Sequence[bool]) -> None:
        """Click once where a mask is wrong, for some of the queries."""
        wrong_Qzyx = errors(predicted_Qzyx & self._valid_Qzyx, self._truth_Qzyx)
        asked = zip(self.queries, wrong_Qzyx, which, strict=True)
        self.queries = [self._corrected(query, wrong) if chosen else query for query, wrong, chosen in asked]

    def _corrected(self, query: Query, errors_zyx: npt.NDArray[np.uint8]) -> Query:
        clicks = self._clicks(errors_zyx)
        return replace(query, prompts=replace(query.prompts, points=(*query.prompts.points, *clicks)))

    def _clicks(self, errors_zyx: npt.NDArray[np.uint8]) -> list[Point]:
        """Click one or several errors, or places of one, as a user would one after the other if nothing changed."""
        count = self._rng.choice(list(SHARE_OF_CLICKS), p=list(SHARE_OF_CLICKS.values()))
        left_zyx, clicks = errors_zyx.copy(), list[Point]()
        while len(clicks) < count and (click := self._click(left_zyx)) is not None:
            clicks.append(click)
            left_zyx[tuple(slice(max(0, at - APART), at + APART + 1) for at in click.voxel)] = 0
        return clicks

    def _click(self, errors_zyx: npt.NDArray[np.uint8]) -> Point | None:
        if self._rng.random() < ANYWHERE and errors_zyx.any():
            voxel = random_voxel(errors_zyx > 0, self._rng)
            return Point(voxel, positive=bool(errors_zyx[voxel] == MISSED))
        return click_on_errors(errors_zyx, self._classes.spacing_mm)


def agrees_with(prompts: ClassPrompts, mask_zyx: npt.NDArray[np.bool_]) -> bool:
    """Tell whether prompts are only clicks that say what a mask says, or none.

    Args:
        prompts: In voxels (z, y, x) of the mask.
        mask_zyx: The mask.
    """
    return not prompts.boxes and prompts.mask is None and not disputed(prompts, mask_zyx)


def disputed(prompts: ClassPrompts, mask_zyx: npt.NDArray[np.bool_]) -> tuple[Point, ...]:
    """Give the clicks that say something else than a mask; arguments as of `agrees_with`."""
    voxels = [nearest_voxel(point.at, mask_zyx.shape) for point in prompts.points]
    asked = zip(prompts.points, voxels, strict=True)
    return tuple(point for point, voxel in asked if mask_zyx[voxel] != point.positive)


def _is_positive(answer_Qzyx: Tensor) -> npt.NDArray[np.bool_]:
    """Tell where answers are above 0, on the CPU; numpy compares faster than torch does there."""
    if answer_Qzyx.device.type == "cpu":
        return np.asarray(answer_Qzyx.float().numpy() > 0)
    return np.asarray((answer_Qzyx > 0).cpu().numpy())


def draw_corrections(rng: Generator) -> int:
    """Draw how often an answer is corrected before it counts: up to three times."""
    return int(rng.choice(len(SHARE_OF_CORRECTIONS), p=SHARE_OF_CORRECTIONS))


def prompted_counts(answers: Sequence[PromptAnswer], class_indices: Sequence[int]) -> npt.NDArray[np.int64]:
    """Give twice the overlap, and the sum of the sizes, of each class over all answers about it: (classes, 2)."""
    counts = {index: [0, 0] for index in class_indices}
    for answer in answers:
        for index, overlap, size in zip(answer.class_Q.tolist(), *answer.hard_dice_counts(), strict=True):
            counts[index][0] += int(overlap)
            counts[index][1] += int(size)
    return np.array(list(counts.values()), np.int64)


def dice_of_counts(counts: npt.NDArray[np.int64]) -> list[float]:
    """Give the Dice of each class from what `prompted_counts` counted, NaN where no answer was about it."""
    return [float(overlap) / int(size) if size else math.nan for overlap, size in counts]
