"""Measure the memory of a training step without running a kernel.

Forward and backward run on fake tensors, which have a shape, a device and a storage but no contents; every storage that
an operator makes is counted while it lives. So any input size is measured in seconds on any machine.

A step for a card is traced with tensors of the CPU, since torch's backward pass wants the card itself; `as_on_card`
gives them the types that they would have there. A test compares it with fake tensors of a card.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside it that are alive, each once however many tensors share it.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Leave the storages of these tensors out of the count."""
        for tensor in tensors:
            self._watch(tensor, counted=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf, counted=leaf.untyped_storage().nbytes())
        return result

    def _watch(self, tensor: Tensor, counted: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._forget, key, counted)
        self.live += counted
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, counted: int) -> None:
        self._known.pop(key, None)
        self.live -= counted


def training_bytes(
    make_network: Callable[[], nn.Module],
    input_shape: Sequence[int],
    *,
    optimizer_states_per_parameter: int = 2,
    autocast: torch.dtype | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    watch: TorchDispatchMode | None = None,
) -> int:
    """Measure the memory that a training step needs: parameters, optimiser, and the peak of forward and backward.

    The peak holds the input, what is kept for the backward pass, the gradients, and the working set of its moment.
    What the device's allocator and libraries take beside the tensors is not in it.

    Args:
        make_network: Builds the network; called once.
        input_shape: (B, C, Z, Y, X).
        optimizer_states_per_parameter: Tensors that the optimiser keeps for each trained parameter; 2 for Adam.
        autocast: Type of mixed precision, as a card computes in; None for none.
        loss: The network's output -> a scalar; None for cross entropy and soft Dice on every output.
        watch: Sees the operators of forward and backward, too.

    Returns:
        Bytes.
    """
    with fake_network(make_network) as network:
        parameters = list(network.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        counter = LiveBytes()
        counter.ignore(iter([*parameters, *network.buffers()]))
        with counter, watch or nullcontext(), no_collection():
            run_step(network, tuple(input_shape), autocast, loss or segmentation_loss)
        fixed = storage_bytes([*parameters, *network.buffers()])
        fixed += optimizer_states_per_parameter * storage_bytes(trained)
        return fixed + counter.peak


def run_step(
    network: nn.Module, input_shape: tuple[int, ...], autocast: torch.dtype | None, loss: Callable[[Any], Tensor]
) -> None:
    """Run forward and backward once; the gradients stay in the parameters."""
    image_BCZYX = torch.empty(input_shape)
    with nullcontext() if autocast is None else as_on_card():  # the backward pass, too, computes some things again
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            output = network(image_BCZYX)
            value = loss(output)
        del output
        value.backward()


@contextmanager
def no_collection() -> Iterator[None]:
    """Let Python look for no cycles meanwhile: an operator makes many objects, and a tenth of a trace went there."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def as_on_card() -> Iterator[None]:
    """Trace with the types and the order of memory that a card has: oneDNN would choose one of its own."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with CardPrecision():
            yield
    finally:
        torch.backends.mkldnn.enabled = before


# What autocast computes in float32 on a card, and in half precision on a CPU.
FLOAT32_ON_CARDS = (
    *("exp", "expm1", "log", "log1p", "log2", "log10", "pow", "reciprocal", "rsqrt", "logsumexp"),
    *("sum", "prod", "cumsum", "cumprod", "softmax", "log_softmax", "norm", "dist"),
    *("layer_norm", "group_norm", "rms_norm", "softplus", "interpolate", "cosine_similarity", "kl_div"),
    *("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"),
)
# The other way round.
HALF_ON_CARDS = ("avg_pool3d",)


class CardPrecision(TorchFunctionMode):
    """Makes autocast on a CPU compute in the types that autocast on a card does; without autocast it does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run a function, on operands in float32 where a card would."""
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled("cpu") or (name := getattr(func, "__name__", "")) == "":
            return func(*args, **kwargs)
        if name in FLOAT32_ON_CARDS:
            return func(*tree_map(_in_float32, args), **tree_map(_in_float32, kwargs))
        if name in HALF_ON_CARDS:
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _in_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


def segmentation_loss(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Add cross entropy and soft Dice of each output, as nnU-Net's loss does, against an empty target."""
    outputs = [output] if isinstance(output, Tensor) else list(output)
    total = torch.zeros((), device=outputs[0].device)
    for logits_BCZYX in outputs:
        logits = logits_BCZYX.float()
        target = logits.new_zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.long)
        one_hot = torch.zeros_like(logits, dtype=torch.bool)
        probabilities = functional.softmax(logits, 1)
        total = total + functional.cross_entropy(logits, target) + (probabilities * one_hot).mean()
    return total


@contextmanager
def fake_network(make_network: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """Build a network of fake tensors, inside the mode that runs them.

    A constructor that looks at its own weights cannot run on fake tensors; it then runs for real, and the tensors are
    replaced.
    """
    mode = FakeTensorMode()
    try:
        with mode:
            network = make_network()
    except DataDependentOutputException:
        network = make_network()
        replace_tensors(network, mode)
    with mode:
        yield network.train()


def replace_tensors(network: nn.Module, mode: FakeTensorMode) -> None:
    """Put a fake tensor in the place of every parameter and buffer."""
    fakes: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in fakes:
                fakes[id(parameter)] = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
            module._parameters[name] = fakes[id(parameter)]
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = mode.from_tensor(buffer)


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Add up the storages of tensors, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
