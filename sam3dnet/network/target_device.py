"""The kind of device that a network computes on, also while its step for a card is traced on a machine without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_traced_for: str | None = None


def device_type(x: Tensor) -> str:
    """Give "cpu", "cuda" or another kind of device: the tensor's own, inside `traced_for` the one named there."""
    return _traced_for or x.device.type


@contextmanager
def traced_for(kind: str) -> Iterator[None]:
    """Let networks choose operators as on a kind of device, wherever their tensors are: for traces of a step."""
    global _traced_for
    before, _traced_for = _traced_for, kind
    try:
        yield
    finally:
        _traced_for = before


def preferred_format(x: Tensor) -> torch.memory_format:
    """Give the order of memory that volumes are convolved fastest in.

    Channels last on a CPU, where narrow convolutions are several times faster so. On a card each channel by itself, as
    nnU-Net has it: instance norm wants that, and would copy.
    """
    return torch.channels_last_3d if device_type(x) == "cpu" else torch.contiguous_format


def order_kernels(network: nn.Module) -> None:
    """Order the kernels of 3D convolutions for the device that they are on; what they convolve follows them."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.weight.data = module.weight.data.contiguous(memory_format=preferred_format(module.weight))


def product_type(x: Tensor) -> torch.dtype:
    """Give the type that a matrix product or convolution of a tensor computes in: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def without_autocast(x: Tensor) -> torch.autocast:
    """Compute in the types that the operands have: where half precision, or float32, would be forced on them."""
    return torch.autocast(x.device.type, enabled=False)
