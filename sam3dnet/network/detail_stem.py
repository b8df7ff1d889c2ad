"""Narrow convolutions at the resolutions that the tokens are too coarse for.

Axes in names: B batch, C channels, z y x voxels of the level.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from sam3dnet.network.layers import ConvUnit


class DetailStem(nn.Module):
    """A pyramid of narrow features, from full resolution to one level above the tokens.

    Args:
        input_channels: Channels of the image.
        features: Channels of each level, finest first.
        strides: Factor of each level relative to the level before, (1, 1, 1) first.
        units: Convolution units of each level.
        kernels: Of each level.
    """

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        units: Sequence[int],
        kernels: Sequence[Sequence[int]],
    ):
        super().__init__()
        widths = (input_channels, *features)
        self.levels = nn.ModuleList(
            nn.Sequential(
                ConvUnit(widths[index], widths[index + 1], strides[index], kernels[index]),
                *(
                    ConvUnit(widths[index + 1], widths[index + 1], kernel=kernels[index])
                    for _ in range(units[index] - 1)
                ),
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
