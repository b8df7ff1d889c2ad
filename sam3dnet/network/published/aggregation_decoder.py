"""3DSAM-adapter's mask decoder, multi-layer aggregation, as published and up to full resolution.

Axes in names: B batch, C channels, K logits, D H W tokens, z y x voxels of a level.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.layers import ConvUnit, beside, cropped, interpolate, normalise_instances, triple
from sam3dnet.network.published.resolutions import (
    enlarged,
    pad_to_multiple,
    pool_image,
    resolution_shapes,
)

COARSEST_FACTOR = 2
MOST_CHANNELS_OF_VOXELS = 32  # at full resolution, as in nnU-Net; 64 cost as much as one of ViT-B's blocks


class PlainUnit(nn.Module):
    """3x3x3 convolution without bias, instance norm without parameters, ReLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return (B, channels_out, z, y, x)."""
        hidden = self.conv(x_BCzyx)
        return F.relu(normalise_instances(hidden))


class AggregationDecoder(nn.Module):
    """Two convolutions a level, then all four levels together with the image.

    Args:
        branches: One module a level.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.
        deep_supervision: Whether logits of every resolution above the tokens are returned.
    """

    def __init__(self, branches: Sequence[nn.Module], strides: Sequence[Sequence[int]], deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.branches = nn.ModuleList(branches)
        self.strides = [triple(stride) for stride in strides]

    def branch(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Apply to the first levels (B, C, D, H, W), shallow first, the convolutions that each has of its own."""
        return [branch(level) for branch, level in zip(self.branches[: len(levels)], levels, strict=True)]

    @abstractmethod
    def logits(self, branched: Sequence[Tensor], image_BCzyx: Tensor) -> list[Tensor]:
        """Return logits (B, K, z, y, x), finest first; only the finest without deep supervision.

        Args:
            branched: All four levels, as `branch` returns them.
            image_BCzyx: The image.
        """


class CoarseAggregationDecoder(AggregationDecoder):
    """The published decoder: logits at twice the resolution of the tokens, then interpolated to the voxels.

    With deep supervision the coarser logits are the same ones, interpolated.

    Args:
        level_channels: Channels of a level.
        image_channels: Channels of the image.
        num_classes: Channels of the logits.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.
        deep_supervision: Whether logits of every resolution above the tokens are returned.
    """

    def __init__(
        self,
        level_channels: int,
        image_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool,
    ):
        width = level_channels // 2
        branches = [nn.Sequential(PlainUnit(level_channels, width), PlainUnit(width, width)) for _ in range(4)]
        super().__init__(branches, strides, deep_supervision)
        self.merge = PlainUnit(4 * width + image_channels, width)
        self.seg_layers = nn.ModuleList([nn.Conv3d(width, num_classes, 3, padding=1, bias=False)])
        steps = [prod(stride[axis] for stride in self.strides) for axis in range(3)]
        self.token_stride = triple(steps)
        self.factor = triple([min(COARSEST_FACTOR, step) for step in steps])

    def logits(self, branched: Sequence[Tensor], image_BCzyx: Tensor) -> list[Tensor]:
        """Return logits (B, K, z, y, x), finest first; only the finest without deep supervision."""
        padded = pad_to_multiple(image_BCzyx, self.token_stride)
        grid = [size * factor for size, factor in zip(branched[0].shape[2:], self.factor, strict=True)]
        raised = [interpolate(level, grid) for level in branched]
        coarse = self.seg_layers[0](self.merge(beside(raised, interpolate(padded, grid))))
        finest = cropped(interpolate(coarse, padded.shape[2:]), image_BCzyx.shape[2:])
        shapes = resolution_shapes(image_BCzyx.shape[2:], self.strides)[1:] if self.deep_supervision else []
        return [finest, *(interpolate(finest, shape) for shape in shapes)]


class FullResolutionDecoder(AggregationDecoder):
    """The corrected decoder: from the aggregated levels on to the voxels step by step, the image beside every step.

    Args:
        level_channels: Channels of a level.
        image_channels: Channels of the image.
        num_classes: Channels of the logits.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.
        deep_supervision: Whether logits of every resolution above the tokens are returned.
    """

    def __init__(
        self,
        level_channels: int,
        image_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool,
    ):
        width = level_channels // 2
        branches = [nn.Sequential(ConvUnit(level_channels, width), ConvUnit(width, width)) for _ in range(4)]
        super().__init__(branches, strides, deep_supervision)
        widths = [max(width >> step, 8) for step in range(len(strides) - 1)]
        widths[-1] = min(widths[-1], MOST_CHANNELS_OF_VOXELS)
        self.merge = ConvUnit(4 * width + image_channels, widths[0])
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(wide, narrow, stride, stride=stride, bias=False)
            for wide, narrow, stride in zip(widths, widths[1:], self.strides[-2:0:-1], strict=False)
        )
        self.units = nn.ModuleList(ConvUnit(narrow + image_channels, narrow) for narrow in widths[1:])
        self.seg_layers = nn.ModuleList(nn.Conv3d(channels, num_classes, 1) for channels in widths)

    def logits(self, branched: Sequence[Tensor], image_BCzyx: Tensor) -> list[Tensor]:
        """Return logits (B, K, z, y, x), finest first; only the finest without deep supervision."""
        images = pool_image(image_BCzyx, self.strides)[::-1]
        raised = [enlarged(level, self.strides[-1], images[0].shape[2:]) for level in branched]
        features = [self.merge(beside(raised, images[0]))]
        for up, unit, image in zip(self.ups, self.units, images[1:], strict=True):
            features.append(unit(beside([cropped(up(features[-1]), image.shape[2:])], image)))
        wanted = slice(None) if self.deep_supervision else slice(-1, None)
        return [head(level) for head, level in zip(list(self.seg_layers)[wanted], features[wanted], strict=True)][::-1]
