"""A made-up batch with targets that an image says something about, and nnU-Net's loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3
THRESHOLDS = (0.0, 0.7)  # of the smooth part, above which the second and the third class begin
NOISE = 0.3


@dataclass(frozen=True)
class Batch:
    """Images and what is in them.

    Attributes:
        image_BCzyx: One channel.
        targets: Labels (B, 1, z, y, x) of every resolution that the network has logits of, finest first.
    """

    image_BCzyx: Tensor
    targets: list[Tensor]

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device."""
        return Batch(self.image_BCzyx.to(device), [target.to(device) for target in self.targets])


def make_batch(crop: Sequence[int], size: int, shapes: Sequence[Sequence[int]], seed: int = 0) -> Batch:
    """Make a batch on the CPU: smooth images with noise, whose classes are ranges of the smooth part.

    Args:
        crop: (z, y, x).
        size: Images in it.
        shapes: (z, y, x) of every resolution that has logits.
        seed: The same gives the same batch.
    """
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn((size, 1, *(max(2, side // 4) for side in crop)), generator=rng)
    smooth = F.interpolate(coarse, tuple(crop), mode="trilinear")
    image = smooth + NOISE * torch.randn(smooth.shape, generator=rng)
    labels = torch.stack([smooth > threshold for threshold in THRESHOLDS]).sum(0).float()
    return Batch(image, [F.interpolate(labels, tuple(shape), mode="nearest") for shape in shapes])


def output_shapes(network: nn.Module, crop: Sequence[int]) -> list[torch.Size]:
    """Give (z, y, x) of every resolution that a network with deep supervision has logits of for a crop."""
    device = next(network.parameters()).device
    with torch.no_grad():
        return [logits.shape[2:] for logits in network(torch.zeros(1, 1, *crop, device=device))]


def make_loss(levels: int) -> nn.Module:
    """Make nnU-Net's loss over all resolutions; the coarsest has no weight."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    weights = np.array([0.5**level for level in range(levels)])
    weights[-1] = 0
    weighted: nn.Module = DeepSupervisionWrapper(loss, weights / weights.sum())
    return weighted
