"""Cut a volume into tokens with SAM's own 2D patch kernel.

Axes in names: B batch, C image channels, O output width, K taps of SAM's kernel (16), z y x voxels, D H W tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.layers import repeat_outer
from sam3dnet.network.target_device import without_autocast

SAM_PATCH = 16


def resampling_matrix(stride: int) -> Tensor:
    """Give the weights by which SAM's 16 taps read a line that was upsampled by 16/stride.

    Row i holds the linear weights (align_corners=False) of upsampled sample i over the original samples of the token
    and one neighbour on each side.

    Args:
        stride: Voxels that a token covers, one of 1, 2, 4, 8, 16.

    Returns:
        (16, stride + 2), or the 16 x 16 identity for stride 16, where nothing is upsampled.

    Raises:
        ValueError: If 16 is not a multiple of stride.
    """
    if stride < 1 or SAM_PATCH % stride:
        raise ValueError(f"token stride {stride}: expected one of 1, 2, 4, 8, 16")
    if stride == SAM_PATCH:
        return torch.eye(SAM_PATCH)
    source = (torch.arange(SAM_PATCH, dtype=torch.float64) + 0.5) * stride / SAM_PATCH + 0.5
    lower = source.floor().long()
    fraction = source - lower
    matrix = torch.zeros(SAM_PATCH, stride + 2, dtype=torch.float64)
    rows = torch.arange(SAM_PATCH)
    matrix[rows, lower] += 1 - fraction
    matrix[rows, lower + 1] += fraction
    return matrix.float()


class PatchEmbed3D(nn.Module):
    """SAM's patch convolution over resampled voxels, times a depth kernel that starts as the mean, in one convolution.

    The image channels are mixed to SAM's three by a matrix that is part of the same convolution, so a grey image costs
    a single input channel. Source of the depth kernel: 3DSAM-adapter (Gong et al. 2024), there as a second, separate
    convolution on an upsampled volume.

    Args:
        input_channels: Channels of the image.
        width: Width of a token.
        token_stride: Voxels a token covers along (z, y, x), each one of 1, 2, 4, 8, 16.
    """

    resample_z: Tensor
    resample_y: Tensor
    resample_x: Tensor

    def __init__(self, input_channels: int, width: int, token_stride: tuple[int, int, int]):
        super().__init__()
        self.token_stride = token_stride
        self.channel_mix = nn.Parameter(torch.full((3, input_channels), 1.0 / input_channels))
        self.proj = nn.Conv2d(3, width, SAM_PATCH)
        self.depth_kernel_OK = nn.Parameter(torch.full((width, SAM_PATCH), 1.0 / SAM_PATCH))
        for axis, stride in zip("zyx", token_stride, strict=True):
            self.register_buffer(f"resample_{axis}", resampling_matrix(stride), persistent=False)

    def fused_kernel(self) -> Tensor:
        """Return the dense kernel (width, C, kz, ky, kx), each side stride + 2, or 16 for stride 16."""
        with without_autocast(self.proj.weight):  # a kernel rounded at each of four products is not SAM's any more
            mixed_OCKK = torch.einsum("omkl,mc->ockl", self.proj.weight, self.channel_mix)
            in_plane_OCyx = torch.einsum("ky,ockl,lx->ocyx", self.resample_y, mixed_OCKK, self.resample_x)
            depth_Oz = self.depth_kernel_OK @ self.resample_z
            return torch.einsum("ocyx,oz->oczyx", in_plane_OCyx, depth_Oz)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return tokens (B, width, D, H, W) with D = ceil(z / stride) and so on."""
        pads = []
        for size, stride in zip(x_BCzyx.shape[2:], self.token_stride, strict=True):
            halo = 0 if stride == SAM_PATCH else 1
            pads.append((halo, halo + -size % stride))
        return F.conv3d(repeat_outer(x_BCzyx, pads), self.fused_kernel(), self.proj.bias, stride=self.token_stride)
