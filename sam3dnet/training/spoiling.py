"""Errors that are put into the automatic logits in training, since on training cases true ones become rare.

Axes in names: z y x voxels of the patch, or of a box in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from sam3dnet.prompts.depth import Mask, cut_out
from sam3dnet.prompts.sampling import innermost_voxel, random_component, random_voxel
from sam3dnet.prompts.types import Point

SIZE = (0.3, 1.2)  # radius in token strides
COVER = (1.0, 1.6)  # radius of what covers a missed object, in half of its extent times the root of three
LOGIT = (1.0, 6.0)
WAVE = (1.0, 5.0)  # standard deviation in logits
WAVELENGTH = (0.5, 2.0)  # from one drawn value to the next, in token strides
SHARE_OF_KINDS = {"part": 0.6, "object": 0.25, "waves": 0.15}
POOR = 0.5  # Dice below which an automatic mask is mended before it is spoiled
GOOD_SHARE = 0.5  # of the masks that are clicked, that are to be good
SPOILED_MARGIN = 0.5  # how often errors are put into the automatic logits of a batch
SEEN_RATE = 0.02  # by which a mask moves the share of good ones
OUTLINE = 3  # voxels over which mended logits rise
LEAST = 0.1  # of a mended logit, so that it says what is there


class Spoiling(Protocol):
    """An error that is put into a margin.

    Attributes:
        click: That names it; None where it is left to others to find it.
    """

    @property
    def click(self) -> Point | None: ...

    def apply(self, margin_zyx: Tensor) -> None:
        """Put the error into the margin of its class, in place."""


@dataclass(frozen=True, eq=False)
class SpoiltPart:
    """A part of the patch is wrong, and a click names it.

    Attributes:
        low: First voxel (z, y, x) of the box around it.
        height_zyx: 1 at its centre, falling to 0 at its surface and outside.
        logit: How sure of it the spoiled logits are.
        kind: A false part, a part that is missed altogether, or one that is lowered towards its centre.
        click: At its innermost voxel.
    """

    low: tuple[int, ...]
    height_zyx: npt.NDArray[np.float32]
    logit: float
    kind: Literal["false", "missed", "lowered"]
    click: Point

    def apply(self, margin_zyx: Tensor) -> None:
        """Put the error into the margin of its class, in place."""
        part = margin_zyx[_box(self.low, self.height_zyx.shape)]
        height = torch.from_numpy(self.height_zyx).to(part)
        if self.kind == "lowered":
            part -= 2 * self.logit * height
        elif self.kind == "missed":
            part[height > 0] = -self.logit
        else:
            part.copy_(torch.where(height > 0, torch.maximum(part, self.logit * height), part))


@dataclass(frozen=True, eq=False)
class MissedObject:
    """A whole object is missed. What covers it is an ellipsoid, so that its outline cannot be read from the margin.

    Attributes:
        low: First voxel (z, y, x) of the box around the ellipsoid.
        cover_zyx: The ellipsoid, in the box.
        logit: How sure the spoiled logits are that nothing is there.
    """

    low: tuple[int, ...]
    cover_zyx: Mask
    logit: float
    click: None = None

    def apply(self, margin_zyx: Tensor) -> None:
        """Make the margin in the ellipsoid the same everywhere, in place."""
        part = margin_zyx[_box(self.low, self.cover_zyx.shape)]
        part[torch.from_numpy(self.cover_zyx).to(part.device)] = -self.logit


@dataclass(frozen=True, eq=False)
class Waves:
    """Everything is higher here and lower there, so that surfaces lie where they should not.

    Attributes:
        coarse_zyx: In logits, on a grid over the patch; linear between its points.
    """

    coarse_zyx: npt.NDArray[np.float32]
    click: None = None

    def apply(self, margin_zyx: Tensor) -> None:
        """Add the waves to the margin, in place."""
        coarse = torch.from_numpy(self.coarse_zyx).to(margin_zyx)[None, None]
        margin_zyx += F.interpolate(coarse, tuple(margin_zyx.shape), mode="trilinear", align_corners=True)[0, 0]


@dataclass(frozen=True)
class Mending:
    """Logits that are right, where the automatic ones miss most of a class, as they do after few steps.

    Without it the first thing that a network learned of clicks would be that the mask is worth nothing; later a click
    would take away all of a mask but for what is around it.

    Attributes:
        inside: Logit of the class where it is, away from its surface.
        outside: Below 0, where it is not.
        chance: From 0 to 1; it is put in where this is below the share of poor masks that are mended.
    """

    inside: float
    outside: float
    chance: float = 0.0

    def apply(self, margin_zyx: Tensor, truth_zyx: Mask) -> None:
        """Make the margin right, in place."""
        truth = torch.from_numpy(truth_zyx).to(margin_zyx.device)
        padded = F.pad(truth.to(margin_zyx.dtype), (OUTLINE // 2,) * 6)  # pooling's own padding wants three slices
        share = F.avg_pool3d(padded[None, None], OUTLINE, 1)[0, 0]
        mended = self.outside + (self.inside - self.outside) * share
        margin_zyx.copy_(torch.where(truth, mended.clamp(min=LEAST), mended.clamp(max=-LEAST)))


def draw_mending(rng: Generator) -> Mending:
    """Draw how sure mended logits are."""
    return Mending(rng.uniform(*LOGIT), -rng.uniform(*LOGIT), rng.random())


def is_poor(margin_zyx: Tensor, truth_zyx: Mask) -> bool:
    """Tell whether a mask misses most of a class, or is mostly false."""
    truth, found = torch.from_numpy(truth_zyx).to(margin_zyx.device), margin_zyx > 0
    return bool(2 * (found & truth).sum() < POOR * (found.sum() + truth.sum()))


class SeenMasks:
    """How many of the automatic masks that are clicked in training are good, by class.

    Once half of them are, nothing needs to be mended any more, and clicks on what was missed are learned from masks
    that miss it as they do for a user.

    Args:
        good_shares: Of each class, from an earlier part of the training.
    """

    def __init__(self, good_shares: Mapping[int, float] | None = None) -> None:
        self.good_shares = dict(good_shares or {})

    def note(self, class_index: int, is_good: bool) -> None:
        """Count a mask."""
        share = self.good_shares.get(class_index, 0.0)
        self.good_shares[class_index] = share + SEEN_RATE * (is_good - share)

    def share_to_mend(self, class_index: int) -> float:
        """Give how many of the poor masks that are spoiled are to be mended, so that enough of all are good."""
        good = self.good_shares.get(class_index, 0.0)
        return min(1.0, max(0.0, (GOOD_SHARE - good) / ((1 - good) * SPOILED_MARGIN)))


def draw_spoiling(
    truth_zyx: Mask, valid_zyx: Mask, spacing_mm: Sequence[float], token_stride: Sequence[int], rng: Generator
) -> Spoiling | None:
    """Draw an error: a false or a missed part of a class, a missed object, or waves.

    Args:
        truth_zyx: Where the class is.
        valid_zyx: Where the target says what is there.
        spacing_mm: (z, y, x).
        token_stride: Voxels a token covers along (z, y, x).
        rng: Source of randomness.

    Returns:
        None where there is no place for it.
    """
    kind = rng.choice(list(SHARE_OF_KINDS), p=list(SHARE_OF_KINDS.values()))
    if kind == "waves":
        return draw_waves(truth_zyx.shape, token_stride, rng)
    if kind == "object" and truth_zyx.any():
        return draw_missed_object(random_component(truth_zyx, rng), rng)
    return draw_part(truth_zyx, valid_zyx, spacing_mm, token_stride, rng)


def draw_missed_object(object_zyx: Mask, rng: Generator) -> MissedObject:
    """Cover an object of the patch."""
    low, cut = cut_out(object_zyx)
    half = np.array(cut.shape) / 2
    radius = half * 3**0.5 * rng.uniform(*COVER, 3) + 1
    first, height = _ellipsoid(np.array(low) + half - 0.5, radius, object_zyx.shape)
    return MissedObject(first, height > 0, rng.uniform(*LOGIT))


def draw_waves(shape: Sequence[int], token_stride: Sequence[int], rng: Generator) -> Waves:
    """Draw waves over a patch of this shape (z, y, x)."""
    length = rng.uniform(*WAVELENGTH)
    grid = [2 + int(size / (length * stride)) for size, stride in zip(shape, token_stride, strict=True)]
    return Waves((rng.uniform(*WAVE) * rng.standard_normal(grid)).astype(np.float32))


def draw_part(
    truth_zyx: Mask, valid_zyx: Mask, spacing_mm: Sequence[float], token_stride: Sequence[int], rng: Generator
) -> SpoiltPart | None:
    """Draw a false or a missed part of a class; arguments and result otherwise as of `draw_spoiling`."""
    missed = bool(truth_zyx.any() and rng.random() < 0.5)
    where = truth_zyx if missed else ~truth_zyx & valid_zyx
    if not where.any():
        return None
    low, height = _dome(random_voxel(where, rng), truth_zyx.shape, token_stride, rng)
    box = _box(low, height.shape)
    if not missed and (truth_zyx[box] & (height > 0)).any():
        return None  # what is left of the true part would show its outline
    z, y, x = (n + first for n, first in zip(innermost_voxel(where[box] & (height > 0), spacing_mm), low, strict=True))
    click = Point((z, y, x), positive=missed)
    logit = rng.uniform(*LOGIT)
    if not missed:
        return SpoiltPart(low, height, logit, "false", click)
    return SpoiltPart(low, height, logit, "missed" if rng.random() < 0.5 else "lowered", click)


def _box(low: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + size) for first, size in zip(low, shape, strict=True))


def _dome(
    centre: Sequence[int], shape: Sequence[int], token_stride: Sequence[int], rng: Generator
) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Draw an ellipsoid, see `_ellipsoid`."""
    size = rng.uniform(*SIZE)
    radius = [max(1.0, size * stride * rng.uniform(0.7, 1.4)) for stride in token_stride]
    return _ellipsoid(centre, radius, shape)


def _ellipsoid(
    centre: Sequence[float] | npt.NDArray, radius: Sequence[float] | npt.NDArray, shape: Sequence[int]
) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Return a box's first voxel, and in the box 1 at the centre of an ellipsoid, falling to 0 at its surface."""
    distance = np.zeros((1, 1, 1))
    low = []
    for axis, (middle, reach, length) in enumerate(zip(centre, radius, shape, strict=True)):
        places = np.arange(max(0, int(np.ceil(middle - reach))), min(length, int(np.floor(middle + reach)) + 1))
        along = ((places - middle) / reach) ** 2
        distance = distance + along.reshape([-1 if other == axis else 1 for other in range(3)])
        low.append(int(places[0]))
    return tuple(low), np.clip(1 - distance, 0, 1).astype(np.float32)
