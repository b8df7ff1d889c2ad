"""Cross entropy that weighs rare classes more while a training is young.

A small class is a fraction of a percent of the voxels. By equal weights a network learns first that it is not there,
and in a short training that is where it stays. Once it is found the weights fade, since they move surfaces outwards.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

EXPONENT = 0.5  # of one over the share of the voxels, at the beginning
FADED = 0.7  # of the training
RAREST = 1e-4  # share of the voxels; what is rarer weighs no more
MEMORY = 0.95  # of the shares, from one batch to the next


def exponent_at(fraction: float) -> float:
    """Give the exponent of the weights when a part of the training is done, 0 to 1."""
    return EXPONENT * max(0.0, 1.0 - fraction / FADED)


class RareClasses:
    """Sets the weights of nnU-Net's cross entropy by how often classes occur in the crops that were trained on.

    Args:
        cross_entropy: The part of nnU-Net's loss; nn.BCEWithLogitsLoss with regions.
        num_classes: Channels of the logits.

    Attributes:
        exponent: How much rare classes weigh; 0: as others.
    """

    def __init__(self, cross_entropy: nn.CrossEntropyLoss | nn.BCEWithLogitsLoss, num_classes: int) -> None:
        self._cross_entropy, self._num_classes = cross_entropy, num_classes
        self._shares_K: Tensor | None = None
        self.exponent = 0.0

    def note(self, target_BCx: Tensor) -> None:
        """Count a batch, and weigh by what has been counted so far.

        Args:
            target_BCx: nnU-Net's at full resolution, x being any number of axes: a channel of labels, or one a region
                and one more of what is to be ignored.
        """
        shares_K = self._shares_of(target_BCx)
        before_K = shares_K if self._shares_K is None else self._shares_K.to(shares_K.device)
        self._shares_K = before_K + (1 - MEMORY) * (shares_K - before_K)
        if isinstance(self._cross_entropy, nn.BCEWithLogitsLoss):
            self._weigh_regions(self._cross_entropy, self._shares_K, target_BCx.ndim - 2)
        else:
            self._cross_entropy.weight = self._weights_of(self._shares_K)

    def weigh_equally(self) -> None:
        """Take the weights away, for scores that can be compared."""
        self._cross_entropy.weight = None
        if isinstance(self._cross_entropy, nn.BCEWithLogitsLoss):
            self._cross_entropy.pos_weight = None

    def state(self) -> dict[str, Any]:
        """Give what a training that goes on later needs, in types that are safe to load."""
        return {} if self._shares_K is None else {"class_shares": self._shares_K.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one of before classes were counted starts counting."""
        shares = state.get("class_shares")
        self._shares_K = None if shares is None else torch.tensor(shares, dtype=torch.float32)

    def _shares_of(self, target_BCx: Tensor) -> Tensor:
        if isinstance(self._cross_entropy, nn.BCEWithLogitsLoss):
            inside_BKx, *ignored = target_BCx.flatten(2).float().split(self._num_classes, 1)
            valid = 1 - ignored[0] if ignored else torch.ones_like(inside_BKx[:, :1])
            return (inside_BKx * valid).sum((0, 2)) / valid.sum().clamp(min=1)
        counts_K = torch.stack([(target_BCx == index).sum() for index in range(self._num_classes)])
        return counts_K / counts_K.sum().clamp(min=1)

    def _weights_of(self, shares: Tensor) -> Tensor:
        return shares.clamp(min=RAREST) ** -self.exponent

    def _weigh_regions(self, cross_entropy: nn.BCEWithLogitsLoss, shares_K: Tensor, num_axes: int) -> None:
        """Weigh inside against outside, each region by itself, such that a region's weights have a mean of 1."""
        inside_K, outside_K = self._weights_of(shares_K), self._weights_of(1 - shares_K)
        mean_K = shares_K * inside_K + (1 - shares_K) * outside_K
        along_axes = (-1, *[1] * num_axes)
        cross_entropy.weight = (outside_K / mean_K).view(along_axes)
        cross_entropy.pos_weight = (inside_K / outside_K).view(along_axes)
