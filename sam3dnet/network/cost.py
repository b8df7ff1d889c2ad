"""What a training step of the network costs, for the planner."""

from typing import Any

from sam3dnet.network.build import SAM3D
from sam3dnet.planning.memory import training_bytes


def training_cost(arch_kwargs: dict[str, Any], input_channels: int, num_classes: int, batch_size: int) -> int:
    """Measure the memory of a training step by tracing it; no kernel runs.

    Args:
        arch_kwargs: Arguments of SAM3D, as in a plan.
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        batch_size: Patches in a batch.

    Returns:
        Bytes.
    """
    shape = (batch_size, input_channels, *arch_kwargs["patch_size"])
    return training_bytes(lambda: SAM3D(input_channels, num_classes, True, **arch_kwargs), shape)
