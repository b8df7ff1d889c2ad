"""Convolutions that a CPU computes fast; weights, names and results are those of torch's own.

Axes in names: B batch, C channels, z y x voxels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """3D convolution that uses oneDNN for a single image, too.

    On a CPU torch takes a generic kernel for small batches of one, up to 14 times slower than oneDNN's, which it takes
    for two. Prediction and prompts come as batches of one.
    """

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return (B, channels_out, z / stride, y / stride, x / stride), as torch's convolution does."""
        if _is_single_on_cpu(x_BCzyx):
            convolve = torch.ops.aten.mkldnn_convolution
            return convolve(x_BCzyx, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        return super().forward(x_BCzyx)


class UpConv3d(nn.ConvTranspose3d):
    """Transposed convolution whose kernel is its stride, for a single image as one matrix product.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: Factor along (z, y, x).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int, int]):
        super().__init__(channels_in, channels_out, stride, stride=stride, bias=False)

    def forward(self, x_BCzyx: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return (B, channels_out, z * stride, y * stride, x * stride)."""
        if not _is_single_on_cpu(x_BCzyx):
            return super().forward(x_BCzyx, output_size)
        weight_KC = self.weight.permute(2, 3, 4, 1, 0).reshape(-1, self.in_channels)
        blocks = F.linear(x_BCzyx.permute(0, 2, 3, 4, 1), weight_KC)
        blocks = blocks.unflatten(-1, (*self.stride, self.out_channels)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return blocks.flatten(5, 6).flatten(3, 4).flatten(1, 2).permute(0, 4, 1, 2, 3)


def mean_of_blocks(x_BCzyx: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Average over blocks of stride voxels, in a block at the far end over what there is of it.

    Where whole blocks halve an axis, linear interpolation reads just between the two voxels, which is the same and on a
    CPU in channels-last many times faster than pooling.

    Returns:
        (B, C, z / stride, y / stride, x / stride), rounded up.
    """
    sizes = [size // step for size, step in zip(x_BCzyx.shape[2:], stride, strict=True)]
    whole = all(n * step == size for n, step, size in zip(sizes, stride, x_BCzyx.shape[2:], strict=True))
    if whole and max(stride) <= 2:
        return F.interpolate(x_BCzyx, size=sizes, mode="trilinear")
    return F.avg_pool3d(x_BCzyx, stride, ceil_mode=True, count_include_pad=False)


def _is_single_on_cpu(x_BCzyx: Tensor) -> bool:
    """Tell whether this is one real float32 image on a CPU with oneDNN, neither traced nor under autocast."""
    return (
        len(x_BCzyx) == 1
        and type(x_BCzyx) is Tensor
        and x_BCzyx.device.type == "cpu"
        and x_BCzyx.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class PointwiseConv(nn.Conv3d):
    """1x1x1 convolution as a matrix product over channels-last voxels: faster on a CPU, and so is what follows.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        bias: Whether to add one.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True):
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return (B, channels_out, z, y, x), channels-last in memory."""
        out_BzyxC = F.linear(x_BCzyx.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return out_BzyxC.permute(0, 4, 1, 2, 3)
