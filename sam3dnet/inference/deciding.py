"""From logits to a label for each voxel."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def decide(channels: Iterable[Tensor], labels: Any) -> np.ndarray:
    """Decide on a label for each voxel by nnU-Net's rules: argmax, or regions in their order above 0.5.

    Args:
        channels: Logits of each class or region in turn, (Z, Y, X).
        labels: nnU-Net's LabelManager.

    Returns:
        (Z, Y, X), in the smallest unsigned type that holds all labels.
    """
    dtype = smallest_type(labels)
    of_torch = torch.uint8 if dtype == np.uint8 else torch.int32
    decided = _decide_by_region if labels.has_regions else _decide_by_argmax
    return decided(iter(channels), labels, of_torch).cpu().numpy().astype(dtype, copy=False)


def _decide_by_argmax(channels: Iterator[Tensor], _labels: Any, dtype: torch.dtype) -> Tensor:
    best = next(channels)
    result = torch.zeros(best.shape, dtype=dtype, device=best.device)
    for label, logits in enumerate(channels, start=1):
        result[logits > best] = label
        best = torch.maximum(best, logits)
    return result


def _decide_by_region(channels: Iterator[Tensor], labels: Any, dtype: torch.dtype) -> Tensor:
    result = torch.zeros(0)
    for number, (label, logits) in enumerate(zip(labels.regions_class_order, channels, strict=True)):
        if number == 0:
            result = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
        result[labels.apply_inference_nonlin(logits) > 0.5] = label
    return result


def smallest_type(labels: Any) -> np.dtype:
    """Return the smallest unsigned integer type that holds all labels of nnU-Net's LabelManager."""
    values = [*labels.all_labels, *(labels.regions_class_order or ())]
    return np.min_scalar_type(int(max(values)))
