"""Windows that hold nothing but air: they are background, and need no network."""

from typing import Any

import torch
from torch import Tensor

SAME_SHARE = 1e-5  # of the range of intensities: what resampling rounds a constant by stays below it
SURE_LOGIT = 5.0  # of background; against any class twice as much


class Air:
    """Tells where an image is empty.

    That is where every channel has one value throughout: the lowest of the image, as air after a CT was clipped, or
    exactly 0, which nnU-Net writes outside of the mask that it normalises a channel by.

    Args:
        image_CZYX: Preprocessed, without padding.
    """

    def __init__(self, image_CZYX: Tensor):
        lowest_C, highest_C = image_CZYX.flatten(1).aminmax(dim=1)
        self._air_C = lowest_C + SAME_SHARE * (highest_C - lowest_C)

    def fills(self, part_CZYX: Tensor) -> bool:
        """Tell whether a part of the image, of any size, is empty."""
        low_C, high_C = part_CZYX.flatten(1).aminmax(dim=1)
        is_outside_C = (low_C == 0) & (high_C == 0)
        return bool(((high_C <= self._air_C) | is_outside_C).all())


def background_logits(labels: Any) -> Tensor:
    """Return logits (K,) that decide on background.

    Args:
        labels: nnU-Net's LabelManager; where it has regions, none of them is there.
    """
    logits_K = torch.full((labels.num_segmentation_heads,), -SURE_LOGIT)
    if not labels.has_regions:
        logits_K[0] = SURE_LOGIT
    return logits_K
