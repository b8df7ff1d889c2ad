"""Prompts in training: made up from the target, answered by the network, corrected where the answer is wrong.

Axes in names: B batch, K logits, Q queries (one class of one image each), z y x voxels of the patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from sam3dnet.network.prompt_decoder import ImageFeatures, class_margin
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.prompts.sampling import corrective_click, draw_prompts, innermost_voxel, random_voxel
from sam3dnet.prompts.types import ClassPrompts, Point

SHARE_OF_CORRECTIONS = (0.4, 0.3, 0.2, 0.1)  # how often none, one, two, three
ABSENT_CLASS = 0.1  # how often a class is asked for that the patch need not hold
SPOILED_MARGIN = 0.5  # how often an error is put into the automatic logits; on training cases true ones become rare
SPOILED_SIZE = (0.3, 1.2)  # radius of such an error in token strides
SPOILED_LOGIT = (1.0, 6.0)
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


@dataclass(frozen=True)
class Classes:
    """How a target says which voxels are of which class.

    Attributes:
        indices: Channels of the logits that can be asked for.
        regions: Whether the target has a channel a region; else one channel with labels.
        ignore_label: Label of voxels that say nothing; with regions they are the target's last channel. None: none.
        spacing_mm: (z, y, x).
        token_stride: Voxels a token covers along (z, y, x).
    """

    indices: tuple[int, ...]
    regions: bool
    ignore_label: int | None
    spacing_mm: tuple[float, ...]
    token_stride: tuple[int, ...]

    def truth(self, target_CZYX: npt.NDArray, class_index: int) -> npt.NDArray[np.bool_]:
        """Return where the class is in one image's target."""
        return target_CZYX[class_index] > 0 if self.regions else target_CZYX[0] == class_index

    def valid(self, target_CZYX: npt.NDArray) -> npt.NDArray[np.bool_]:
        """Return where one image's target is not to be ignored."""
        if self.ignore_label is None:
            return np.ones(target_CZYX.shape[1:], bool)
        return target_CZYX[-1] == 0 if self.regions else target_CZYX[0] != self.ignore_label


