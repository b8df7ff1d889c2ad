"""The planning rules: one small function a decision, each giving a value with its reason and source.

Shapes and strides are (Z, Y, X) in voxels of the planned grid, spacings (Z, Y, X) in millimetres. No rule reads a file
or knows a network; thresholds are the named constants here, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam3dnet.preprocessing.modalities import shows_microscopy

BATCH_DICE_BELOW = 0.5  # share of the median image that a crop shows
NNUNET = "nnU-Net (Isensee et al. 2021)"
PRIMUS = "Primus (Wald et al. 2025)"
MEASURED = "measured on two CPU cores"

# Primus: tokens of 8^3 voxels beat 16^3 clearly; the detail stem keeps what is finer than a token.
TOKEN_STRIDE = 8
# Without a transformer nothing but depth lets a voxel see what is far, and deep levels cost little.
CONVOLUTIONAL_STRIDES = (16, 8)
# nnU-Net: an axis is halved while this many features are left along it.
FEWEST_FEATURES = 4
# SAM's own weights serve strides 2 to 16; finer tokens pay where the memory allows them.
PRETRAINED_STRIDES = (4, 8, 16)
# Tokens of 8 voxels are worth a crop that does not hold the largest objects, as long as it has this many voxels.
GOOD_CROP_VOXELS = 128 * 1024
# An image of at most this many voxels has so few tokens at stride 8 that stride 4 is worth trying on a GPU.
TINY_IMAGE_VOXELS = 48**3
# Three levels at least: nnU-Net's loss leaves out the two coarsest outputs, and of two levels none would remain.
SMALLEST_LARGEST_STRIDE = 4
# Seconds of a training step on the core that `step_time` estimates for. On Dataset501, 32x48x32 (0.32 s; 2,600 steps)
# reached 0.87 in the time in which 40x56x40 (0.52 s) would have had 1,500 steps.
CPU_STEP_SECONDS = 0.35
# Objects that need more context than that get it, up to here.
CPU_COVER_SECONDS = 0.7
# However long its step takes, a crop has this many voxels.
CPU_LEAST_VOXELS = 24 * 1024
# Beyond this a crop costs more time a step than its context gains; 3DSAM-adapter uses 128^3, nnU-Net seldom more.
MOST_PATCH_VOXELS = 160**3
# A step on a CPU may take so many times as long as one of as many isotropic voxels; see `coarser_token_strides`.
LONGEST_STEP = 1.5
FEATURES_OF_VOXELS, MOST_FEATURES = 16, 96  # channels at full resolution; of any level
SMALLEST_BATCH = 2
# More samples a step than this no longer help a fixed number of hours.
LARGEST_BATCH = 12
# nnU-Net: a step sees at most 5 % of the dataset.
DATASET_SHARE_OF_A_BATCH = 0.05
OBJECT_PERCENTILE = 95.0
DEFAULT_MEMORY_GB = 8.0
# What the allocator's fragments, the CUDA context and cuDNN's workspaces take beside the tensors.
USABLE_SHARE_OF_MEMORY = 0.8
# The window grows at most by its own width on either side, or air beside the body would flatten soft tissue.
WIDEST_WINDOW_GROWTH = 1.0
# nnU-Net: a low-resolution stage where the crop sees less than a quarter of the image, if it shrinks the image by half.
LOWRES_COVERAGE = 0.25
# nnU-Net's crop on a card of 8 GB; a CPU's crops are small to save time, which makes no image a large one.
CARD_CROP_VOXELS = 128**3
LOWRES_SMALLEST_SHRINKAGE = 2.0
LOWRES_STEP = 1.03

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Decision:
    """One planning decision: a JSON value, why it was taken, and whose rule it is."""

    name: str
    value: Any
    reason: str
    source: str


@dataclass(frozen=True)
class Budget:
    """What one training step may cost.

    Attributes:
        bytes: Most memory of a step; None for no limit.
        seconds: Most time of a step where time is short (a machine without a card), on the core that estimates are for;
            None for no limit.
        cover_seconds: As `seconds`, of a crop that has to be larger to cover the objects.
        patch_voxels: Most voxels of a crop, whatever it costs.
    """

    bytes: int | None
    seconds: float | None = None
    cover_seconds: float | None = None
    patch_voxels: int = MOST_PATCH_VOXELS

    @property
    def is_time(self) -> bool:
        """Whether time is short, and not memory alone."""
        return self.seconds is not None


def choose_budget(device: str, memory_target_gb: float | None, free_bytes: int | None) -> tuple[Budget, Decision]:
    """Choose what a training step may cost.

    Args:
        device: "cpu", "cuda" or "mps", with or without an index.
        memory_target_gb: The user's figure; it wins over everything.
        free_bytes: Free memory of the device, if it could be asked.
    """
    if memory_target_gb is None and device.startswith("cpu"):
        reason = (
            "measured: on a CPU steps per minute matter more than crop size at a short time budget; "
            f"{CPU_COVER_SECONDS} s where the objects need it, on one core such as that which estimates are for"
        )
        usable_bytes = free_bytes and int(free_bytes * USABLE_SHARE_OF_MEMORY)
        budget = Budget(usable_bytes, CPU_STEP_SECONDS, CPU_COVER_SECONDS)
        return budget, Decision("budget", f"{CPU_STEP_SECONDS} s a step", reason, MEASURED)
    if memory_target_gb is not None:
        gigabytes, reason = memory_target_gb, "asked for by the memory target"
    elif free_bytes is not None:
        gigabytes, reason = free_bytes / 1e9, "free memory of the card now"
    else:
        gigabytes, reason = DEFAULT_MEMORY_GB, "the card's memory is not known; a common card has this much"
    usable = int(gigabytes * 1e9 * USABLE_SHARE_OF_MEMORY)
    reason += f"; {USABLE_SHARE_OF_MEMORY:.0%} of it for tensors"
    return Budget(usable), Decision("budget", f"{gigabytes:.1f} GB", reason, "sam3dnet")


def stride_candidates(
    pretrained: bool, is_time: bool, median_shape: Sequence[float], convolutional: bool = False
) -> tuple[int, ...]:
    """List the token strides to try for the finest axis, best first; the last one is taken if none is affordable."""
    if convolutional:
        return CONVOLUTIONAL_STRIDES
    if is_time:
        return (TOKEN_STRIDE,)
    if pretrained:
        return PRETRAINED_STRIDES
    if math.prod(median_shape) <= TINY_IMAGE_VOXELS:
        return (TOKEN_STRIDE // 2, TOKEN_STRIDE)
    return (TOKEN_STRIDE,)


def leaves_features(patch: Sequence[int], token_stride: Sequence[int]) -> bool:
    """Tell whether a crop is long enough for convolutions alone along the axes that are halved most."""
    most = max(token_stride)
    return all(
        length >= FEWEST_FEATURES * stride for length, stride in zip(patch, token_stride, strict=True) if stride == most
    )


def is_affordable(patch: Sequence[int], need: Sequence[int], token_stride: Sequence[int]) -> bool:
    """Tell whether tokens may stay as fine as this: their crop covers the objects, or is large and they are not fine.

    Args:
        patch: The crop that fits the budget with these tokens.
        need: The crop that covers the objects.
        token_stride: (Z, Y, X).
    """
    if all(p >= n for p, n in zip(patch, need, strict=True)):
        return True
    return max(token_stride) >= TOKEN_STRIDE and math.prod(patch) >= GOOD_CROP_VOXELS


def choose_token_stride(
    finest: int, spacing_mm: Sequence[float], median_shape: Sequence[float], convolutional: bool = False
) -> Decision:
    """Choose the voxels that a token covers along each axis, near to isotropic in millimetres.

    Args:
        finest: Stride of the axis with the finest spacing: a power of two.
        spacing_mm: (Z, Y, X).
        median_shape: An axis of few voxels gets no stride beyond them.
        convolutional: Whether tokens are no more than a network's deepest level.
    """
    token_mm = finest * min(spacing_mm)
    wanted = [round(math.log2(token_mm / mm)) for mm in spacing_mm]
    room = [math.floor(math.log2(max(1, round(n)))) for n in median_shape]
    exponents = [max(0, min(w, r, round(math.log2(finest)))) for w, r in zip(wanted, room, strict=True)]
    if 2 ** max(exponents) < SMALLEST_LARGEST_STRIDE:
        longest = max(range(3), key=lambda axis: (median_shape[axis], -spacing_mm[axis]))
        exponents[longest] = round(math.log2(SMALLEST_LARGEST_STRIDE))
    stride = [2**exponent for exponent in exponents]
    reason = f"{_covered(stride, spacing_mm)}: near to isotropic, {finest} voxels along the finest axis"
    if convolutional:
        reason += f", of which a crop has {FEWEST_FEATURES} at least if it is long enough"
        return Decision("token_stride", stride, reason, NNUNET)
    return Decision("token_stride", stride, reason, PRIMUS if finest == TOKEN_STRIDE else "3DSAM-adapter, SAM")


def _covered(stride: Sequence[int], spacing_mm: Sequence[float]) -> str:
    size = " x ".join(f"{s * mm:.3g}" for s, mm in zip(stride, spacing_mm, strict=True))
    return f"a token covers {size} mm"


def coarser_token_strides(
    fine: Sequence[int], spacing_mm: Sequence[float], median_shape: Sequence[float]
) -> list[Decision]:
    """List coarser tokens, for where fine ones take too long: first twice as wide within slices, then all around.

    Args:
        fine: From `choose_token_stride`.
        spacing_mm: (Z, Y, X).
        median_shape: An axis of few voxels gets no stride beyond them.
    """
    coarse = choose_token_stride(2 * max(fine), spacing_mm, median_shape).value
    within = [c if f == max(fine) else f for f, c in zip(fine, coarse, strict=True)]
    slices = list(fine).count(max(fine)) == 2
    values = [value for value in ((within, coarse) if slices else (coarse,)) if value != fine]
    reason = "coarser than near to isotropic, since a step would take too long"
    return [
        Decision("token_stride", value, f"{_covered(value, spacing_mm)}: {reason}", MEASURED)
        for n, value in enumerate(values)
        if value not in values[:n]
    ]


def choose_stage_strides(token_stride: Sequence[int], spacing_mm: Sequence[float]) -> Decision:
    """Split the token stride into factors of two a level: axes less than twice as coarse as the finest are halved.

    There are as many levels as the largest stride has factors, so an axis is halved in time, however coarse it is.

    Args:
        token_stride: Voxels a token covers along (z, y, x).
        spacing_mm: Of the image, (Z, Y, X).
    """
    left = np.log2(token_stride).round().astype(int)
    spacing = np.asarray(spacing_mm, dtype=float)
    strides = [[1, 1, 1]]
    while left.any():
        near = spacing < 2 * spacing[left > 0].min()
        halved = (left > 0) & (near | (left == left.max()))
        strides.append([2 if is_halved else 1 for is_halved in halved])
        spacing, left = spacing * strides[-1], left - halved
    return Decision("strides", strides, "axes less than twice as coarse as the finest are halved", NNUNET)


def choose_features(strides: Sequence[Sequence[int]]) -> Decision:
    """Choose the channels of each level above the tokens: as many as a level of cubes of that many voxels has.

    A level that halves three axes has twice the channels and half the work of the one before. Where one axis or two
    are halved, twice the channels would be twice or as much work.

    Args:
        strides: Factor of each level relative to the level before, finest first, the tokens last.
    """
    voxels = np.cumprod([math.prod(stride) for stride in strides[:-1]])
    features = [min(MOST_FEATURES, 8 * round(FEATURES_OF_VOXELS * n ** (1 / 3) / 8)) for n in voxels]
    return Decision("features", features, "grow with the cube root of the voxels that a feature covers", MEASURED)


def choose_kernels(spacing_mm: Sequence[float], strides: Sequence[Sequence[int]]) -> Decision:
    """Choose the kernel of each level: one voxel along an axis as long as it is at least twice as coarse as the finest.

    An axis that a level halves is never passed over.

    Args:
        spacing_mm: Of the image, (Z, Y, X).
        strides: Factor of each level relative to the level before, finest first, the tokens last.
    """
    kernels: list[list[int]] = []
    spacing = np.asarray(spacing_mm, dtype=float)
    near = np.zeros(3, bool)
    for stride in np.asarray(strides):
        spacing = spacing * stride
        near |= spacing / spacing.min() < 2
        kernels.append([3 if whole else 1 for whole in near | (stride > 1)])
    kernels[-1] = [3, 3, 3]
    reason = "convolutions cover one voxel along axes that are twice as coarse as the finest"
    return Decision("kernels", kernels, reason, NNUNET)


def leave_one_output(strides: Decision) -> Decision:
    """Join all stages below half resolution: of two outputs nnU-Net's loss leaves out the coarser one."""
    first, second, *others = strides.value
    joined = [first, second, [math.prod(stage[axis] for stage in others) for axis in range(3)]]
    return Decision(strides.name, joined, "logits at full resolution alone: the loss leaves out coarser ones", NNUNET)


