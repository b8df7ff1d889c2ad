"""The device: what it is, what it can do, and whether torch was built for it."""

import shutil
from collections.abc import Iterator

import torch

from sam3dnet.check.measuring import MIB, free_bytes
from sam3dnet.check.result import CheckResult, judged, told
from sam3dnet.check.setting import Setting
from sam3dnet.devices import available_devices

DRIVER_TOOL = "nvidia-smi"


def check_device(setting: Setting) -> Iterator[CheckResult]:
    """Tell what the device is; judge whether torch sees the cards and has kernels for them."""
    there = available_devices()
    name = str(setting.device)
    half = "none" if setting.half is None else str(setting.half).removeprefix("torch.")
    free = f"{free_bytes(setting.device) / MIB:,.0f} MiB free"
    yield told("device", name, f"{there.get(name, '')}; {free}; half precision {half}")
    if setting.is_card:
        yield judge_kernels(setting.device)
        yield told("device", "TF32", f"convolutions {torch.backends.cudnn.allow_tf32}, products {_products_in_tf32()}")
    elif shutil.which(DRIVER_TOOL):
        yield judge_torch_for_cards()


def judge_kernels(device: torch.device) -> CheckResult:
    """Judge whether this build of torch has kernels for a card: of its generation, compiled or to be compiled."""
    major, minor = torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()
    cudnn = torch.backends.cudnn.version()
    versions = f"capability {major}.{minor}; torch for CUDA {torch.version.cuda}, cuDNN {cudnn}"
    if torch.version.hip or has_kernels((major, minor), built):
        return told("device", "kernels", versions)
    message = f"{versions} has kernels for {', '.join(built)} alone; install a torch that was built for this card"
    return judged("device", "kernels", False, message)


def has_kernels(capability: tuple[int, int], built: list[str]) -> bool:
    """Tell whether one of the architectures runs on a card: sm_ of its generation, or compute_ that is not newer."""
    major, minor = capability
    for architecture in built:
        kind, _, number = architecture.partition("_")
        digits = "".join(filter(str.isdigit, number))
        its_major, its_minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and its_major == major and its_minor <= minor:
            return True
        if kind == "compute" and (its_major, its_minor) <= (major, minor):
            return True
    return False


def judge_torch_for_cards() -> CheckResult:
    """Judge whether torch sees the card of a machine that has NVIDIA's driver."""
    if torch.cuda.is_available():
        return told("device", "card", "there is a card, but another device was asked for")
    reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no card"
    message = f"{DRIVER_TOOL} is here, but {reason}; compare its CUDA version with torch's ({torch.version.cuda})"
    return judged("device", "card", False, message)


def _products_in_tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"
