"""3DSAM-adapter's patch embedding as published: upsample the volume, SAM's convolution slice by slice, then depth.

Axes in names: B batch, C image channels, E token width, z y x voxels, Z Y X upsampled voxels, D H W tokens.
"""

import torch
from torch import Tensor, nn

from sam3dnet.network.layers import interpolate
from sam3dnet.network.patch_embedding import SAM_PATCH
from sam3dnet.network.published.resolutions import pad_to_multiple


class UpsampledPatchEmbed(nn.Module):
    """SAM's patch convolution on each slice of an upsampled volume, then a depth-wise convolution along depth.

    Source: 3DSAM-adapter (Gong et al. 2024): a 128^3 crop becomes 512^3, tokens cover 4 voxels. The depth convolution
    starts at random. `PatchEmbed3D` computes the same from the voxels as they are. A single channel is repeated three
    times; several, which the paper does not treat, are mixed by a trained matrix.

    Args:
        input_channels: Channels of the image.
        width: Token width.
        token_stride: Voxels a token covers along (z, y, x), each one of 1, 2, 4, 8, 16.
    """

    def __init__(self, input_channels: int, width: int, token_stride: tuple[int, int, int]):
        super().__init__()
        self.token_stride = token_stride
        mix = torch.full((3, input_channels), 1.0 / input_channels)
        self.channel_mix = nn.Parameter(mix) if input_channels > 1 else None
        self.proj = nn.Conv2d(3, width, SAM_PATCH, stride=SAM_PATCH)
        taps = (SAM_PATCH, 1, 1)
        self.depth_conv = nn.Conv3d(width, width, taps, stride=taps, groups=width)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return tokens (B, width, D, H, W) with D = ceil(z / stride) and so on."""
        padded = pad_to_multiple(x_BCzyx, self.token_stride)
        sizes = [size * SAM_PATCH // stride for size, stride in zip(padded.shape[2:], self.token_stride, strict=True)]
        upsampled_BCZYX = interpolate(padded, sizes)
        slices = self._three_channels(upsampled_BCZYX).transpose(1, 2).flatten(0, 1)
        tokens_BEZHW = self.proj(slices).unflatten(0, (-1, sizes[0])).transpose(1, 2)
        return self.depth_conv(tokens_BEZHW)

    def _three_channels(self, x_BCZYX: Tensor) -> Tensor:
        if self.channel_mix is None:
            return x_BCZYX.expand(-1, 3, -1, -1, -1)
        return torch.einsum("mc,bczyx->bmzyx", self.channel_mix, x_BCZYX)