def round_up(shape: Sequence[float], multiple: Sequence[int]) -> Shape:
    """Round each axis up to a multiple, and to at least one."""
    rounded = [max(1, math.ceil(round(n, 3) / m)) * m for n, m in zip(shape, multiple, strict=True)]
    return rounded[0], rounded[1], rounded[2]


def choose_patch_size(
    object_extent: Sequence[float] | None,
    median_shape: Sequence[float],
    spacing_mm: Sequence[float],
    token_stride: Sequence[int],
    voxels: float,
) -> Decision:
    """Choose the crop: the largest objects first, then as much around them as the budget allows.

    Grows token by token along the axis that is shortest in millimetres, first up to the objects' extent, then up to the
    median image.

    Args:
        object_extent: 95th percentile of the largest objects, in voxels of the planned grid; None if not known.
        median_shape: Median image; the crop is never larger (rounded up to whole tokens).
        spacing_mm: (Z, Y, X).
        token_stride: (Z, Y, X).
        voxels: Most voxels of the crop.
    """
    ceiling = round_up([max(1, round(n)) for n in median_shape], token_stride)
    need = patch_need(object_extent, median_shape, token_stride)
    patch = grow(round_up([1, 1, 1], token_stride), need, spacing_mm, token_stride, voxels)
    covers = all(p >= n for p, n in zip(patch, need, strict=True))
    patch = grow(patch, ceiling, spacing_mm, token_stride, voxels)
    if patch == ceiling:
        reason = "the whole median image"
    elif covers:
        reason = f"covers {OBJECT_PERCENTILE:.0f} % of the largest objects ({_by(need)}), grown to {voxels:,.0f} voxels"
    else:
        reason = f"the largest objects ({_by(need)}) do not fit {voxels:,.0f} voxels; near to isotropic in mm"
    return Decision("patch_size", list(patch), reason, "sam3dnet")


