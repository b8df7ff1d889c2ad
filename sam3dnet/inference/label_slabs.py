"""A label map that grows while the logits come, slab by slab, so that they are never all held at once.

nnU-Net resamples the logits of a whole case, then decides on a label for each voxel. With resampling functions that
need all logits these are kept, and resampled by the function itself, one class at a time (`label_map`).

Axes in names: K classes or regions, n p planes, Z Y X voxels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sam3dnet.inference.companions import WHOLE, Companion
from sam3dnet.inference.deciding import decide, smallest_type
from sam3dnet.inference.on_disk import let_go, room_for
from sam3dnet.inference.resampling import (
    AxisMode,
    axis_modes,
    neighbours,
    put_into_image,
    resample_in_plane,
    resample_to_image,
)
from sam3dnet.inference.windows import in_parts


class GrowingLabelMap(Protocol):
    """Takes logits slab by slab, and gives the labels on the image's grid in the end."""

    def add(self, logits_KpYX: Tensor) -> None:
        """Take the next planes, float32, on any device."""

    def finish(self) -> np.ndarray:
        """Give the label map, once all planes have come."""


def start_label_map(
    shape_ZYX: Sequence[int],
    properties: Mapping[str, Any],
    plans: Any,
    configuration: Any,
    labels: Any,
    companion: Companion | None = None,
) -> GrowingLabelMap:
    """Begin a label map for logits that will come slab by slab.

    Args:
        shape_ZYX: Of the preprocessed image.
        properties: What nnU-Net's preprocessor says about the case: spacing, shapes and the box of the crop.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        labels: nnU-Net's LabelManager.
        companion: Gets the logits on the image's grid; None where only labels are wanted.
    """
    target_shape = tuple(properties["shape_after_cropping_and_before_resampling"])
    spacing_mm = [properties["spacing"][axis] for axis in plans.transpose_forward]
    modes: Sequence[AxisMode] | None = ("linear",) * 3
    if tuple(shape_ZYX) != target_shape:
        modes = axis_modes(configuration.resampling_fn_probabilities, configuration.spacing, spacing_mm)
    if modes is None:
        return _KeptLogits(shape_ZYX, properties, plans, configuration, labels, companion)
    return _Slabs(shape_ZYX, target_shape, modes, properties, plans, labels, companion)


def label_map(
    logits_KZYX: Tensor,
    properties: Mapping[str, Any],
    plans: Any,
    configuration: Any,
    labels: Any,
    companion: Companion | None = None,
) -> np.ndarray:
    """Resample logits to the image's grid and decide on a label for each voxel.

    The plan's resampling function is called for one channel at a time, so that only one is ever held at the image's
    resolution.

    Args:
        logits_KZYX: Logits on the preprocessed grid.
        properties: What nnU-Net's preprocessor says about the case: spacing, shapes and the box of the crop.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        labels: nnU-Net's LabelManager.
        companion: Gets the logits on the image's grid; None where only labels are wanted.

    Returns:
        Labels on the grid of the image as its reader gave it, in the smallest unsigned type that holds all labels.
    """
    rest = (properties, plans, configuration)
    channels: Iterable[Tensor] = (resample_to_image(logits_KZYX[k : k + 1], *rest) for k in range(len(logits_KZYX)))
    if companion is not None:
        channels = _passed_on(channels, companion)
    return put_into_image(decide(channels, labels), properties, plans)


def _passed_on(channels: Iterable[Tensor], companion: Companion) -> Iterator[Tensor]:
    for channel, logits_ZYX in enumerate(channels):
        companion.put(channel, WHOLE, logits_ZYX)
        yield logits_ZYX


class _KeptLogits:
    """Keeps all logits in half precision, for resampling functions that need them all."""

    def __init__(
        self,
        shape_ZYX: Sequence[int],
        properties: Any,
        plans: Any,
        configuration: Any,
        labels: Any,
        companion: Companion | None,
    ):
        self._logits = room_for((labels.num_segmentation_heads, *shape_ZYX), torch.half, "logits")
        self._came = 0
        self._rest = (properties, plans, configuration, labels, companion)

    def add(self, logits_KpYX: Tensor) -> None:
        self._logits[:, self._came : self._came + logits_KpYX.shape[1]] = logits_KpYX
        let_go(self._logits)
        self._came += logits_KpYX.shape[1]

    def finish(self) -> np.ndarray:
        return label_map(self._logits, *self._rest)


class _Slabs:
    """Resamples each plane as it comes, and decides on every plane of the result that it completes."""

    def __init__(
        self,
        shape_ZYX: Sequence[int],
        target_shape_ZYX: Sequence[int],
        modes: Sequence[AxisMode],
        properties: Mapping[str, Any],
        plans: Any,
        labels: Any,
        companion: Companion | None,
    ):
        self._companion = companion
        self._modes, self._properties, self._plans, self._label_manager = modes, properties, plans, labels
        self._labels_ZYX = np.zeros(target_shape_ZYX, smallest_type(labels))
        self._below, self._above, self._share_above = neighbours(shape_ZYX[0], target_shape_ZYX[0], modes[0])
        self._came = self._decided = 0
        self._last: Tensor | None = None

    def add(self, logits_KpYX: Tensor) -> None:
        logits_KpYX = logits_KpYX if logits_KpYX.device.type == "cuda" else logits_KpYX.cpu()
        values_a_plane = len(logits_KpYX) * max(logits_KpYX[0, 0].numel(), self._labels_ZYX[0].size)
        for few in in_parts(logits_KpYX.shape[1], values_a_plane):
            self._add_few(logits_KpYX[:, few])

    def _add_few(self, logits_KpYX: Tensor) -> None:
        came = resample_in_plane(logits_KpYX, self._labels_ZYX.shape[1:], self._modes[1:])
        held, first = came, self._came
        if self._last is not None:
            held, first = torch.cat([self._last, came], dim=1), self._came - 1
        self._came += came.shape[1]
        complete = int(np.searchsorted(self._above, self._came))
        for few in in_parts(complete - self._decided, held[:, 0].numel()):
            planes = slice(self._decided + few.start, self._decided + few.stop)
            logits_KnYX = self._between(held, first, planes)
            self._labels_ZYX[planes] = decide(logits_KnYX, self._label_manager)
            if self._companion is not None:
                self._companion.put(slice(None), (planes, slice(None), slice(None)), logits_KnYX)
        self._decided = max(self._decided, complete)
        self._last = came[:, -1:].clone()

    def _between(self, held_KpYX: Tensor, first: int, planes: slice) -> Tensor:
        """Interpolate the planes of the result from those held, of which `first` is the number of the first."""
        below, above = (torch.from_numpy(index[planes] - first) for index in (self._below, self._above))
        share = torch.from_numpy(self._share_above[planes]).to(held_KpYX)[:, None, None]
        lower_KnYX = held_KpYX[:, below.to(held_KpYX.device)]
        if not share.any():
            return lower_KnYX
        return lower_KnYX.lerp_(held_KpYX[:, above.to(held_KpYX.device)], share)

    def finish(self) -> np.ndarray:
        assert self._decided == len(self._labels_ZYX), "planes are missing"
        return put_into_image(self._labels_ZYX, self._properties, self._plans)
