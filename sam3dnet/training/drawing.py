"""First prompts of a batch, drawn from its target in the process that loaded it, so that the training never waits."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from torch import Tensor

from sam3dnet.network.prompt_encoder import Query
from sam3dnet.prompts.made_up import draw_prompts
from sam3dnet.training.spoiling import SPOILED_MARGIN, Mending, Spoiling, draw_mending, draw_spoiling
from sam3dnet.training.target_classes import Classes

ABSENT_CLASS = 0.1  # how often a class is asked for that the patch need not hold


@dataclass(frozen=True)
class Question:
    """What is asked about one image of a batch.

    Attributes:
        query: A class and its prompts.
        spoiling: The error that is put into the logits, which a prompt may name.
        mending: What is put into the logits before it.
    """

    query: Query
    spoiling: Spoiling | None = None
    mending: Mending | None = None


@dataclass(frozen=True)
class QuestionDrawer:
    """Adds "questions" to a batch of nnU-Net's loaders, see `transforming_loader`.

    Randomness comes from numpy's global generator, as that of the loaders themselves.

    Attributes:
        classes: How to read the target.
        share: Of the images, at least one.
    """

    classes: Classes
    share: float = 1.0

    def __call__(self, **batch: Any) -> dict[str, Any]:
        """Return the batch with a list of a `Question` for each image that is asked about."""
        rng = np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
        return batch | {"questions": draw_questions(finest(batch["target"]), self.classes, rng, self.share)}


def finest(target: Any) -> Any:
    """Return the target at full resolution; with deep supervision it is the first of a list."""
    return target[0] if isinstance(target, list) else target


def with_own_target(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch for nnU-Net's validation step, which makes ignored voxels of the finest target background.

    On the CPU it would do so in the loader's own batch, whose prompts are answered afterwards.
    """
    target = batch["target"]
    return {**batch, "target": [target[0].clone(), *target[1:]] if isinstance(target, list) else target.clone()}


def draw_questions(target_BCzyx: Tensor, classes: Classes, rng: Generator, share: float = 1.0) -> list[Question]:
    """Ask for a class in a share of the images, with prompts drawn from the target.

    Args:
        target_BCzyx: nnU-Net's target at full resolution, on the CPU.
        classes: How to read it.
        rng: Source of all randomness.
        share: Of the images, at least one.

    Returns:
        A question for each of these images, in their order.
    """
    batch_size = len(target_BCzyx)
    samples = sorted(rng.permutation(batch_size)[: max(1, round(share * batch_size))].tolist())
    spoiled = rng.random() < SPOILED_MARGIN
    return [_draw_question(sample, target_BCzyx[sample].numpy(), classes, spoiled, rng) for sample in samples]


def _draw_question(sample: int, target_Czyx: npt.NDArray, classes: Classes, spoiled: bool, rng: Generator) -> Question:
    class_index = _choose_class(target_Czyx, classes, rng)
    valid = classes.valid(target_Czyx)
    truth = classes.truth(target_Czyx, class_index) & valid
    prompts = draw_prompts(truth, classes.spacing_mm, rng, valid)
    spoiling = draw_spoiling(truth, valid, classes.spacing_mm, classes.token_stride, rng) if spoiled else None
    if spoiling is not None and spoiling.click is not None:
        prompts = replace(prompts, points=(*prompts.points, spoiling.click))
    mending = None if spoiling is None else draw_mending(rng)
    return Question(Query(sample, class_index, prompts), spoiling, mending)


def _choose_class(target_Czyx: npt.NDArray, classes: Classes, rng: Generator) -> int:
    """Choose a class that is there, a smaller one more often: it needs prompts more; now and then any class."""
    voxels = _count_voxels(target_Czyx, classes)
    if not voxels.any() or rng.random() < ABSENT_CLASS:
        return int(rng.choice(classes.indices))
    weights = np.where(voxels > 0, voxels.clip(min=1) ** -0.5, 0)
    return int(rng.choice(classes.indices, p=weights / weights.sum()))


def _count_voxels(target_Czyx: npt.NDArray, classes: Classes) -> npt.NDArray[np.float64]:
    if classes.regions:
        return np.array([np.count_nonzero(classes.truth(target_Czyx, index)) for index in classes.indices], float)
    counts = np.bincount(target_Czyx[0].ravel().astype(np.intp), minlength=max(classes.indices) + 1)
    return counts[list(classes.indices)].astype(float)
