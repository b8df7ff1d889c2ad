"""What a training step of the network costs, for the planner."""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sam3dnet.network.prompt_decoder import ImageFeatures, margin_of_class
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.segmentation import SegmentationNetwork, locate_network
from sam3dnet.network.target_device import traced_for
from sam3dnet.planning.memory import training_bytes
from sam3dnet.planning.methods import DEFAULT_METHOD, METHODS
from sam3dnet.planning.step_time import StepWork, Work, seconds_of

DEFAULT_CLASS = METHODS[DEFAULT_METHOD].network_class
Works = dict[str, Work]  # by kind of operator


def training_cost(
    arch_kwargs: dict[str, Any],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    *,
    device: str = "cpu",
    network_class: str = DEFAULT_CLASS,
) -> int:
    """Measure the memory of a training step by tracing it; no kernel runs.

    Args:
        arch_kwargs: Arguments of the network, as in a plan.
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        batch_size: Patches in a batch.
        device: "cpu", or "cuda" for a card, which trains in mixed precision; this machine need not have one.
        network_class: Where the network's class is, as in a plan.

    Returns:
        Bytes.
    """
    sizes = (input_channels, num_classes, batch_size)
    return _traced(json.dumps(arch_kwargs), *sizes, device, network_class)[0]


def training_seconds(
    arch_kwargs: dict[str, Any],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    *,
    network_class: str = DEFAULT_CLASS,
) -> float:
    """Estimate the seconds that a training step takes on a core of a CPU by tracing it; no kernel runs.

    Args:
        arch_kwargs: Arguments of the network, as in a plan.
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        batch_size: Patches in a batch.
        network_class: Where the network's class is, as in a plan.

    Returns:
        Seconds, see `step_time`.
    """
    return seconds_of(training_work(arch_kwargs, input_channels, num_classes, batch_size, network_class=network_class))


def training_work(
    arch_kwargs: dict[str, Any],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    *,
    network_class: str = DEFAULT_CLASS,
) -> Works:
    """Give the work that `training_seconds` estimates by, of each kind of operator."""
    sizes = (input_channels, num_classes, batch_size)
    return _traced(json.dumps(arch_kwargs), *sizes, "cpu", network_class)[1]


@lru_cache(maxsize=256)
def _traced(
    arch_kwargs: str, input_channels: int, num_classes: int, batch_size: int, device: str, network_class: str
) -> tuple[int, Works]:
    """Trace a step once for all questions about it; arguments of the network as JSON."""
    arguments = json.loads(arch_kwargs)
    shape = (batch_size, input_channels, *arguments["patch_size"])

    def make() -> nn.Module:
        network = locate_network(network_class)(input_channels, num_classes, True, **arguments)
        return TrainedNetwork(network, prompts=arguments.get("prompts", False))

    noted = StepWork()
    with traced_for(device):
        half = torch.bfloat16 if device == "cuda" else None
        needed = training_bytes(make, shape, autocast=half, watch=None if half else noted)
    return needed, dict(noted.work)


class TrainedNetwork(nn.Module):
    """The network as training runs it where it answers prompts: every second batch with a prompt in all images."""

    def __init__(self, network: nn.Module, prompts: bool):
        super().__init__()
        self.network = network
        self.prompts = prompts

    def forward(self, x_BCzyx: Tensor) -> list[Tensor]:
        """Return all logits that a loss is taken of."""
        if not self.prompts:
            return self.network(x_BCzyx)
        logits, margin_Qzyx = self.network(x_BCzyx, _ask_all)
        return [*logits, torch.stack((torch.zeros_like(margin_Qzyx), margin_Qzyx), 1)]


def _ask_all(network: SegmentationNetwork, features: ImageFeatures) -> Tensor:
    logits_BKzyx = features.logits[0].detach()
    queries, device = len(logits_BKzyx), logits_BKzyx.device
    batch = PromptBatch(
        samples=tuple(range(queries)),
        class_Q=torch.zeros(queries, dtype=torch.long, device=device),
        points_QP3=torch.zeros(queries, 1, 3, device=device),
        polarity_QP=torch.ones(queries, 1, dtype=torch.long, device=device),
        corners_QR23=torch.zeros(queries, 1, 2, 3, device=device),
        has_box_QR=torch.ones(queries, 1, dtype=torch.bool, device=device),
        mask_Qzyx=torch.zeros(queries, *logits_BKzyx.shape[2:], device=device),
        has_mask_Q=torch.ones(queries, dtype=torch.bool, device=device),
    )
    margin_Qzyx = torch.stack([margin_of_class(logits_Kzyx, 0, regions=False) for logits_Kzyx in logits_BKzyx])
    return margin_Qzyx + network.prompted(features, batch, margin_Qzyx)
