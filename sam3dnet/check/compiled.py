"""That the compiled network computes what the network does."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from sam3dnet.check.example import make_examples
from sam3dnet.check.precision import compare
from sam3dnet.check.result import CheckResult, Skipped
from sam3dnet.check.setting import Setting
from sam3dnet.network.compiling import Compiler, compile_network
from sam3dnet.network.sam3d import SAM3D

C_COMPILERS = ("gcc", "clang", "cc", "cl")  # triton builds its launchers with one
SWITCH, ON = "nnUNet_compile", ("t", "true", "1")  # nnU-Net's


class StrictCompiler(Compiler):
    """Compiles as the trainer does, but does not go on where that fails."""

    def fail(self, error: Exception) -> None:
        """Raise the error."""
        raise error


def compile_strictly(network: SAM3D) -> None:
    """Compile what the trainer compiles."""
    compile_network(network, StrictCompiler())


def check_compiled(setting: Setting) -> Iterator[CheckResult]:
    """Compare the compiled network with the network on the CPU in float32, as half precision is."""
    reason = "left out by --quick" if setting.quick else reason_not_to_compile(setting)
    if reason:
        raise Skipped(reason)
    example = make_examples(Setting(setting.device, quick=True))[0]
    dtype = None if setting.is_cpu else setting.half
    reference = example.values(torch.device("cpu"))
    values = example.values(setting.device, dtype, compile_strictly)
    yield from compare("compiled", example, values, reference, dtype or torch.float32)


def reason_not_to_compile(setting: Setting) -> str | None:
    """Say why the trainer compiles nothing here; None where it does."""
    if not setting.is_card:
        return f"training on {setting.device.type} is not compiled"
    if os.environ.get(SWITCH, "t").lower() not in ON:
        return f"{SWITCH} turns it off"
    if find_spec("triton") is None:
        return "triton, which compiles for cards, is not installed"
    if not any(map(shutil.which, C_COMPILERS)):
        return f"no compiler: none of {', '.join(C_COMPILERS)} is here"
    return None
