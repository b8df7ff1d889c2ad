"""Choice of the device to compute on, and of the precision there."""

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from sam3dnet.errors import Sam3dError

_log = logging.getLogger(__name__)


def choose_device(name: str | None = None) -> torch.device:
    """Choose the device to compute on and say which in one line of the log.

    Args:
        name: "cpu", "cuda" or "mps"; None for the best that this machine has.

    Raises:
        Sam3dError: If the device is unknown, or this machine or this build of torch has none of its kind.
    """
    there = available_devices()
    if name is None:
        name = next(iter(there))
    if name not in there:
        raise Sam3dError(
            f"--device {name}: torch {torch.__version__} sees no such device on this machine; it sees "
            f"{', '.join(there)}; choose one of these, or leave the option out"
        )
    _log.info("Device: %s (%s)", name, there[name])
    return torch.device(name)


def available_devices() -> dict[str, str]:
    """Names and descriptions of the devices that this machine has, the best first."""
    devices = {}
    if torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        devices["cuda"] = f"{torch.cuda.get_device_name(0)}, {memory_gib:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    devices["cpu"] = f"{torch.get_num_threads()} threads"
    return devices


def half_type(device: torch.device) -> torch.dtype | None:
    """Give the type that matrix products are computed in: bf16 on a card that has it, else fp16; None on other devices.

    Cards before Ampere only emulate bf16, slowly. fp16 ends at 65504 and underflows, so that training has to scale the
    loss.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast_on(device: torch.device) -> AbstractContextManager:
    """Compute in `half_type` where the device has one; prediction as training: what bf16 trained may overflow fp16."""
    dtype = half_type(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
