"""From four levels of tokens up to the voxels, one level joining at every step; shared by RefSAM3D and 3DMedSAM.

Axes in names: B batch, C channels, D H W tokens, z y x voxels of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.network.layers import ConvUnit, cropped, triple
from sam3dnet.network.published.resolutions import enlarged, resolution_shapes

NARROWEST = 8


class UShapedDecoder(nn.Module):
    """Climb from the deepest level to full resolution; at each step the next shallower level joins.

    Levels for which there are too few steps join on the token grid.

    Args:
        level_channels: Channels of each of the four levels.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.

    Attributes:
        widths: Channels of each resolution, finest first.
    """

    def __init__(self, level_channels: int, strides: Sequence[Sequence[int]]):
        super().__init__()
        self.strides = [triple(stride) for stride in strides]
        steps = len(strides) - 1
        self.joining = min(steps, 3)
        widths = [max(level_channels >> step, NARROWEST) for step in range(steps + 1)]
        self.widths = widths[:0:-1]
        self.start = ConvUnit((4 - self.joining) * level_channels, widths[0])
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(wide, narrow, stride, stride=stride, bias=False)
            for wide, narrow, stride in zip(widths, widths[1:], self.strides[:0:-1], strict=False)
        )
        self.laterals = nn.ModuleList(
            nn.Conv3d(level_channels, width, 1, bias=False) for width in widths[1 : self.joining + 1]
        )
        self.units = nn.ModuleList(ConvUnit(width, width) for width in widths[1:])

    def forward(self, levels: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
        """Decode.

        Args:
            levels: Four levels (B, level_channels, D, H, W), shallow first.
            shape: Of the image (z, y, x).

        Returns:
            Features (B, C, z, y, x) of every resolution above the tokens, finest first.
        """
        shapes = resolution_shapes(shape, self.strides)[::-1]
        joining = list(levels[:-1])[::-1][: self.joining]
        features = self.start(torch.cat((*levels[: 3 - self.joining], levels[-1]), 1))
        factor = [1, 1, 1]
        pyramid = []
        for step, (up, unit) in enumerate(zip(self.ups, self.units, strict=True)):
            factor = [total * own for total, own in zip(factor, self.strides[-1 - step], strict=True)]
            features = cropped(up(features), shapes[step])
            if step < self.joining:
                features = features + enlarged(self.laterals[step](joining[step]), factor, shapes[step])
            features = unit(features)
            pyramid.append(features)
        return pyramid[::-1]
