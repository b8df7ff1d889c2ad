"""Estimate the seconds that a training step takes on a core of a CPU, from the trace that gives its memory.

Every kind of operator takes so long for its arithmetic, for the bytes that it reads and writes, and for its calls. The
rates are those of one core of an Intel Xeon with AVX-512 in float32; `benchmarks/step_seconds.py`
compares the estimate with measured seconds, and finds the rates. Another core is faster or slower as a whole: plans
compare steps, and come out alike wherever they are made.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CONVOLUTION, DEPTHWISE, PRODUCT, ATTENTION, OTHER = "convolution", "depthwise", "product", "attention", "other"


@dataclass(frozen=True)
class Rate:
    """How fast a core computes operators of a kind.

    Attributes:
        operations: Floating-point operations a second, a multiplication and an addition as two.
        bytes: Bytes a second, read or written.
        call_s: Seconds of a call besides.
    """

    operations: float
    bytes: float
    call_s: float

    def seconds(self, work: Work) -> float:
        """Estimate the seconds of a piece of work."""
        return work.operations / self.operations + work.bytes / self.bytes + work.calls * self.call_s


@dataclass
class Work:
    """What operators do.

    Attributes:
        calls: How many there are.
        operations: Floating-point operations.
        bytes: Bytes that they read and write.
    """

    calls: int = 0
    operations: float = 0.0
    bytes: float = 0.0


RATES: dict[str, Rate] = {
    CONVOLUTION: Rate(2.64e11, 3.9e9, 190e-6),
    DEPTHWISE: Rate(math.inf, 2.1e9, 225e-6),
    PRODUCT: Rate(2.07e11, 11.8e9, 6e-6),
    ATTENTION: Rate(1.46e11, 7.0e9, 67e-6),
    OTHER: Rate(math.inf, 8.9e9, 36e-6),
}


def kind_of(name: str, operand_shapes: Sequence[Sequence[int]]) -> str:
    """Tell the kind of an operator.

    Args:
        name: Of torch's operator, without "aten::".
        operand_shapes: Of its operands.
    """
    if "scaled_dot_product" in name:
        return ATTENTION
    if "convolution" in name:
        image, kernel = operand_shapes[1:3] if "backward" in name else operand_shapes[:2]
        return DEPTHWISE if tuple(kernel[1:2]) == (1,) != tuple(image[1:2]) else CONVOLUTION
    return PRODUCT if name in ("mm", "addmm", "bmm", "baddbmm") else OTHER


class StepWork(TorchDispatchMode):
    """Notes the work of every operator that runs inside it; what a frozen parameter saves is not there.

    Attributes:
        work: Of each kind of operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operator and note what it did."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not made or self._is_view(func, read, made):
            return result
        packet = func.overloadpacket
        name = packet.__name__
        kind = kind_of(name, [leaf.shape for leaf in read])
        work = self.work[kind]
        work.calls += 1
        if kind == ATTENTION:
            work.operations += _operations_of_attention(read, "backward" in name)
        elif packet in flop_registry:
            work.operations += flop_registry[packet](*args, **kwargs, out_val=result)
        work.bytes += 0 if name in WITHOUT_WORK else sum(map(_bytes, (*read, *made)))
        return result

    @staticmethod
    def _is_view(func: Any, read: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
        """Tell whether an operator only gives another view of what it read."""
        known = {leaf.untyped_storage()._cdata for leaf in read}
        return not func._schema.is_mutable and all(leaf.untyped_storage()._cdata in known for leaf in made)


WITHOUT_WORK = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")


def _bytes(x: Tensor) -> int:
    """Give the bytes of a tensor's own elements; what is expanded is read from few."""
    return math.prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step) * x.element_size()


def _operations_of_attention(read: Sequence[Tensor], is_backward: bool) -> int:
    """Count the operations of a fused attention: two products forward, five backward."""
    query, key, value = read[1:4] if is_backward else read[:3]
    scores, mixed = ((*query.shape, key.shape[-2]), (*query.shape[:-1], *value.shape[-2:]))
    of_scores, of_mixed = 2 * math.prod(scores), 2 * math.prod(mixed)
    return 3 * of_scores + 2 * of_mixed if is_backward else of_scores + of_mixed


def seconds_of(work: Mapping[str, Work]) -> float:
    """Estimate the seconds that a core takes for the work of all kinds."""
    return sum(RATES[kind].seconds(part) for kind, part in work.items())
