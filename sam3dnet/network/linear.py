"""A linear layer whose frozen weights may be stored in bf16, whatever its input is computed in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STORED = torch.bfloat16


class Linear(nn.Linear):
    """torch's linear layer; weights stored in bf16 are brought to the input's type where autocast does not do it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) in the type of the input, or of autocast."""
        if self.weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        product: Tensor = _FrozenProduct.apply(x, self.weight, self.bias)
        return product


class _FrozenProduct(torch.autograd.Function):
    """A linear layer with frozen weights of another type than its input; nothing of the input's type is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


def store_frozen_in_half(module: nn.Module) -> None:
    """Store the weights of frozen linear layers in bf16: half the memory, and no copy of them under bf16 autocast.

    SAM's weights lose what bf16 does not hold: they are rounded to 8 significant bits.

    Args:
        module: All `Linear` layers inside it that no parameter of is trained.
    """
    for layer in module.modules():
        if isinstance(layer, Linear) and not any(p.requires_grad for p in layer.parameters(recurse=False)):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(parameter.detach().to(STORED), requires_grad=False))
