"""What a training knows of prompts: what it asks, which masks it has seen, and how far answers may reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from torch import nn

from sam3dnet.network.earlier_weights import REACH
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.reach import REACHES
from sam3dnet.training.distributed import gathered
from sam3dnet.training.drawing import finest
from sam3dnet.training.prompting import (
    Promptable,
    PromptAnswer,
    TrainingPrompter,
    dice_of_counts,
    draw_corrections,
    prompted_counts,
)
from sam3dnet.training.reaching import FAR_REACHES, MEMORY, Counts, ReachJudge, choose_reach
from sam3dnet.training.spoiling import SeenMasks
from sam3dnet.training.target_classes import Classes

TRAINING_SEED, VALIDATION_SEED = 501, 502  # of how often an answer is corrected
REACH_SEED = 503  # of the clicks by which the reach of answers is judged


@dataclass(frozen=True)
class ValidationPrompter:
    """Ask about a batch, and judge the reach of answers.

    Attributes:
        prompter: Asks.
        judge: Judges.
    """

    prompter: TrainingPrompter
    judge: ReachJudge

    def __call__(self, network: Promptable, features: ImageFeatures) -> tuple[PromptAnswer, Counts]:
        """Return the answer, and what `ReachJudge` counts."""
        return self.prompter(network, features), self.judge(network, features)


class PromptTraining:
    """The prompts of a training.

    Args:
        classes: Which can be asked about.
        num_classes: Channels of the logits.
        rank: Of this process among those that train together.
        validates_on_seen: Whether validation patches are of cases that are trained on.

    Attributes:
        classes: As given.
        dice: Of each class with prompts, on the last epoch's validation patches; None where none was asked about.
        reach_tokens: How far answers to clicks about each class reach since the last epoch; None: as far as they do.
    """

    def __init__(self, classes: Classes, num_classes: int, rank: int = 0, *, validates_on_seen: bool = False) -> None:
        self.classes = classes
        self._reaches = FAR_REACHES if validates_on_seen else REACHES
        self.dice: list[float] | None = None
        self.reach_tokens: list[float | None] | None = None
        self._num_classes, self._rank = num_classes, rank
        self._seen_masks = SeenMasks()
        self._reach_counts: Any = 0.0  # before the first epoch

    def asking(self, batch: Mapping[str, Any], iteration: int) -> TrainingPrompter:
        """Make what asks a network about a batch of training, in the given iteration of all."""
        return self._prompter(batch, (TRAINING_SEED, iteration), self._seen_masks)

    def validating(self, batch: Mapping[str, Any], iteration: int) -> ValidationPrompter:
        """Make what asks a network about a batch of validation; what is drawn is the same in every epoch."""
        rng = np.random.default_rng((REACH_SEED, iteration, self._rank))
        judge = ReachJudge(finest(batch["target"]), self.classes, self._num_classes, rng)
        return ValidationPrompter(self._prompter(batch, (VALIDATION_SEED, iteration)), judge)

    def _prompter(
        self, batch: Mapping[str, Any], seed: tuple[int, ...], seen: SeenMasks | None = None
    ) -> TrainingPrompter:
        rng = np.random.default_rng((*seed, self._rank))
        corrections = draw_corrections(rng)
        return TrainingPrompter(batch["questions"], finest(batch["target"]), self.classes, corrections, rng, seen)

    def conclude_epoch(self, answers: Sequence[tuple[PromptAnswer, Counts]], network: nn.Module) -> None:
        """Score an epoch, and let answers reach as far as has served each class best in it and, less so, before.

        Args:
            answers: Of `ValidationPrompter`, to this process.
            network: Keeps the reach.
        """
        counts = gathered(prompted_counts([answer for answer, _ in answers], self.classes.indices))
        self.dice = dice_of_counts(np.sum(counts, 0))
        judged = np.sum(gathered(sum(judged for _, judged in answers)), 0)
        self._reach_counts = judged + MEMORY * self._reach_counts
        chosen, reach_K = choose_reach(self._reach_counts, self._reaches), network.get_buffer(REACH)
        reach_K.copy_(reach_K.new_tensor(chosen))
        self.reach_tokens = [chosen[index] if isfinite(chosen[index]) else None for index in self.classes.indices]

    def state(self) -> dict[str, Any]:
        """Give what a training that goes on later needs, in types that are safe to load."""
        good_masks = {str(index): share for index, share in self._seen_masks.good_shares.items()}
        return {"reach_counts": np.asarray(self._reach_counts).tolist(), "good_masks": good_masks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one of before there was a reach or masks were counted starts without."""
        self._reach_counts = np.array(state.get("reach_counts", 0.0))
        self._seen_masks = SeenMasks({int(index): share for index, share in state.get("good_masks", {}).items()})
