"""What a training step of the network costs, for the planner."""

from typing import Any

import torch
from torch import Tensor, nn

from sam3dnet.network.prompt_decoder import ImageFeatures, margin_of_class
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.segmentation import SegmentationNetwork, locate_network
from sam3dnet.network.target_device import traced_for
from sam3dnet.planning.memory import training_bytes
from sam3dnet.planning.methods import DEFAULT_METHOD, METHODS
from sam3dnet.planning.operations import count_operations


def training_cost(
    arch_kwargs: dict[str, Any],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    *,
    device: str = "cpu",
    network_class: str = METHODS[DEFAULT_METHOD].network_class,
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
    shape = (batch_size, input_channels, *arch_kwargs["patch_size"])

    def make() -> nn.Module:
        network = locate_network(network_class)(input_channels, num_classes, True, **arch_kwargs)
        return TrainedNetwork(network, prompts=arch_kwargs.get("prompts", False))

    with traced_for(device):
        return training_bytes(make, shape, autocast=torch.bfloat16 if device == "cuda" else None)


def training_operations(
    arch_kwargs: dict[str, Any],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    *,
    network_class: str = METHODS[DEFAULT_METHOD].network_class,
) -> int:
    """Count the floating-point operations of a training step by tracing it; no kernel runs.

    Args:
        arch_kwargs: Arguments of the network, as in a plan.
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        batch_size: Patches in a batch.
        network_class: Where the network's class is, as in a plan.

    Returns:
        Floating-point operations, see `count_operations`.
    """

    def make() -> nn.Module:
        network = locate_network(network_class)(input_channels, num_classes, True, **arch_kwargs)
        return TrainedNetwork(network, prompts=arch_kwargs.get("prompts", False))

    return count_operations(make, (batch_size, input_channels, *arch_kwargs["patch_size"]))


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
