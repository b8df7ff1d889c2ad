"""How far an answer to clicks reaches: as far as the network has proved in training that it knows what it does.

After few steps of training a network that was clicked where a good mask lacks a part changes it far and wide. So the
trainer compares on validation patches what becomes of its own masks under answers that reach less or more far, for
each class, and keeps the best with the weights. Source: measured, benchmarks/RESULTS.md.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.prompts.types import Point

UNLIMITED = math.inf
REACHES = (UNLIMITED, 1.2, 0.6, 0.25)  # that are compared: standard deviations in tokens


class Reaching(nn.Module):
    """How far answers about each class reach, in tokens.

    Args:
        num_classes: Channels of the logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.seg_layers = nn.Module()
        self.seg_layers.register_buffer("reach_K", torch.full((num_classes,), UNLIMITED))

    @property
    def reach_K(self) -> Tensor:
        """Standard deviations, one for each channel of the logits."""
        return self.seg_layers.get_buffer("reach_K")


def restrained(correction_zyx: Tensor, disputed: Sequence[Point], reach: Sequence[float]) -> Tensor:
    """Take of an answer to clicks what was asked for, and that no farther than it reaches.

    A user who says that something is missing did not say that anything is too much: after positive clicks alone nothing
    is taken away, after negative ones alone nothing is added.

    Args:
        correction_zyx: What a network says is to be added to logits.
        disputed: The clicks that say something else than the mask, at least one, in voxels (z, y, x) of the window;
            they may lie outside of it.
        reach: Along (z, y, x) in voxels, see `nearness`.
    """
    said = {point.positive for point in disputed}
    allowed = correction_zyx.clamp(-math.inf if False in said else 0, math.inf if True in said else 0)
    if all(map(math.isinf, reach)):
        return allowed
    return allowed * nearness(disputed, allowed.shape, reach, allowed.device)


def nearness(
    disputed: Sequence[Point], shape: Sequence[int], reach: Sequence[float], device: torch.device | str = "cpu"
) -> Tensor:
    """Say how near the voxels of a window are to its nearest disputed click, wherever that is.

    Args:
        disputed: In voxels (z, y, x) of the window, at least one; they may lie outside of it.
        shape: Of the window.
        reach: Standard deviations along (z, y, x) in voxels.
        device: Of the result.

    Returns:
        (z, y, x), from 1 at a click to 0 far away.
    """
    squared_zyx = torch.full(tuple(shape), math.inf, device=device)
    for point in disputed:
        along = [
            ((torch.arange(size, device=device) - at) / deviation) ** 2
            for size, at, deviation in zip(shape, point.at, reach, strict=True)
        ]
        squared_zyx = torch.minimum(squared_zyx, along[0][:, None, None] + along[1][:, None] + along[2])
    return torch.exp(-0.5 * squared_zyx)
