"""From four levels of tokens and the detail stem to logits at every voxel.

Axes in names: B batch, C channels, D H W tokens, z y x voxels of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.network.layers import ConvUnit, PointwiseConv, UpConv3d, cropped, triple


class UpStage(nn.Module):
    """Upsample by a transposed convolution, add the stem's features of that resolution, convolve.

    Adding instead of concatenating halves the cost of the full-resolution convolution, the dearest of the network.

    Args:
        channels_in: Channels of the coarser features.
        channels_out: Channels of the stem at this resolution and of the output.
        stride: Factor between the resolutions along (z, y, x).
        units: Convolution units after adding.
        kernel: Of them.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Sequence[int], units: int, kernel: Sequence[int]):
        super().__init__()
        self.up = UpConv3d(channels_in, channels_out, triple(stride))
        self.convs = nn.Sequential(*(ConvUnit(channels_out, channels_out, kernel=kernel) for _ in range(units)))

    def forward(self, coarse_BCzyx: Tensor, fine_BCzyx: Tensor) -> Tensor:
        """Return features of the fine input's shape."""
        return self.convs(cropped(self.up(coarse_BCzyx), fine_BCzyx.shape[2:]) + fine_BCzyx)


class MaskDecoder3D(nn.Module):
    """Aggregate the levels on the token grid, then climb to full resolution along the detail stem.

    Source: multi-layer aggregation after 3DSAM-adapter (Gong et al. 2024), which predicts on a coarse grid and
    interpolates; here every resolution has features of its own and, in training, logits of its own.

    Args:
        level_channels: Channels of each of the four levels.
        width: Channels on the token grid.
        features: Channels of the stem's levels, finest first.
        strides: Factor of each level relative to the level before, (1, 1, 1) first, the tokens last.
        units: Convolution units of each level of the stem and decoder.
        kernels: Of each level, the tokens last.
        num_classes: Channels of the logits.
        deep_supervision: Whether forward returns logits of every resolution above the tokens, finest first.
    """

    def __init__(
        self,
        level_channels: int,
        width: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        units: Sequence[int],
        kernels: Sequence[Sequence[int]],
        num_classes: int,
        deep_supervision: bool,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.merge = PointwiseConv(4 * level_channels, width, bias=False)
        self.token_convs = nn.Sequential(*(ConvUnit(width, width, kernel=kernels[-1]) for _ in range(2)))
        widths = (*features, width)
        self.stages = nn.ModuleList(
            UpStage(widths[index + 1], widths[index], strides[index + 1], units[index], kernels[index])
            for index in reversed(range(len(features)))
        )
        self.seg_layers = nn.ModuleList(PointwiseConv(channels, num_classes) for channels in reversed(features))

    def pyramid(self, levels: Sequence[Tensor], stem: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode up to the features from which the logits are read.

        Args:
            levels: Four levels (B, level_channels, D, H, W).
            stem: Features of the detail stem, finest first.

        Returns:
            Features on the token grid (B, width, D, H, W), and of every resolution above it, finest first.
        """
        tokens = self.token_convs(self.merge(torch.cat(tuple(levels), 1)))
        features = [tokens]
        for stage, fine in zip(self.stages, reversed(stem), strict=True):
            features.append(stage(features[-1], fine))
        return tokens, features[:0:-1]

    def logits(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, num_classes, z, y, x), finest first; only the finest without deep supervision."""
        wanted = slice(None) if self.deep_supervision else slice(1)
        heads = list(self.seg_layers)[::-1]
        return [head(features) for head, features in zip(heads[wanted], pyramid[wanted], strict=True)]
