"""Where the checks run, and how long they may take."""

from dataclasses import dataclass

import torch

from sam3dnet.devices import half_type


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        device: The device that is checked.
        quick: Whether to take the smallest networks and volumes, which say less about speed and memory.
    """

    device: torch.device
    quick: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether the device is the one that all others are compared with."""
        return self.device.type == "cpu"

    @property
    def is_card(self) -> bool:
        """Whether the device is an NVIDIA or AMD card."""
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype | None:
        """Half precision of the device; bf16 on a CPU, where nothing trains in it; None where there is none."""
        return torch.bfloat16 if self.is_cpu else half_type(self.device)
