"""What a training step of the network costs, for the planner."""

from typing import Any

import torch

from sam3dnet.network.build import SAM3D
from sam3dnet.planning.memory import training_bytes


def training_cost(
    arch_kwargs: dict[str, Any],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    *,
    mixed_precision: bool = False,
) -> int:
    """Measure the memory of a training step by tracing it; no kernel runs.

    Args:
        arch_kwargs: Arguments of SAM3D, as in a plan.
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        batch_size: Patches in a batch.
        mixed_precision: Whether training runs under bf16 autocast, as it does on a CUDA card.

    Returns:
        Bytes.
    """
    shape = (batch_size, input_channels, *arch_kwargs["patch_size"])
    autocast = torch.bfloat16 if mixed_precision else None
    return training_bytes(lambda: SAM3D(input_channels, num_classes, True, **arch_kwargs), shape, autocast=autocast)
