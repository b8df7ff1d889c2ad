"""A label map that grows while the logits come, slab by slab, so that they are never all held at once.

nnU-Net resamples the logits of a whole case, then decides on a label for each voxel. Its resampling functions, with
the settings that its planner and ours write, are linear along each axis, or nearest along the coarse one: a plane of
the result depends on two planes of logits at most. With other functions or settings the logits are kept and resampled
by the function itself, one class at a time (`export.label_map`).

Axes in names: K classes or regions, n p planes, Z Y X voxels.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sam3dnet.inference.export import decide, label_map, put_into_image, smallest_type
from sam3dnet.inference.windows import planes_at_a_time

AxisMode = Literal["linear", "nearest-exact"]


class GrowingLabelMap(Protocol):
    """Takes logits slab by slab, and gives the labels on the image's grid in the end."""

    def add(self, logits_KpYX: Tensor) -> None:
        """Take the next planes, float32, on any device."""

    def finish(self) -> np.ndarray:
        """Give the label map, once all planes have come."""


def start_label_map(
    shape_ZYX: Sequence[int], properties: Mapping[str, Any], plans: Any, configuration: Any, labels: Any
) -> GrowingLabelMap:
    """Begin a label map for logits that will come slab by slab.

    Args:
        shape_ZYX: Of the preprocessed image.
        properties: What nnU-Net's preprocessor says about the case: spacing, shapes and the box of the crop.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        labels: nnU-Net's LabelManager.
    """
    target_shape = tuple(properties["shape_after_cropping_and_before_resampling"])
    spacing_mm = [properties["spacing"][axis] for axis in plans.transpose_forward]
    modes: Sequence[AxisMode] | None = ("linear",) * 3
    if tuple(shape_ZYX) != target_shape:
        modes = axis_modes(configuration.resampling_fn_probabilities, configuration.spacing, spacing_mm)
    if modes is None:
        return _KeptLogits(shape_ZYX, properties, plans, configuration, labels)
    return _Slabs(shape_ZYX, target_shape, modes, properties, plans, labels)


def axis_modes(
    resample: Any, from_spacing_mm: Sequence[float], to_spacing_mm: Sequence[float]
) -> tuple[AxisMode, ...] | None:
    """Tell how a resampling function of nnU-Net's treats each axis; None if it does more than `_Slabs` can.

    Args:
        resample: `functools.partial` of the function with the plan's settings.
        from_spacing_mm: Of the preprocessed image, (Z, Y, X).
        to_spacing_mm: Of the image, transposed as the preprocessed one is.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import (
        determine_do_sep_z_and_axis,
        resample_data_or_seg_to_shape,
    )
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    settings = {name: parameter.default for name, parameter in signature(resample.func).parameters.items()}
    settings |= resample.keywords
    linear_settings: dict[Any, dict[str, Any]] = {
        resample_torch_fornnunet: {"is_seg": False, "mode": "linear", "aniso_axis_mode": "nearest-exact"},
        resample_data_or_seg_to_shape: {"is_seg": False, "order": 1, "order_z": 0},
    }
    expected = linear_settings.get(resample.func)
    if expected is None or any(settings[name] != value for name, value in expected.items()):
        return None
    separately, coarse_axis = determine_do_sep_z_and_axis(
        settings["force_separate_z"], from_spacing_mm, to_spacing_mm, settings["separate_z_anisotropy_threshold"]
    )
    return tuple("nearest-exact" if separately and axis == coarse_axis else "linear" for axis in range(3))


class _KeptLogits:
    """Keeps all logits in half precision, for resampling functions that need them all."""

    def __init__(self, shape_ZYX: Sequence[int], properties: Any, plans: Any, configuration: Any, labels: Any):
        self._logits = torch.empty((labels.num_segmentation_heads, *shape_ZYX), dtype=torch.half)
        self._came = 0
        self._rest = (properties, plans, configuration, labels)

    def add(self, logits_KpYX: Tensor) -> None:
        self._logits[:, self._came : self._came + logits_KpYX.shape[1]] = logits_KpYX
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
    ):
        self._modes, self._properties, self._plans, self._label_manager = modes, properties, plans, labels
        self._labels_ZYX = np.zeros(target_shape_ZYX, smallest_type(labels))
        self._below, self._above, self._share_above = neighbours(shape_ZYX[0], target_shape_ZYX[0], modes[0])
        self._came = self._decided = 0
        self._last: Tensor | None = None

    def add(self, logits_KpYX: Tensor) -> None:
        logits_KpYX = logits_KpYX if logits_KpYX.device.type == "cuda" else logits_KpYX.cpu()
        values_a_plane = len(logits_KpYX) * max(logits_KpYX[0, 0].numel(), self._labels_ZYX[0].size)
        for few in planes_at_a_time(logits_KpYX.shape[1], values_a_plane):
            self._add_few(logits_KpYX[:, few])

    def _add_few(self, logits_KpYX: Tensor) -> None:
        came = resample_in_plane(logits_KpYX, self._labels_ZYX.shape[1:], self._modes[1:])
        held, first = came, self._came
        if self._last is not None:
            held, first = torch.cat([self._last, came], dim=1), self._came - 1
        self._came += came.shape[1]
        complete = int(np.searchsorted(self._above, self._came))
        for few in planes_at_a_time(complete - self._decided, held[:, 0].numel()):
            planes = slice(self._decided + few.start, self._decided + few.stop)
            self._labels_ZYX[planes] = decide(self._between(held, first, planes), self._label_manager)
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


def neighbours(size: int, target_size: int, mode: AxisMode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell between which planes each plane of the result lies, edges aligned, and how much of the upper one it takes.

    Returns:
        Indices of the lower and the upper plane, both rising, and the share of the upper one, each (target_size,).
    """
    if mode == "nearest-exact":
        index = interpolate(torch.arange(size)[None, None].float(), target_size, mode=mode)[0, 0].long().numpy()
        return index, index, np.zeros(target_size)
    position = ((np.arange(target_size) + 0.5) * size / target_size - 0.5).clip(0, size - 1)
    below = np.floor(position).astype(np.int64)
    return below, np.minimum(below + 1, size - 1), position - below


def resample_in_plane(logits_KpYX: Tensor, target_shape_YX: Sequence[int], modes: Sequence[AxisMode]) -> Tensor:
    """Resample planes; along an axis that is "nearest-exact" after the other one, as nnU-Net does."""
    shape = list(logits_KpYX.shape[2:])
    target = list(target_shape_YX)
    if shape == target:
        return logits_KpYX
    linear = [new if mode == "linear" else old for old, new, mode in zip(shape, target, modes, strict=True)]
    resampled = interpolate(logits_KpYX, linear, mode="bilinear", align_corners=False)
    return resampled if linear == target else interpolate(resampled, target, mode="nearest-exact")
