"""Tensors of a card on a machine that has none: they have a shape, a type and a device, and no contents.

Torch's forward pass runs on them as on the card, under the card's autocast. Only attention must be told to take a fused
kernel, which torch chooses by looking at the card.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam3dnet.network.target_device import order_kernels
from sam3dnet.planning.memory import replace_tensors

CARD = torch.device("cuda:0")
SPELLED_OUT = 10_000  # products of so few queries and keys need no fused kernel


class Recorder(TorchDispatchMode):
    """Notes every operator that runs: its name, and types, shapes and devices of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs:
            self.calls.append((func.overloadpacket.__name__, inputs, outputs))
        return result

    def types_of(self, *names: str) -> Counter:
        """Count the types that operators of these names computed in: that of their first operand."""
        return Counter(inputs[0].dtype for name, inputs, _ in self.calls if name in names)


class FusedAttention(TorchFunctionMode):
    """Takes the fused kernel that torch would on a card, and refuses where it has none.

    Flash: half precision, no mask, heads a multiple of 8 and at most 256 wide, as wide as the values. Memory-efficient:
    a multiple of 8 in half precision. Else torch spells attention out, with all products in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head_widths: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return self.attend(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        query, key, value = (part.to(torch.get_autocast_dtype("cuda")) for part in (query, key, value))
        width = query.shape[-1]
        assert {part.device for part in (query, key, value)} == {CARD}
        is_small = query.shape[-2] * key.shape[-2] <= SPELLED_OUT
        assert is_small or (width % 8 == 0 == value.shape[-1] - width), f"no fused kernel takes heads of {width}"
        self.head_widths.append(width)
        if attn_mask is not None:
            assert attn_mask.dtype == torch.bool
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).expand(*query.shape[:-1], key.shape[-2])
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


@contextmanager
def card_autocast(dtype: torch.dtype = torch.bfloat16) -> Iterator[FusedAttention]:
    """Autocast of a card; torch.autocast would leave a machine without one as it is."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        with FusedAttention() as attention:
            yield attention
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


@contextmanager
def on_fake_card(make_network: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """Build a network on the CPU, and bring it to a fake card as `to` would, inside the mode that runs it there."""
    network, mode = make_network(), FakeTensorMode()
    replace_tensors(network, mode)
    with mode:
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module._parameters[name] = nn.Parameter(parameter.detach().to(CARD), parameter.requires_grad)
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to(CARD)
        order_kernels(network)
        yield network
