"""Gradients are clipped as torch clips them."""

import pytest
import torch
from torch import nn

from sam3dnet.training.optimizer import GRADIENT_CLIP, clip_gradients


def make_network(norm: float) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    for parameter in network[:2].parameters():  # the last layer has no gradient
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad for parameter in network[:2].parameters()]
    scale = norm / torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(scale)
    return network


@pytest.mark.parametrize("norm", [1e-3, 0.9, 1.1, 100.0, float("nan"), float("inf")])
def test_clipping_is_torch_s(norm):
    ours, theirs = make_network(norm * GRADIENT_CLIP), make_network(norm * GRADIENT_CLIP)
    clip_gradients(ours)
    nn.utils.clip_grad_norm_(theirs.parameters(), GRADIENT_CLIP)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (reference.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=0, equal_nan=True)


def test_small_gradients_are_not_written_anew():
    network = make_network(0.5 * GRADIENT_CLIP)
    versions = [parameter.grad._version for parameter in network[:2].parameters()]
    clip_gradients(network)
    assert [parameter.grad._version for parameter in network[:2].parameters()] == versions
