"""Narrow convolutions at the resolutions that the tokens are too coarse for.

Axes in names: B batch, C channels, z y x voxels of the level.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.convolution import Conv3d, InstanceNorm

NEGATIVE_SLOPE = 0.01


def triple(values: Sequence[int]) -> tuple[int, int, int]:
    """Return three numbers (z, y, x), which a plan gives as a list, as the tuple that torch wants."""
    z, y, x = (int(value) for value in values)
    return z, y, x


class ConvUnit(nn.Module):
    """3x3x3 convolution, instance norm, leaky ReLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: Voxels a step along (z, y, x).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Sequence[int] = (1, 1, 1)):
        super().__init__()
        self.conv = Conv3d(channels_in, channels_out, 3, stride=triple(stride), padding=1, bias=False)
        self.norm = InstanceNorm(channels_out)
        nn.init.kaiming_normal_(self.conv.weight, a=NEGATIVE_SLOPE)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return (B, channels_out, z / stride, y / stride, x / stride), rounded up."""
        return F.leaky_relu(self.norm(self.conv(x_BCzyx)), NEGATIVE_SLOPE, inplace=True)


class DetailStem(nn.Module):
    """A pyramid of narrow features, from full resolution to one level above the tokens.

    Args:
        input_channels: Channels of the image.
        features: Channels of each level, finest first.
        strides: Factor of each level relative to the level before, (1, 1, 1) first.
        units: Convolution units of each level.
    """

    def __init__(
        self, input_channels: int, features: Sequence[int], strides: Sequence[Sequence[int]], units: Sequence[int]
    ):
        super().__init__()
        widths = (input_channels, *features)
        self.levels = nn.ModuleList(
            nn.Sequential(
                ConvUnit(widths[index], widths[index + 1], strides[index]),
                *(ConvUnit(widths[index + 1], widths[index + 1]) for _ in range(units[index] - 1)),
            )
            for index in range(len(features))
        )

    def forward(self, x_BCzyx: Tensor) -> list[Tensor]:
        """Return the features of every level, finest first."""
        levels = []
        for level in self.levels:
            x_BCzyx = level(x_BCzyx)
            levels.append(x_BCzyx)
        return levels