def patch_need(object_extent: Sequence[float] | None, median_shape: Sequence[float], stride: Sequence[int]) -> Shape:
    """Give the crop that covers the objects, in whole tokens, no larger than the median image."""
    ceiling = round_up([max(1, round(n)) for n in median_shape], stride)
    if object_extent is None:
        return ceiling
    covering = round_up(object_extent, stride)
    return min(covering[0], ceiling[0]), min(covering[1], ceiling[1]), min(covering[2], ceiling[2])


def grow(start: Shape, target: Shape, spacing_mm: Sequence[float], step: Sequence[int], voxels: float) -> Shape:
    """Grow a crop towards a target, step by step along the axis shortest in mm, while it has at most `voxels`."""
    patch = list(start)
    open_axes = {axis for axis in range(3) if patch[axis] < target[axis]}
    while open_axes:
        axis = min(open_axes, key=lambda a: (round(patch[a] * spacing_mm[a], 3), patch[a] / target[a]))
        larger = [n + step[a] if a == axis else n for a, n in enumerate(patch)]
        if math.prod(larger) <= voxels:
            patch = larger
        if math.prod(larger) > voxels or patch[axis] >= target[axis]:
            open_axes.discard(axis)
    return patch[0], patch[1], patch[2]


def choose_batch_size(patch_size: Sequence[int], dataset_voxels: float, largest: Callable[[int], int]) -> Decision:
    """Choose the batch: at least two, at most 5 % of the dataset's voxels, within the budget.

    Args:
        patch_size: (Z, Y, X).
        dataset_voxels: Voxels of all training images on the planned grid.
        largest: Gives the largest batch within the budget, at most the one it is asked about.
    """
    patch_voxels = math.prod(patch_size)
    limit = min(LARGEST_BATCH, round(dataset_voxels * DATASET_SHARE_OF_A_BATCH / patch_voxels))
    size = largest(limit) if limit > SMALLEST_BATCH else SMALLEST_BATCH
    reason = (
        f"at least {SMALLEST_BATCH}; at most {DATASET_SHARE_OF_A_BATCH:.0%} of the dataset and the budget of a step"
    )
    return Decision("batch_size", size, reason, NNUNET)


