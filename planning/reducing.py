"""Smaller training steps than a plan's, for a card on which the planned one does not fit after all."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from sam3dnet.planning import rules
from sam3dnet.planning.fingerprint import BLOCK
from sam3dnet.planning.methods import DEFAULT_METHOD, METHODS

CROP_SHRINKAGE = 0.8  # voxels of a crop relative to the one before


def smaller_steps(plans: Mapping[str, Any], name: str, fingerprint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give a plan's configuration with ever smaller steps, by the planner's rules and in its order.

    First the batch, one by one to the smallest; then activations are recomputed in the backward pass; then the crop
    shrinks to a single token.

    Args:
        plans: Content of the plan.
        name: Of the configuration.
        fingerprint: Content of the dataset's fingerprint.

    Yields:
        The configuration with all that it inherits, changed.
    """
    configuration = configuration_of(plans, name)
    for batch_size in range(configuration["batch_size"] - 1, rules.SMALLEST_BATCH - 1, -1):
        configuration = {**configuration, "batch_size": batch_size}
        yield configuration
    arch_kwargs = configuration["architecture"]["arch_kwargs"]
    if arch_kwargs["encoder"] != "none" and not arch_kwargs.get("checkpointing"):
        configuration = _with_arguments(configuration, checkpointing=True)
        yield configuration
    multiple = crop_multiple(plans, configuration)
    classes = fingerprint[BLOCK]["classes"]
    extent = rules.object_extent_voxels(classes, configuration["spacing"], plans["transpose_forward"])
    while list(configuration["patch_size"]) != list(multiple):
        configuration = _with_smaller_crop(configuration, extent, multiple)
        yield configuration


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give a copy of a plan's configuration with all that it inherits, as that of a cascade's second stage does."""
    manager = PlansManager(copy.deepcopy(dict(plans)))
    return dict(manager.get_configuration(name).configuration)


def crop_multiple(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[int]:
    """Give what crops (z, y, x) are planned in multiples of: tokens, or what another package's network wants."""
    wanted = METHODS[plans.get("sam3d", {}).get("method", DEFAULT_METHOD)].crop_multiple
    return [max(stride, wanted) for stride in configuration["architecture"]["arch_kwargs"]["token_stride"]]


def step_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a configuration says about the size of a training step."""
    arch_kwargs = configuration["architecture"]["arch_kwargs"]
    return {
        "batch_size": configuration["batch_size"],
        "patch_size": list(configuration["patch_size"]),
        "batch_dice": configuration["batch_dice"],
        "checkpointing": bool(arch_kwargs.get("checkpointing", False)),
    }


def with_step(configuration: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with another size of a training step, as `step_of` gives it."""
    changed = {**configuration, **{key: step[key] for key in ("batch_size", "patch_size", "batch_dice")}}
    arguments = {"checkpointing": True} if step["checkpointing"] else {}
    return _with_arguments(changed, patch_size=list(step["patch_size"]), **arguments)


def _with_smaller_crop(
    configuration: Mapping[str, Any], extent: Sequence[float] | None, multiple: Sequence[int]
) -> dict[str, Any]:
    """Shrink the crop until it has lost voxels, as the planner would have planned it for so many."""
    median_shape, spacing_mm = configuration["median_image_size_in_voxels"], configuration["spacing"]
    voxels = float(math.prod(configuration["patch_size"]))
    patch = list(configuration["patch_size"])
    while math.prod(patch) >= math.prod(configuration["patch_size"]):
        voxels *= CROP_SHRINKAGE
        patch = rules.choose_patch_size(extent, median_shape, spacing_mm, multiple, voxels).value
    batch_dice = rules.choose_batch_dice(patch, median_shape).value
    return _with_arguments({**configuration, "patch_size": patch, "batch_dice": batch_dice}, patch_size=list(patch))


def _with_arguments(configuration: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    architecture = configuration["architecture"]
    arch_kwargs = {**architecture["arch_kwargs"], **changes}
    return {**configuration, "architecture": {**architecture, "arch_kwargs": arch_kwargs}}
