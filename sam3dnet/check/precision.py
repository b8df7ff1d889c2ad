"""Values on the device against those of the CPU in float32: forward pass, loss and gradients of the real network.

Half precision rounds so much that only a wrong operator shows. Small errors show in float32, which is compared sharply.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sam3dnet.check.example import Example, Values, largest_error, make_examples
from sam3dnet.check.result import CheckResult, Skipped, at_most
from sam3dnet.check.setting import Setting


@dataclass(frozen=True)
class Limits:
    """Largest relative errors.

    Attributes:
        features: Root mean square of the error of the encoder's features, as a share of their standard deviation.
        logits: The same of logits, with and without prompts.
        loss: As a share of the loss.
        gradient: Norm of the error of a part's gradient, as a share of its norm.
    """

    features: float
    logits: float
    loss: float
    gradient: float


# bf16 keeps 8 significant bits, fp16 11, float32 24. Largest on a CPU, of five networks: 0.010, 0.015, 0.0005, 0.21 in
# bf16, and 0.0013, 0.002, 0.00007, 0.07 in fp16. In bf16 with a block of the encoder doubled: 0.37, 0.16, 0.0005, 0.80;
# with ReLU in place of GELU: 0.30, 0.16, 0.0002, 1.0; with scores of attention times 1.1: 0.023, 0.021, 0.0002, 0.34.
LIMITS = {
    torch.bfloat16: Limits(0.02, 0.035, 0.01, 0.4),
    torch.float16: Limits(0.003, 0.005, 0.002, 0.15),
    torch.float32: Limits(1e-3, 1e-3, 1e-4, 0.01),
}


def check_float32(setting: Setting) -> Iterator[CheckResult]:
    """Compare float32 on the device, without TF32, with float32 on the CPU."""
    if setting.is_cpu:
        raise Skipped("the device is the CPU, which the others are compared with")
    for example in make_examples(setting):
        reference = example.values(torch.device("cpu"))
        with without_tf32():
            values = example.values(setting.device)
        yield from compare("float32", example, values, reference, torch.float32)


def check_half_precision(setting: Setting) -> Iterator[CheckResult]:
    """Compare half precision on the device with float32 on the CPU."""
    if setting.half is None:
        raise Skipped(f"on {setting.device.type} training and prediction compute in float32")
    for example in make_examples(setting):
        reference = example.values(torch.device("cpu"))
        values = example.values(setting.device, setting.half)
        yield from compare("half-precision", example, values, reference, setting.half)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute products and convolutions of float32 in float32 on a card."""
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


def compare(
    check: str, example: Example, values: Values, reference: Values, dtype: torch.dtype
) -> Iterator[CheckResult]:
    """Judge features, logits, loss and gradients."""
    limits, kind = LIMITS[dtype], f"in {str(dtype).removeprefix('torch.')}"
    if values.levels:
        features_error = largest_error(values.levels, reference.levels)
        yield at_most(check, f"{example.name}, features {kind}", features_error, limits.features)
    logits_error = largest_error(values.outputs, reference.outputs)
    yield at_most(check, f"{example.name}, logits {kind}", logits_error, limits.logits)
    loss_error = abs(values.loss - reference.loss) / abs(reference.loss)
    losses = f"{values.loss:.5f}, on the CPU in float32 {reference.loss:.5f}"
    yield at_most(check, f"{example.name}, loss {kind}", loss_error, limits.loss, losses)
    errors = gradient_errors(values, reference)
    worst = max(errors, key=lambda part: (math.isnan(errors[part]), errors[part]))
    yield at_most(check, f"{example.name}, gradient {kind}", errors[worst], limits.gradient, f"worst in {worst}")


def gradient_errors(values: Values, reference: Values) -> dict[str, float]:
    """Give the relative error of the gradient of each part of the network."""
    squares: dict[str, list[float]] = {}
    for name, gradient in reference.gradients.items():
        of_part = squares.setdefault(part_of(name), [0.0, 0.0])
        of_part[0] += float((values.gradients[name] - gradient).square().sum())
        of_part[1] += float(gradient.square().sum())
    return {
        part: math.sqrt(error / square) if square else math.sqrt(error) for part, (error, square) in squares.items()
    }


def part_of(parameter: str) -> str:
    """Give the part that a parameter is in: image_encoder.blocks.2, image_encoder.patch_embed."""
    numbered = re.match(r".*?\.\d+(?=\.)", parameter)
    return numbered[0] if numbered else ".".join(parameter.split(".")[:2])
