"""Count the floating-point operations of a training step without running a kernel, on fake tensors as in memory.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sam3dnet.planning.memory import fake_network, run_step, segmentation_loss


def count_operations(make_network: Callable[[], nn.Module], input_shape: Sequence[int]) -> int:
    """Count the operations of matrix products, convolutions and attention in forward and backward.

    What a frozen parameter saves is saved here too: its own gradient is not computed. Elementwise operations, the
    optimiser, and what moves data are not counted.

    Args:
        make_network: Builds the network; called once.
        input_shape: (B, C, Z, Y, X).

    Returns:
        Floating-point operations, a multiplication and an addition as two.
    """
    counter = FlopCounterMode(display=False)
    with fake_network(make_network) as network, counter:
        run_step(network, tuple(input_shape), None, segmentation_loss)
    return int(counter.get_total_flops())
