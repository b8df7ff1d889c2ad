"""Choice of the device to compute on, and of the precision there."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from sam3dnet.errors import Sam3dError

_log = logging.getLogger(__name__)


def choose_device(name: str | None = None) -> torch.device:
    """Choose the device to compute on and say which in one line of the log.

    A card becomes torch's current one, so that nothing lands on another.

    Args:
        name: "cpu", "cuda" (the first card, of torchrun's processes each its own), "cuda:1" (the second one) or "mps";
            None for the best that this machine has.

    Raises:
        Sam3dError: If the device is unknown, or this machine or this build of torch has none of its kind.
    """
    there = available_devices()
    if name is None:
        name = next(iter(there)).partition(":")[0]
    name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name
    if name not in there:
        raise Sam3dError(
            f"--device {name}: torch {torch.__version__} sees no such device on this machine; it sees "
            f"{', '.join(there)}; choose one of these, or leave the option out"
        )
    _log.info("Device: %s (%s)", name, there[name])
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def available_devices() -> dict[str, str]:
    """Names and descriptions of the devices that this machine has, the best first."""
    devices = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory_gib = torch.cuda.get_device_properties(index).total_memory / 2**30
        devices[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory_gib:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    devices["cpu"] = f"{torch.get_num_threads()} threads"
    return devices


def half_type(device: torch.device) -> torch.dtype | None:
    """Give the type that training computes in: bf16 on a card that has it, else fp16; None on other devices.

    Cards before Ampere only emulate bf16, slowly. fp16 ends at 65504 and underflows, so that training has to scale the
    loss.
    """
    if device.type != "cuda":
        return None
    with nullcontext() if device.index is None else torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def prediction_type(device: torch.device, trained_in: torch.dtype | None) -> torch.dtype | None:
    """Give the type that prediction computes in: as in training, but what was not trained in fp16 may overflow there.

    Args:
        device: Where it runs.
        trained_in: The type of training; None for float32, or where it is not known.
    """
    half = half_type(device)
    return None if half is torch.float16 and trained_in is not torch.float16 else half


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager:
    """Compute matrix products and convolutions on a device in a type; as they come where it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def better_half(device: torch.device) -> AbstractContextManager:
    """Compute in bf16 where fp16 is switched on though the device has bf16: what was trained in that may overflow."""
    is_fp16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.float16
    return autocast_on(device) if device.type == "cuda" and is_fp16 else nullcontext()


def autocast_on(device: torch.device) -> AbstractContextManager:
    """Compute in `half_type` where the device has one."""
    return autocast_to(half_type(device), device)
