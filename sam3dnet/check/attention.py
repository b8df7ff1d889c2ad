"""That attention takes a fused kernel for the heads that plans give, and that it computes what it should."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam3dnet.check.example import largest_error
from sam3dnet.check.result import CheckResult, Skipped, at_most
from sam3dnet.check.setting import Setting

# Width of a head and a token's coordinates side by side, in multiples of 8: windows of the encoders tiny, small and
# those of SAM, and SAM's over the whole grid of a crop of 128 x 160 x 160 voxels with tokens of 4.
HEAD_WIDTHS = {"tiny": 32, "small": 56, "SAM": 104, "SAM, all tokens": 176}
TOKENS, BATCH, HEADS = 512, 2, 3
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
LIMITS = {torch.bfloat16: 0.02, torch.float16: 0.003, torch.float32: 1e-4}  # on a CPU 0.007, 0.001, 1.4e-6


def check_attention(setting: Setting) -> Iterator[CheckResult]:
    """Compare the fused kernels with the spelled-out product, forward and backward."""
    if not (setting.is_card or setting.is_cpu):
        raise Skipped(f"torch has no fused attention to choose from on {setting.device.type}")
    dtype = setting.half if setting.is_card and setting.half else torch.float32
    for name, width in HEAD_WIDTHS.items():
        yield compare_kernels(name, width, setting.device, dtype)


def compare_kernels(name: str, width: int, device: torch.device, dtype: torch.dtype) -> CheckResult:
    """Judge the kernels for heads of a width; none that torch can take for it is a failure."""
    line = f"heads of {width} ({name}) in {str(dtype).removeprefix('torch.')}"
    operands = make_operands(width, device)
    reference = attend([part.float() for part in operands], [SDPBackend.MATH])
    halved = [part.to(dtype) for part in operands]
    kernels = [backend for backend in FUSED if is_available(halved, backend)]
    values = attend(halved, list(FUSED))
    error = largest_error(values, reference)
    return at_most("attention", line, error, LIMITS[dtype], "torch can take " + " and ".join(map(name_of, kernels)))


def make_operands(width: int, device: torch.device) -> list[Tensor]:
    """Make queries, keys and values (B, h, N, e), the same on every device."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, HEADS, TOKENS, width, generator=rng).to(device) for _ in range(3)]


def attend(operands: list[Tensor], backends: list[SDPBackend]) -> list[Tensor]:
    """Give the result and the gradients of queries, keys and values, in float32, by one of some kernels.

    Raises:
        RuntimeError: If torch can take none of them.
    """
    query, key, value = leaves = [part.detach().requires_grad_() for part in operands]
    with sdpa_kernel(backends):
        out = F.scaled_dot_product_attention(query, key, value)
        out.float().square().sum().backward()
    return [out.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]


def is_available(operands: list[Tensor], backend: SDPBackend) -> bool:
    """Tell whether torch can take a kernel for these operands; it warns of the reasons where not."""
    try:
        attend(operands, [backend])
    except RuntimeError:
        return False
    return True


def name_of(backend: SDPBackend) -> str:
    """Give a kernel's name in lower case: flash, efficient."""
    return str(backend.name).removesuffix("_ATTENTION").lower()