def choose_mirror_axes(
    left_right: int | None,
    axes: Sequence[int] = (0, 1, 2),
    unlike: Sequence[tuple[str, str]] = (),
    channel_names: Iterable[str] = (),
) -> Decision:
    """Choose the axes along which training and prediction mirror: left and right alone, the body's own symmetry.

    Args:
        left_right: Array axis of the files that runs from left to right; None if it is not known.
        axes: nnU-Net's transpose_forward.
        unlike: Classes that are called left and right, and are no mirror images of each other.
        channel_names: Tell what made the images.

    Returns:
        A decision whose value lists axes of the planned grid.
    """
    if left_right is None:
        return Decision("mirror_axes", [0, 1, 2], "the images have no orientation", NNUNET)
    if unlike:
        named = ", ".join(f"{one} and {other}" for one, other in unlike)
        return Decision("mirror_axes", [], f"none: {named} differ by their side, and are no mirror images", "sam3dnet")
    if shows_microscopy(channel_names):
        reason = "what lies under a microscope has no upper side, whatever the images' headers say"
        return Decision("mirror_axes", [0, 1, 2], reason, NNUNET)
    reason = (
        "left and right, as the images' headers name them: no patient lies upside down or back to front in one, and to "
        "learn it all the same costs time (Dataset501 after 400 steps: Dice on patches 0.85, with all three axes 0.78)"
    )
    return Decision("mirror_axes", [list(axes).index(left_right)], reason, MEASURED)


