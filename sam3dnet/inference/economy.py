"""What prediction does where the device's memory does not suffice: it goes on with less of it, more slowly."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
SIGNS_IN_MESSAGES = ("out of memory", "alloc_failed", "can't allocate memory")  # of MPS, cuBLAS and cuDNN, the CPU

Result = TypeVar("Result")


@dataclass(frozen=True)
class Demand:
    """What an image needs in the device's memory.

    Attributes:
        device: Where the network is.
        batch_size: Windows that go through the network together, where there is room.
        sum_bytes: Of the running sums of the windows' logits.
        window_bytes: Of the logits of one window.
    """

    device: torch.device
    batch_size: int
    sum_bytes: int
    window_bytes: int


@dataclass(frozen=True)
class Setting:
    """How an image is predicted.

    Attributes:
        sums_device: Where the running sums are.
        batch_size: Windows that go through the network together.
        meaning: What that is, and what it costs, in words.
    """

    sums_device: torch.device
    batch_size: int
    meaning: str = ""


def settings_for(demand: Demand) -> list[Setting]:
    """List the settings, each of which needs less of the device's memory than the one before."""
    settings = [Setting(demand.device, demand.batch_size)]
    if demand.device.type == "cpu":
        return settings
    sums = f"with the sums of the windows in the CPU's memory ({demand.window_bytes / 1e6:.0f} MB are copied a window)"
    settings.append(Setting(CPU, demand.batch_size, sums))
    if demand.batch_size > 1:
        slower = f"one window at a time in place of {demand.batch_size} (at most {demand.batch_size} times as slow)"
        settings.append(Setting(CPU, 1, f"{sums}, {slower}"))
    return settings


class Economy:
    """Finds the first setting that fits, and begins there with the images that follow.

    It belongs to one model on one device.
    """

    def __init__(self) -> None:
        self._first = 0

    def attempt(self, demand: Demand, work: Callable[[Setting], Result]) -> Result:
        """Do some work, anew with the next setting whenever the device's memory is exhausted.

        Args:
            demand: What the image needs.
            work: Predicts the image as a setting says.

        Returns:
            What the work returned.

        Raises:
            Exception: What the work raised, of exhausted memory only with the last setting.
        """
        settings = settings_for(demand)
        number = min(max(self._first, _first_by_arithmetic(demand)), len(settings) - 1)
        while True:
            try:
                return work(settings[number])
            except Exception as error:
                if number + 1 == len(settings) or not is_out_of_memory(error):
                    raise
            number += 1  # no longer inside of the exception, which holds what was computed
            self._first = max(self._first, number)
            release_cached(demand.device)
            meaning = settings[number].meaning
            logger.warning("GPU memory exhausted; this image, and those after it, are predicted %s", meaning)


def _first_by_arithmetic(demand: Demand) -> int:
    """Tell the first setting that could fit: sums larger than all that is free need not be tried on the device."""
    free = free_bytes(demand.device)
    return int(free is not None and demand.sum_bytes > free)


def free_bytes(device: torch.device) -> int | None:
    """Return what a card has free, for this process's torch too; None where that is unknown."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory was exhausted, on any device; of all but CUDA's allocator only the message says so."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS_IN_MESSAGES)


def release_cached(device: torch.device) -> None:
    """Give what torch keeps for later back to the device."""
    from nnunetv2.utilities.helpers import empty_cache

    empty_cache(device)
