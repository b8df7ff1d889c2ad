"""The planner's estimate of a training step's memory against what a real step takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sam3dnet.check.batch import CLASSES
from sam3dnet.check.measuring import MIB, free_bytes
from sam3dnet.check.networks import Shape, own_arguments
from sam3dnet.check.result import CheckResult, Skipped, between, skipped
from sam3dnet.check.setting import Setting
from sam3dnet.check.step import own_step
from sam3dnet.network.cost import training_cost
from sam3dnet.planning.rules import USABLE_SHARE_OF_MEMORY


@dataclass(frozen=True)
class ExamplePlan:
    """What of a plan decides on its memory; options are further arguments of the network."""

    encoder: str
    pretrained: bool
    crop: Shape
    stride: int
    batch: int
    options: dict[str, Any]

    def arguments(self) -> dict[str, Any]:
        """Give the network's arguments."""
        return own_arguments(self.crop, self.stride, self.encoder, self.pretrained, **self.options)

    def __str__(self) -> str:
        kind = "frozen" if self.pretrained else "trained whole"
        crop = "x".join(map(str, self.crop))
        return f"{self.encoder}, {kind}, {crop}, tokens of {self.stride}, batch {self.batch}"


PROMPTS: dict[str, Any] = {"prompts": True}
QUICK_PLANS = (
    ExamplePlan("tiny", False, (8, 12, 16), 4, 2, PROMPTS),
    ExamplePlan("tiny", True, (8, 16, 12), 4, 2, {}),
    ExamplePlan("tiny", False, (16, 16, 24), 8, 2, {}),
)
CPU_PLANS = (
    ExamplePlan("small", False, (32, 48, 32), 8, 2, PROMPTS),
    ExamplePlan("small", True, (24, 32, 24), 4, 2, PROMPTS),
    ExamplePlan("vit_b", True, (32, 32, 32), 8, 2, {}),
)
CARD_PLANS = (
    ExamplePlan("small", False, (64, 96, 96), 8, 2, PROMPTS),
    ExamplePlan("vit_b", True, (64, 96, 96), 8, 2, PROMPTS),
    ExamplePlan("vit_b", True, (64, 64, 64), 4, 2, {"checkpointing": True}),
)
# Measured / estimated. On a CPU the tensors alone are counted; on a card convolutions need room to work in, and the
# planner leaves a fifth of the memory for that.
CPU_LIMITS = (0.85, 1.15)
CARD_LIMITS = (0.7, 1 / USABLE_SHARE_OF_MEMORY)


def check_memory(setting: Setting) -> Iterator[CheckResult]:
    """Estimate and measure a step of three plans."""
    if not (setting.is_card or setting.is_cpu):
        raise Skipped(f"torch does not count the peak of memory on {setting.device.type}")
    plans = QUICK_PLANS if setting.quick else CARD_PLANS if setting.is_card else CPU_PLANS
    for plan in plans:
        yield compare_memory(plan, setting)


def compare_memory(plan: ExamplePlan, setting: Setting) -> CheckResult:
    """Judge measured / estimated of a plan; it is left out where memory does not suffice."""
    estimate = training_cost(plan.arguments(), 1, CLASSES, plan.batch, device=setting.device.type)
    free = free_bytes(setting.device)
    if estimate > USABLE_SHARE_OF_MEMORY * free:
        needed = f"needs {estimate / MIB:,.0f} MiB, and {free / MIB:,.0f} MiB are free"
        return skipped("memory", str(plan), needed)
    measured = own_step(plan.arguments(), plan.batch, setting.device).peak_bytes()
    if setting.is_card:
        torch.cuda.empty_cache()
    message = f"estimated {estimate / MIB:,.0f} MiB, measured {measured / MIB:,.0f} MiB"
    return between("memory", str(plan), measured / estimate, *limits(setting), message)


def limits(setting: Setting) -> tuple[float, float]:
    """Give what measured / estimated may be; the smallest plans on a card are mostly workspaces of its libraries."""
    if not setting.is_card:
        return CPU_LIMITS
    return (0.5, 4.0) if setting.quick else CARD_LIMITS
