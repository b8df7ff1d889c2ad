"""Convolutions of ours give what torch's give, whatever the batch size."""

import pytest
import torch
from torch import nn

from sam3dnet.network.convolution import Conv3d, PointwiseConv, UpConv3d, mean_of_blocks

PAIRS = {
    "plain": (Conv3d(3, 5, 3, padding=1, bias=False), nn.Conv3d(3, 5, 3, padding=1, bias=False)),
    "strided": (Conv3d(3, 4, 3, stride=(1, 2, 2), padding=(0, 1, 1)), nn.Conv3d(3, 4, 3, (1, 2, 2), (0, 1, 1))),
    "pointwise": (PointwiseConv(3, 7), nn.Conv3d(3, 7, 1)),
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