class TrainingPrompter:
    """Ask for a class in a share of the images, with prompts drawn from the target, then click where it is wrong.

    Args:
        target_BCzyx: nnU-Net's target at full resolution.
        classes: How to read it.
        rng: Source of all randomness.
        share: Of the images, at least one.
    """

    def __init__(self, target_BCzyx: Tensor, classes: Classes, rng: Generator, share: float = 1.0):
        self._classes = classes
        self._rng = rng
        batch_size = len(target_BCzyx)
        samples = sorted(rng.permutation(batch_size)[: max(1, round(share * batch_size))])
        targets = [target_BCzyx[int(sample)].cpu().numpy() for sample in samples]
        self._valid = [classes.valid(target) for target in targets]
        self._queries: list[Query] = []
        self._truths: list[npt.NDArray[np.bool_]] = []
        for sample, target, valid in zip(samples, targets, self._valid, strict=True):
            class_index = self._choose_class(target)
            truth = classes.truth(target, class_index) & valid
            self._truths.append(truth)
            self._queries.append(Query(int(sample), class_index, draw_prompts(truth, classes.spacing_mm, rng)))

    def _choose_class(self, target_CZYX: npt.NDArray) -> int:
        """Choose a class that is there, a smaller one more often: it needs prompts more; now and then any class."""
        voxels = np.array([self._classes.truth(target_CZYX, index).sum() for index in self._classes.indices], float)
        if not voxels.any() or self._rng.random() < ABSENT_CLASS:
            return int(self._rng.choice(self._classes.indices))
        weights = np.where(voxels > 0, voxels.clip(min=1) ** -0.5, 0)
        return int(self._rng.choice(self._classes.indices, p=weights / weights.sum()))

    @torch.compiler.disable
    def __call__(self, network: Promptable, features: ImageFeatures) -> PromptAnswer:
        """Ask, correct up to three times without gradient, and return the last answer, which has one."""
        logits_BKzyx = features.logits[0].detach()
        class_Q = torch.tensor([query.class_index for query in self._queries], device=logits_BKzyx.device)
        logits_QKzyx = logits_BKzyx[[query.sample for query in self._queries]].float()
        margin = class_margin(logits_QKzyx, class_Q, self._classes.regions)
        if self._rng.random() < SPOILED_MARGIN:
            margin = torch.stack([self._spoil(row, margin_zyx) for row, margin_zyx in enumerate(margin)])
        for _ in range(self._rng.choice(len(SHARE_OF_CORRECTIONS), p=SHARE_OF_CORRECTIONS)):
            with torch.no_grad():
                answer = self._ask(network, features, margin)
            for row, predicted in enumerate((answer > 0).cpu().numpy()):
                self._correct(row, predicted)
        return PromptAnswer(
            self._ask(network, features, margin),
            torch.from_numpy(np.stack(self._truths)).to(margin.device),
            torch.from_numpy(np.stack(self._valid)).to(margin.device),
            class_Q,
        )

    def _ask(self, network: Promptable, features: ImageFeatures, margin_Qzyx: Tensor) -> Tensor:
        batch = PromptBatch.of(self._queries, margin_Qzyx.shape[1:]).to(margin_Qzyx.device)
        return margin_Qzyx + network.prompted(features, batch, margin_Qzyx)

    def _correct(self, row: int, predicted_zyx: npt.NDArray[np.bool_]) -> None:
        truth = self._truths[row]
        click = corrective_click(predicted_zyx & self._valid[row], truth, self._classes.spacing_mm)
        if click is not None:
            self._add_click(row, click)

    def _add_click(self, row: int, click: Point) -> None:
        query = self._queries[row]
        prompts: ClassPrompts = replace(query.prompts, points=(*query.prompts.points, click))
        self._queries[row] = replace(query, prompts=prompts)

    def _spoil(self, row: int, margin_zyx: Tensor) -> Tensor:
        """Put a false or a missed part into the automatic margin, and the click that names it into the query."""
        truth, valid = self._truths[row], self._valid[row]
        missed = bool(truth.any() and self._rng.random() < 0.5)
        where = truth if missed else ~truth & valid
        if not where.any():
            return margin_zyx
        dome = self._dome(random_voxel(where, self._rng), truth.shape)
        inside = where & (dome > 0)
        if not missed and (truth & (dome > 0)).any():
            return margin_zyx  # what is left of the true part would show its outline
        self._add_click(row, Point(innermost_voxel(inside, self._classes.spacing_mm), positive=missed))
        height = torch.from_numpy(dome).to(margin_zyx)
        logit = self._rng.uniform(*SPOILED_LOGIT)
        if not missed:
            return torch.where(height > 0, torch.maximum(margin_zyx, logit * height), margin_zyx)
        if self._rng.random() < 0.5:
            return torch.where(height > 0, torch.full_like(margin_zyx, -logit), margin_zyx)
        return margin_zyx - 2 * logit * height

    def _dome(self, centre: Sequence[int], shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return 1 at the centre of a random ellipsoid, falling to 0 at its surface and outside."""
        distance = np.zeros((1, 1, 1))
        size = self._rng.uniform(*SPOILED_SIZE)
        for axis, stride in enumerate(self._classes.token_stride):
            radius = max(1.0, size * stride * self._rng.uniform(0.7, 1.4))
            along = ((np.arange(shape[axis]) - centre[axis]) / radius) ** 2
            distance = distance + along.reshape([-1 if other == axis else 1 for other in range(3)])
        return np.clip(1 - distance, 0, 1).astype(np.float32)


def prompted_counts(answers: Sequence[PromptAnswer], class_indices: Sequence[int]) -> npt.NDArray[np.int64]:
    """Give twice the overlap, and the sum of the sizes, of each class over all answers about it: (classes, 2)."""
    counts = {index: [0, 0] for index in class_indices}
    for answer in answers:
        for index, overlap, size in zip(answer.class_Q.tolist(), *answer.hard_dice_counts(), strict=True):
            counts[index][0] += int(overlap)
            counts[index][1] += int(size)
    return np.array(list(counts.values()), np.int64)


def dice_of_counts(counts: npt.NDArray[np.int64]) -> list[float]:
    """Give the Dice of each class from what `prompted_counts` counted, 0 where no answer was about it."""
    return [float(overlap) / max(int(size), 1) for overlap, size in counts]


def make_classes(label_manager: Any, spacing_mm: Sequence[float], token_stride: Sequence[int]) -> Classes:
    """Read from nnU-Net's label manager which channels of the logits can be asked for."""
    regions = bool(label_manager.has_regions)
    heads = int(label_manager.num_segmentation_heads)
    return Classes(
        indices=tuple(range(heads) if regions else range(1, heads)),
        regions=regions,
        ignore_label=label_manager.ignore_label,
        spacing_mm=tuple(float(value) for value in spacing_mm),
        token_stride=tuple(int(value) for value in token_stride),
    )
