"""Which reach of answers to clicks serves each class best, judged on validation patches; see `network.reach`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Generator
from torch import Tensor

from sam3dnet.network.prompt_decoder import ImageFeatures, margin_of_class
from sam3dnet.network.prompt_encoder import Query
from sam3dnet.network.reach import REACHES, restrained
from sam3dnet.prompts.types import Point
from sam3dnet.training.drawing import Question
from sam3dnet.training.prompting import Promptable, PromptAnswer, TrainingPrompter, disputed
from sam3dnet.training.target_classes import Classes

Counts = npt.NDArray[np.float64]

# On patches that were trained on, errors are thinner than users meet them, so that what reaches far looks worse than
# it is: 0.25 tokens were chosen after five minutes on five cases of Dataset501, and ten clicks on a class brought six
# further cases from 0.77 to 0.81 Dice, with 1.2 tokens to 0.83.
FAR_REACHES = REACHES[:2]
MEMORY = 0.5  # share of what was counted before that is kept from one epoch to the next


class ReachJudge:
    """Counts what becomes of a network's own masks under its answers to clicks where they are wrong, at each reach.

    Every class that a patch holds is asked about, one after the other, so that it takes no more memory than training.

    Args:
        target_BCzyx: nnU-Net's target at full resolution, on the CPU.
        classes: How to read it.
        num_classes: Channels of the logits.
        rng: Draws the clicks.
    """

    def __init__(self, target_BCzyx: Tensor, classes: Classes, num_classes: int, rng: Generator):
        self._target, self._classes, self._rng = target_BCzyx, classes, rng
        self._num_classes = num_classes

    def __call__(self, network: Promptable, features: ImageFeatures) -> Counts:
        """Return twice the overlap with the truth, and the sum of the sizes: (classes, reaches, 2)."""
        counts = np.zeros((self._num_classes, len(REACHES), 2))
        for query in self._queries():
            prompter = TrainingPrompter([Question(query)], self._target, self._classes, 0, self._rng)
            answer = prompter(network, features)
            logits_Kzyx = features.logits[0][query.sample]
            before_zyx = margin_of_class(logits_Kzyx, query.class_index, self._classes.regions)
            clicks = disputed(prompter.queries[0].prompts, (before_zyx > 0).cpu().numpy())
            if clicks:
                counts[query.class_index] += self._counts_of(answer, before_zyx, clicks)
        return counts

    def _counts_of(self, answer: PromptAnswer, before_zyx: Tensor, clicks: Sequence[Point]) -> Counts:
        valid, correction = answer.valid_Qzyx[0], answer.margin_Qzyx[0].float() - before_zyx
        truth, counts = answer.truth_Qzyx[0] & valid, []
        for tokens in REACHES:
            reach = [tokens * stride for stride in self._classes.token_stride]
            mask = (before_zyx + restrained(correction, clicks, reach) > 0) & valid
            counts.append(torch.stack((2 * (mask & truth).sum(), mask.sum() + truth.sum())))
        return torch.stack(counts).cpu().numpy().astype(np.float64)

    def _queries(self) -> list[Query]:
        targets = enumerate(self._target.numpy())
        asked = [(sample, target, index) for sample, target in targets for index in self._classes.indices]
        return [Query(sample, index) for sample, target, index in asked if self._classes.truth(target, index).any()]


def choose_reach(counts: Counts, reaches: Sequence[float] = REACHES) -> list[float]:
    """Choose for each class the reach with the highest Dice, of several the longest.

    Args:
        counts: From `ReachJudge`, added up.
        reaches: The first of those that were compared, among which to choose.

    Returns:
        In tokens; infinity for a class that was not asked about.
    """
    dice = counts[..., 0] / counts[..., 1].clip(min=1)
    return [reaches[best] for best in dice[:, : len(reaches)].argmax(1)]
