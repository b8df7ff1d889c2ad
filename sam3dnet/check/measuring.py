"""Seconds and memory of a computation.

Memory on a CPU is the peak of live tensor bytes, without what a library uses inside one operator; on a CUDA card it is
the allocator's peak.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam3dnet.planning.memory import LiveBytes
from sam3dnet.preprocessing.free_memory import free_memory

MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """One way to compute something.

    Attributes:
        run: Computes it once, and keeps nothing.
        held: Gives the tensors that are there before and after: parameters, optimiser state, input.
    """

    run: Callable[[], object]
    held: Callable[[], Iterable[Tensor]]


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Give median, quartiles and all of the seconds measured."""
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "median_s": quartiles[1],
        "quartiles_s": [quartiles[0], quartiles[2]],
        "seconds": [round(value, 6) for value in seconds],
    }


def time_once(run: Callable[[], object], device: torch.device) -> float:
    """Give the seconds that one call takes, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what a card or an Apple GPU was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def working_bytes(variant: Variant, device: torch.device) -> int:
    """Measure the most bytes of tensors that live during a run beside those that the variant holds."""
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        variant.run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    counter = LiveBytes()
    counter.ignore(iter(list(variant.held())))
    with counter:
        variant.run()
    return counter.peak


def free_bytes(device: torch.device) -> int:
    """Give the memory that is free now, on the card or on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()
