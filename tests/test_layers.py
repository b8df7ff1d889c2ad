"""Convolutions and norms of ours give what torch's give, whatever the batch size."""

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from sam3dnet.network.layers import (
    Conv3d,
    DepthwiseConv3d,
    InstanceNorm,
    PointwiseConv,
    UpConv3d,
    cropped,
    mean_of_blocks,
    repeat_outer,
)
from sam3dnet.network.target_device import traced_for

PAIRS = {
    "plain": (Conv3d(3, 5, 3, padding=1, bias=False), nn.Conv3d(3, 5, 3, padding=1, bias=False)),
    "strided": (Conv3d(3, 4, 3, stride=(1, 2, 2), padding=(0, 1, 1)), nn.Conv3d(3, 4, 3, (1, 2, 2), (0, 1, 1))),
    "pointwise": (PointwiseConv(3, 7), nn.Conv3d(3, 7, 1)),
    "depthwise": (DepthwiseConv3d(3, (3, 1, 5)), nn.Conv3d(3, 3, (3, 1, 5), padding=(1, 0, 2), groups=3)),
    "depthwise, no bias": (DepthwiseConv3d(3, (3, 3, 3), False), nn.Conv3d(3, 3, 3, padding=1, groups=3, bias=False)),
    "upwards": (UpConv3d(3, 5, (1, 2, 4)), nn.ConvTranspose3d(3, 5, (1, 2, 4), (1, 2, 4), bias=False)),
}


@pytest.mark.parametrize("name", list(PAIRS))
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("channels_last", [True, False])
def test_values_and_gradients_are_torch_s(name, batch_size, channels_last):
    torch.manual_seed(0)
    ours, stock = PAIRS[name]
    stock.load_state_dict(ours.state_dict())
    image = torch.randn(batch_size, 3, 5, 6, 7)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last_3d)
    results = []
    for layer in (ours, stock):
        layer.zero_grad()
        own = image.clone().requires_grad_()
        out = layer(own)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        results.append([out.detach(), own.grad, *(parameter.grad for parameter in layer.parameters())])
    for mine, expected in zip(*results, strict=True):
        assert mine.shape == expected.shape
        assert torch.allclose(mine, expected, atol=1e-4)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 4)])
@pytest.mark.parametrize("shape", [(4, 6, 8), (3, 5, 6)])
def test_blocks_are_averaged_as_pooling_does(stride, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    pooled = nn.functional.avg_pool3d(x, stride, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(mean_of_blocks(x, stride), pooled)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(1, 7, 1, 1, 1), (1, 7, 5, 4, 3), (3, 7, 5, 4, 3), (2, 16, 12, 12, 12)])
def test_the_norm_and_its_gradients_are_those_of_group_norm(shape, channels_last):
    torch.manual_seed(0)
    norm = InstanceNorm(shape[1])
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    image = 3 * torch.randn(shape) + 2
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last_3d)
    ours, theirs = image.clone().requires_grad_(), image.double().requires_grad_()
    weight, bias = (parameter.detach().double().requires_grad_() for parameter in norm.parameters())
    wanted = torch.randn(shape)
    out = norm(ours)
    expected = torch.group_norm(theirs, shape[1], weight, bias, norm.eps)
    out.backward(wanted)
    expected.backward(wanted.double())
    pairs = [(out, expected), (ours.grad, theirs.grad), (norm.weight.grad, weight.grad), (norm.bias.grad, bias.grad)]
    for mine, reference in pairs:
        assert torch.allclose(mine.double(), reference, rtol=1e-4, atol=2e-4)


def test_a_norm_in_the_middle_of_a_checkpoint_learns_too():
    norm = InstanceNorm(3)
    image = torch.randn(2, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    gradients = []
    for keep in (True, False):
        norm.zero_grad()
        out = norm(image) if keep else torch.utils.checkpoint.checkpoint(norm, image, use_reentrant=False)
        out.square().sum().backward()
        gradients.append(norm.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_what_has_the_shape_is_not_cropped_to_a_view():
    volume = torch.zeros(1, 2, 4, 5, 6)
    assert cropped(volume, (4, 5, 6)) is volume
    assert cropped(volume, volume.shape[2:]) is volume
    assert cropped(volume, (4, 3, 6)).shape == (1, 2, 4, 3, 6)


def test_fast_gradients_are_those_of_plain_channels_last_voxels_alone():
    image = torch.zeros(2, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    norm, depthwise = InstanceNorm(3), DepthwiseConv3d(3, (3, 3, 3))
    assert norm(image).grad_fn.name() == "_ChannelsLastNormBackward"
    assert norm(image.contiguous()).grad_fn.name() == "NativeGroupNormBackward0"
    assert depthwise(image).grad_fn.name() == "_DepthwiseBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(image).grad_fn.name() == "NativeGroupNormBackward0"
        assert depthwise(image).grad_fn.name() == "ConvolutionBackward0"


def test_a_frozen_depthwise_convolution_keeps_no_input():
    depthwise = DepthwiseConv3d(3, (3, 3, 3)).requires_grad_(False)
    image = torch.zeros(2, 3, 4, 4, 4, requires_grad=True)
    output = depthwise(image)  # torch 2.6 forgets what it saved with its output
    kept, _ = output.grad_fn.saved_tensors
    assert kept is None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("pads", [[(1, 1), (0, 0), (0, 0)], [(0, 3), (2, 0), (1, 4)], [(0, 0)] * 3])
def test_outer_voxels_are_repeated_as_torch_does(kind, pads):
    torch.manual_seed(0)
    found = []
    flat = [pad for pair in reversed(pads) for pad in pair]
    for repeat in (repeat_outer, lambda x, _: torch.nn.functional.pad(x, flat, mode="replicate")):
        volume = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6).requires_grad_()
        with traced_for(kind):
            out = repeat(volume, pads)
        found.append((out, *torch.autograd.grad((out * torch.arange(out.numel()).view_as(out)).sum(), volume)))
    for ours, torchs in zip(*found, strict=True):
        assert torch.allclose(ours, torchs)
