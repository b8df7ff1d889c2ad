"""Errors that are put into the automatic logits in training, since on training cases true ones become rare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Generator
from torch import Tensor

from sam3dnet.prompts.depth import Mask
from sam3dnet.prompts.sampling import innermost_voxel, random_voxel
from sam3dnet.prompts.types import Point

SIZE = (0.3, 1.2)  # radius in token strides
LOGIT = (1.0, 6.0)


@dataclass(frozen=True, eq=False)
class Spoiling:
    """An error, and the click that names it.

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
        sides = zip(self.low, self.height_zyx.shape, strict=True)
        part = margin_zyx[tuple(slice(first, first + size) for first, size in sides)]
        height = torch.from_numpy(self.height_zyx).to(part)
        if self.kind == "lowered":
            part -= 2 * self.logit * height
        elif self.kind == "missed":
            part[height > 0] = -self.logit
        else:
            part.copy_(torch.where(height > 0, torch.maximum(part, self.logit * height), part))


def draw_spoiling(
    truth_zyx: Mask, valid_zyx: Mask, spacing_mm: Sequence[float], token_stride: Sequence[int], rng: Generator
) -> Spoiling | None:
    """Draw a false or a missed part of a class.

    Args:
        truth_zyx: Where the class is.
        valid_zyx: Where the target says what is there.
        spacing_mm: (z, y, x).
        token_stride: Voxels a token covers along (z, y, x).
        rng: Source of randomness.

    Returns:
        None where there is no place for it.
    """
    missed = bool(truth_zyx.any() and rng.random() < 0.5)
    where = truth_zyx if missed else ~truth_zyx & valid_zyx
    if not where.any():
        return None
    low, height = _dome(random_voxel(where, rng), truth_zyx.shape, token_stride, rng)
    box = tuple(slice(first, first + size) for first, size in zip(low, height.shape, strict=True))
    if not missed and (truth_zyx[box] & (height > 0)).any():
        return None  # what is left of the true part would show its outline
    z, y, x = (n + first for n, first in zip(innermost_voxel(where[box] & (height > 0), spacing_mm), low, strict=True))
    click = Point((z, y, x), positive=missed)
    logit = rng.uniform(*LOGIT)
    if not missed:
        return Spoiling(low, height, logit, "false", click)
    return Spoiling(low, height, logit, "missed" if rng.random() < 0.5 else "lowered", click)


def _dome(
    centre: Sequence[int], shape: Sequence[int], token_stride: Sequence[int], rng: Generator
) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Return a box's first voxel, and in the box 1 at the centre of a random ellipsoid, falling to 0 at its surface."""
    distance = np.zeros((1, 1, 1))
    low = []
    size = rng.uniform(*SIZE)
    for axis, (middle, length, stride) in enumerate(zip(centre, shape, token_stride, strict=True)):
        radius = max(1.0, size * stride * rng.uniform(0.7, 1.4))
        places = np.arange(max(0, middle - int(radius)), min(length, middle + int(radius) + 1))
        along = ((places - middle) / radius) ** 2
        distance = distance + along.reshape([-1 if other == axis else 1 for other in range(3)])
        low.append(int(places[0]))
    return tuple(low), np.clip(1 - distance, 0, 1).astype(np.float32)
