"""Logits on the preprocessed grid brought to the image's own.

nnU-Net's resampling functions, with the settings that its planner and ours write, are linear along each axis, or
nearest along the coarse one: a plane of the result depends on two planes of logits at most.

Axes in names: K classes or regions, p planes, Z Y X voxels.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

AxisMode = Literal["linear", "nearest-exact"]


def resample_to_image(logits_1ZYX: Tensor, properties: Mapping[str, Any], plans: Any, configuration: Any) -> Tensor:
    """Resample one channel of logits to the cropped image's grid by the plan's function, (Z, Y, X)."""
    spacing_mm = [properties["spacing"][axis] for axis in plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    resampled = configuration.resampling_fn_probabilities(logits_1ZYX, shape, configuration.spacing, spacing_mm)
    return torch.as_tensor(resampled)[0]


def put_into_image(labels_ZYX: np.ndarray, properties: Mapping[str, Any], plans: Any) -> np.ndarray:
    """Put labels back into the box that the image was cropped to, and swap the axes back."""
    full = np.zeros(properties["shape_before_cropping"], dtype=labels_ZYX.dtype)
    full[tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])] = labels_ZYX
    return np.ascontiguousarray(full.transpose(plans.transpose_backward))


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