def choose_batch_dice(patch_size: Sequence[int], median_shape: Sequence[float]) -> Decision:
    """Decide whether the Dice loss is taken over the batch at once, as nnU-Net does where a crop shows little.

    A crop without an object says nothing in a Dice loss of its own, however much is predicted in it; over the batch,
    what is predicted there in vain counts.

    Args:
        patch_size: (Z, Y, X).
        median_shape: Median image on the same grid.
    """
    share = math.prod(patch_size) / math.prod(median_shape)
    reason = f"a crop shows {min(share, 1):.0%} of the median image; over the batch where it is less than half"
    return Decision("batch_dice", share < BATCH_DICE_BELOW, reason, NNUNET + ", threshold by sam3dnet")


def choose_prompts(wanted: bool) -> Decision:
    """Decide whether the network answers clicks, boxes and previous masks besides segmenting without them."""
    if not wanted:
        return Decision("prompts", False, "asked for with --no-prompts", "user")
    return Decision("prompts", True, "one network segments by itself and answers clicks, boxes and masks", "sam3dnet")


def smallest_class(classes: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name the class with the smallest median volume among those that occur; None if none does."""
    volumes = {name: float(np.median(c["volume_mm3"])) for name, c in classes.items() if c["volume_mm3"]}
    return min(volumes, key=lambda name: volumes[name]) if volumes else None


def choose_window(
    channel: str,
    properties: Mapping[str, float],
    quantiles: Sequence[float] | None,
    classes: Mapping[str, Mapping[str, Any]],
) -> Decision:
    """Choose the CT window of one channel, and the mean and standard deviation of the clipped foreground.

    Args:
        channel: Its key in the fingerprint ("0").
        properties: nnU-Net's foreground intensity properties of the channel.
        quantiles: Foreground intensities at evenly spaced quantiles; None keeps nnU-Net's mean and deviation.
        classes: Per class, volumes and typical intensities around it.

    Returns:
        A decision whose value has percentile_00_5, percentile_99_5, mean and std.
    """
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    reason = f"foreground percentiles 0.5 and 99.5 ({low:.5g} to {high:.5g})"
    name = smallest_class(classes)
    around = classes[name].get("around", {}).get(channel, {}) if name else {}
    if around:
        reach = WIDEST_WINDOW_GROWTH * (high - low)
        low = min(low, max(around["percentile_05_0"], low - reach))
        high = max(high, min(around["percentile_95_0"], high + reach))
        reason += f", widened to the surroundings of the smallest class, {name!r}"
    mean, std = properties["mean"], properties["std"]
    if quantiles:
        clipped = np.clip(quantiles, low, high)
        mean, std = float(np.mean(clipped)), float(np.std(clipped))
    value = {"percentile_00_5": float(low), "percentile_99_5": float(high), "mean": mean, "std": std}
    return Decision(f"window of channel {channel}", value, reason, NNUNET + ", widened by sam3dnet")


def object_extent_voxels(
    classes: Mapping[str, Mapping[str, Any]], spacing_mm: Sequence[float], axes: Sequence[int] = (0, 1, 2)
) -> list[float] | None:
    """Give the 95th percentile of each class's largest object, the largest over classes, on the planned grid.

    Args:
        classes: The fingerprint's classes, extents in mm on the image's own axes.
        spacing_mm: Of the planned grid, after the axes are reordered.
        axes: nnU-Net's transpose_forward.
    """
    extents = [
        np.percentile(np.asarray(c["largest_extent_mm"], dtype=float), OBJECT_PERCENTILE, axis=0)
        for c in classes.values()
        if c["largest_extent_mm"]
    ]
    if not extents:
        return None
    largest_mm = np.max(extents, axis=0)[list(axes)]
    return [float(mm / s) for mm, s in zip(largest_mm, spacing_mm, strict=True)]


def choose_lowres_spacing(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    patch_voxels: Callable[[Sequence[float], Sequence[float]], float],
) -> Decision:
    """Choose the spacing of a low-resolution stage where the full-resolution crop sees too little of the image.

    The spacing grows, the finer axes first, until the crop holds a quarter of the median image; not along an axis of
    which a single voxel is left. An image of which a card's crop would hold a quarter needs none, however small the
    crop of this device is.

    Args:
        spacing_mm: Of the full-resolution stage.
        median_shape: Of the full-resolution stage.
        patch_voxels: (spacing, median shape) -> voxels of the crop planned for them.

    Returns:
        A decision whose value is the spacing, or None for no such stage.
    """
    spacing = np.asarray(spacing_mm, dtype=float).copy()
    full = np.asarray(median_shape, dtype=float)
    shape = full.copy()
    if math.prod(full) * LOWRES_COVERAGE <= CARD_CROP_VOXELS:
        reason = f"a median image of {_by([round(n) for n in full])} voxels is not large"
        return Decision("spacing (3d_lowres)", None, reason, "sam3dnet")
    while patch_voxels(spacing.tolist(), shape.tolist()) / math.prod(shape) < LOWRES_COVERAGE:
        several = shape / LOWRES_STEP >= 1  # an axis of one voxel stays
        finer = several & (spacing.max(where=several, initial=0) / spacing > 2)
        spacing[finer if finer.any() else several] *= LOWRES_STEP
        shape = full * np.asarray(spacing_mm) / spacing
    shrinkage = math.prod(full) / math.prod(shape)
    if shrinkage < LOWRES_SMALLEST_SHRINKAGE:
        reason = "the full-resolution crop sees enough of the median image"
        return Decision("spacing (3d_lowres)", None, reason, NNUNET)
    reason = f"the crop sees {LOWRES_COVERAGE:.0%} of a median image with {shrinkage:.1f} times fewer voxels"
    return Decision("spacing (3d_lowres)", [float(mm) for mm in spacing], reason, NNUNET)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
