"""Layers of more than one part; convolutions and norms are equal to torch's and faster on a CPU.

Axes in names: B batch, C channels, z y x voxels; Q queries, N T tokens, E token width.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sam3dnet.network.target_device import device_type, without_autocast

NEGATIVE_SLOPE = 0.01
HEADS = 4
WHOLE_KERNEL = (3, 3, 3)


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


class DepthwiseConv3d(nn.Conv3d):
    """Convolution of each channel by itself, as large out as in, whose gradient a CPU computes fast, too.

    Args:
        channels: Channels of the input and of the output.
        kernel: Voxels (z, y, x) that it covers, odd numbers.
        bias: Whether to add one.
    """

    def __init__(self, channels: int, kernel: tuple[int, int, int], bias: bool = True):
        super().__init__(channels, channels, kernel, padding="same", groups=channels, bias=bias)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return a volume of the same shape."""
        if _is_plain_on_cpu(x_BCzyx):
            out_BCzyx: Tensor = _Depthwise.apply(x_BCzyx, self.weight, self.bias)
            return out_BCzyx
        return super().forward(x_BCzyx)


class _Depthwise(torch.autograd.Function):
    """Convolution of each channel by itself; the input's gradient is one, too, with the kernel turned around."""

    @staticmethod
    def forward(ctx: Any, x_BCzyx: Tensor, weight_C1kkk: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BCzyx if ctx.needs_input_grad[1] else None, weight_C1kkk)
        return _convolve_depthwise(x_BCzyx, weight_C1kkk, bias_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCzyx: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_BCzyx, weight_C1kkk = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        x_grad = _convolve_depthwise(grad_BCzyx, weight_C1kkk.flip(2, 3, 4), None) if wants_x else None
        weight_grad = None
        if wants_weight:
            padding = [side // 2 for side in weight_C1kkk.shape[2:]]
            call = ([1] * 3, padding, [1] * 3, False, [0] * 3, len(weight_C1kkk))
            weight_grad = torch.ops.aten.convolution_backward(
                grad_BCzyx, x_BCzyx, weight_C1kkk, None, *call, (False, True, False)
            )[1]
        return x_grad, weight_grad, grad_BCzyx.sum((0, 2, 3, 4)) if wants_bias else None


def _convolve_depthwise(x_BCzyx: Tensor, weight_C1kkk: Tensor, bias_C: Tensor | None) -> Tensor:
    return F.conv3d(x_BCzyx, weight_C1kkk, bias_C, padding="same", groups=len(weight_C1kkk))


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


def cropped(x_BCzyx: Tensor, shape: Sequence[int]) -> Tensor:
    """Leave out what lies beyond a shape (z, y, x); what has the shape is given back itself.

    A slice of it would be a view, and writing to a view costs copies in the backward pass.
    """
    depth, height, width = shape
    return x_BCzyx if x_BCzyx.shape[2:] == (depth, height, width) else x_BCzyx[:, :, :depth, :height, :width]


def beside(features_BCzyx: Sequence[Tensor], image_BCzyx: Tensor) -> Tensor:
    """Join features and an image along the channels, in the features' type: the image's would widen them all."""
    return torch.cat((*features_BCzyx, image_BCzyx.to(features_BCzyx[0].dtype)), 1)


def repeat_outer(x_BCzyx: Tensor, pads_zyx: Sequence[tuple[int, int]]) -> Tensor:
    """Repeat the outer voxels of each axis.

    On a card torch's own way adds gradients up in any order, and torch 2.11 compiles nothing that reads by a clamped
    index.

    Args:
        x_BCzyx: A volume.
        pads_zyx: Voxels before and after, for each axis.
    """
    if device_type(x_BCzyx) == "cpu":
        pads = [pad for pair in reversed(pads_zyx) for pad in pair]
        return F.pad(x_BCzyx, pads, mode="replicate") if any(pads) else x_BCzyx
    for axis, (before, after) in enumerate(pads_zyx, 2):
        if before or after:
            first, last = x_BCzyx.narrow(axis, 0, 1), x_BCzyx.narrow(axis, x_BCzyx.shape[axis] - 1, 1)
            x_BCzyx = torch.cat([*[first] * before, x_BCzyx, *[last] * after], axis)
    return x_BCzyx


def mean_of_blocks(x_BCzyx: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Average over blocks of stride voxels, in a block at the far end over what there is of it.

    Where whole blocks halve an axis, linear interpolation reads just between the two voxels, which is the same and on a
    CPU in channels-last many times faster than pooling.

    Returns:
        (B, C, z / stride, y / stride, x / stride), rounded up.
    """
    sizes = [size // step for size, step in zip(x_BCzyx.shape[2:], stride, strict=True)]
    whole = all(n * step == size for n, step, size in zip(sizes, stride, x_BCzyx.shape[2:], strict=True))
    if whole and max(stride) <= 2 and device_type(x_BCzyx) == "cpu":
        return F.interpolate(x_BCzyx, size=sizes, mode="trilinear")
    return F.avg_pool3d(x_BCzyx, stride, ceil_mode=True, count_include_pad=False)


class InstanceNorm(nn.GroupNorm):
    """Instance norm, defined for a single voxel, too.

    On a CPU a group norm with one channel a group, which is faster. On a card torch's own: autocast would compute a
    group norm in float32, which doubles what is kept for the backward pass.

    Args:
        channels: Channels of the input.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return the normalised volume, same shape and type."""
        if _is_plain_on_cpu(x_BCzyx) and x_BCzyx.is_contiguous(memory_format=torch.channels_last_3d):
            return _ChannelsLastNorm.apply(x_BCzyx, self.weight, self.bias, self.eps)
        return normalise_instances(x_BCzyx, self.weight, self.bias, self.eps)


def normalise_instances(
    x_BCzyx: Tensor, weight_C: Tensor | None = None, bias_C: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Give each channel of each image mean 0 and variance 1, then weight and bias; same shape and type."""
    if device_type(x_BCzyx) == "cpu":
        return torch.group_norm(x_BCzyx, x_BCzyx.shape[1], weight_C, bias_C, eps)
    cudnn = torch.backends.cudnn.enabled
    return torch.instance_norm(x_BCzyx, weight_C, bias_C, None, None, True, 0.0, eps, cudnn)


def interpolate(x_BCzyx: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample linearly to a shape (z, y, x), in the type of the input, where autocast on a card would take float32."""
    with without_autocast(x_BCzyx):
        return F.interpolate(x_BCzyx, size=list(shape), mode="trilinear")


class _ChannelsLastNorm(torch.autograd.Function):
    """Instance norm whose gradient is that of a batch norm of each image: for channels-last voxels the fast one."""

    @staticmethod
    def forward(ctx: Any, x_BCzyx: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        batch, channels, *voxels = x_BCzyx.shape
        sizes = (batch, channels, math.prod(voxels), channels)
        out_BCzyx, mean_BC, inverse_deviation_BC = torch.native_group_norm(x_BCzyx, weight_C, bias_C, *sizes, eps)
        ctx.save_for_backward(x_BCzyx, weight_C, mean_BC, inverse_deviation_BC)
        ctx.eps = eps
        return out_BCzyx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCzyx: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BCzyx, weight_C, *moments = ctx.saved_tensors
        grad_BCzyx = grad_BCzyx.contiguous(memory_format=torch.channels_last_3d)
        input_grad_BCzyx = torch.empty_like(x_BCzyx)
        affine_grads_C = torch.zeros(2, len(weight_C))
        images = zip(grad_BCzyx, x_BCzyx, *moments, strict=True)
        for index, (grad, x, mean, inverse_deviation) in enumerate(images):
            normalised = (x[None], weight_C, None, None, mean, inverse_deviation, True, ctx.eps, (True, True, True))
            of_image, *affine = torch.ops.aten.native_batch_norm_backward(grad[None], *normalised)
            input_grad_BCzyx[index] = of_image[0]
            affine_grads_C += torch.stack(affine)
        return input_grad_BCzyx, *affine_grads_C, None


def _is_plain_on_cpu(x_BCzyx: Tensor) -> bool:
    """Tell whether this is real float32 on a CPU, neither traced nor under autocast."""
    return (
        type(x_BCzyx) is Tensor
        and x_BCzyx.device.type == "cpu"
        and x_BCzyx.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_single_on_cpu(x_BCzyx: Tensor) -> bool:
    """Tell whether this is one image, plain on a CPU with oneDNN."""
    return len(x_BCzyx) == 1 and _is_plain_on_cpu(x_BCzyx) and torch.backends.mkldnn.is_available()


class PointwiseConv(nn.Conv3d):
    """1x1x1 convolution as a matrix product over channels-last voxels: faster on a CPU, and so is what follows.

    On a card only where the channels do lie last, as those of tokens: all else would be copied.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        bias: Whether to add one.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True):
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return (B, channels_out, z, y, x), channels-last in memory where the input is, and always on a CPU."""
        if device_type(x_BCzyx) != "cpu" and x_BCzyx.is_contiguous():
            return super().forward(x_BCzyx)
        out_BzyxC = F.linear(x_BCzyx.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return out_BzyxC.permute(0, 4, 1, 2, 3)


class ConvUnit(nn.Module):
    """Convolution, instance norm, leaky ReLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: Voxels a step along (z, y, x).
        kernel: Voxels (z, y, x) that the convolution covers, odd numbers.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: Sequence[int] = (1, 1, 1),
        kernel: Sequence[int] = WHOLE_KERNEL,
    ):
        super().__init__()
        sides, padding = triple(kernel), triple([side // 2 for side in kernel])
        self.conv = Conv3d(channels_in, channels_out, sides, stride=triple(stride), padding=padding, bias=False)
        self.norm = InstanceNorm(channels_out)
        nn.init.kaiming_normal_(self.conv.weight, a=NEGATIVE_SLOPE)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return (B, channels_out, z / stride, y / stride, x / stride), rounded up."""
        return F.leaky_relu(self.norm(self.conv(x_BCzyx)), NEGATIVE_SLOPE, inplace=True)


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others, after a layer norm of both.

    Args:
        width: Token width.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int = HEADS):
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, query_QNE: Tensor, context_QTE: Tensor, there_QT: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query_QNE: Who attends.
            context_QTE: Attended to.
            there_QT: False where context is padding; None where nothing is.

        Returns:
            (Q, N, E), without the residual.
        """
        query = self.query(self.norm_query(query_QNE)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            self.key_value(self.norm_context(context_QTE)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mask = None if there_QT is None else there_QT[:, None, None]
        return self.proj(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


def triple(values: Sequence[int]) -> tuple[int, int, int]:
    """Return three numbers (z, y, x), which a plan gives as a list, as the tuple that torch wants."""
    z, y, x = (int(value) for value in values)
    return z, y, x
