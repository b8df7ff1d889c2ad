"""Prompts made up from a target: what people say about an object that a network has segmented already, or has not.

They click once or twenty times, all over an object or on one spot of it, near its margin, beside it by mistake; inside
of what is right and where something is missing. All coordinates are voxels (z, y, x) of the given arrays.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from sam3dnet.prompts.depth import Mask, Voxel, box_of, cut_out, near_surface
from sam3dnet.prompts.places import random_voxels
from sam3dnet.prompts.sampling import (
    MARGIN_VOXELS,
    corner_of,
    innermost_voxel,
    random_component,
    random_voxel,
    shifted,
)
from sam3dnet.prompts.types import Box, ClassPrompts, Point

SHARE_OF_KINDS = {"clicks": 0.5, "box": 0.1, "box and clicks": 0.05, "mask": 0.1, "mask and clicks": 0.05, "none": 0.2}
ONE_CLICK = 0.5  # how often there is a single one
MOST_CLICKS = 20  # positive ones
MOST_NEGATIVE_CLICKS = 10
NEGATIVE_CLICKS = 0.3  # how often there are any
SLIP = 0.04  # how often a click goes astray, by up to two voxels along each axis
CLUSTER_VOXELS = 2  # how far clicks on one spot lie from its middle, along each axis
BOX_JITTER = 0.15  # of the box's extent along each axis
CLOSE_VOXELS = 3  # to an object, along each axis


def draw_prompts(
    truth_ZYX: Mask, spacing_mm: Sequence[float], rng: Generator, valid_ZYX: Mask | None = None
) -> ClassPrompts:
    """Draw what a user might say about a class: clicks, a box, a previous mask, some of these, or nothing yet.

    Args:
        truth_ZYX: Where the class is; may be empty, then only negative clicks can be drawn.
        spacing_mm: (Z, Y, X).
        rng: Source of randomness.
        valid_ZYX: Where it is known whether the class is there, and clicks may be; None: everywhere.
    """
    if not truth_ZYX.any():
        return ClassPrompts(points=negative_clicks(truth_ZYX, rng, valid_ZYX))
    kind = str(rng.choice(list(SHARE_OF_KINDS), p=list(SHARE_OF_KINDS.values())))
    boxes = (jittered_box(random_component(truth_ZYX, rng), rng),) if "box" in kind else ()
    mask = spoiled_mask(truth_ZYX, rng) if "mask" in kind else None
    return ClassPrompts(click_set(truth_ZYX, spacing_mm, rng, valid_ZYX) if "clicks" in kind else (), boxes, mask)


def click_set(
    truth_ZYX: Mask, spacing_mm: Sequence[float], rng: Generator, valid_ZYX: Mask | None = None
) -> tuple[Point, ...]:
    """Draw the clicks of one user in any order: up to 20 on the class, at times some beside it, few of them by mistake.

    Args:
        truth_ZYX: Where the class is, not empty.
        spacing_mm: (Z, Y, X).
        rng: Source of randomness.
        valid_ZYX: As of `draw_prompts`.
    """
    valid_ZYX = np.ones_like(truth_ZYX) if valid_ZYX is None else valid_ZYX
    places: tuple[Callable[[int], list[Voxel]], ...] = (
        lambda count: random_voxels(truth_ZYX, count, rng),
        lambda count: _from_the_centre(truth_ZYX, count, spacing_mm, rng),
        lambda count: _near_the_margin(truth_ZYX, count, spacing_mm, rng),
        lambda count: _on_one_spot(truth_ZYX, count, rng),
    )
    chosen = places[rng.choice(len(places), p=(0.4, 0.3, 0.15, 0.15))]
    points = [_slipped(voxel, valid_ZYX, rng) for voxel in chosen(_how_many(MOST_CLICKS, rng))]
    clicks = [*(Point(voxel) for voxel in points), *negative_clicks(truth_ZYX, rng, valid_ZYX)]
    return tuple(clicks[i] for i in rng.permutation(len(clicks)))


def negative_clicks(truth_ZYX: Mask, rng: Generator, valid_ZYX: Mask | None = None) -> tuple[Point, ...]:
    """Draw some clicks outside a class, half of them close by; none more often than not, none where it is not valid."""
    outside_ZYX = ~truth_ZYX if valid_ZYX is None else ~truth_ZYX & valid_ZYX
    if rng.random() >= NEGATIVE_CLICKS or not outside_ZYX.any():
        return ()
    count = _how_many(MOST_NEGATIVE_CLICKS, rng)
    corner, close = _close_by(truth_ZYX, outside_ZYX)
    num_close = int(rng.binomial(count, 0.5)) if close.any() else 0
    voxels = [shifted(voxel, corner) for voxel in random_voxels(close, num_close, rng)]
    voxels += [random_voxel(outside_ZYX, rng) for _ in range(count - num_close)]
    return tuple(Point(voxel, positive=False) for voxel in voxels)


def _how_many(most: int, rng: Generator) -> int:
    """Draw a number: often one, else from one on, as often below the root of the largest as above."""
    return 1 if rng.random() < ONE_CLICK else int(np.exp(rng.uniform(0, np.log(most + 1))))


def _from_the_centre(truth_ZYX: Mask, count: int, spacing_mm: Sequence[float], rng: Generator) -> list[Voxel]:
    """Click the middle of one component, then anywhere."""
    first = innermost_voxel(random_component(truth_ZYX, rng), spacing_mm)
    return [first, *random_voxels(truth_ZYX, count - 1, rng)]


def _near_the_margin(truth_ZYX: Mask, count: int, spacing_mm: Sequence[float], rng: Generator) -> list[Voxel]:
    corner, cut = cut_out(truth_ZYX)
    margin = near_surface(cut, spacing_mm, MARGIN_VOXELS * min(spacing_mm))
    return [shifted(voxel, corner) for voxel in random_voxels(margin, count, rng)]


def _on_one_spot(truth_ZYX: Mask, count: int, rng: Generator) -> list[Voxel]:
    """Click again and again around one voxel."""
    middle = random_voxel(random_component(truth_ZYX, rng), rng)
    reach = int(rng.integers(CLUSTER_VOXELS + 1))
    z, y, x = (slice(max(0, at - reach), at + reach + 1) for at in middle)
    return [shifted(voxel, corner_of((z, y, x))) for voxel in random_voxels(truth_ZYX[z, y, x], count, rng)]


def _slipped(voxel: Voxel, valid_ZYX: Mask, rng: Generator) -> Voxel:
    if rng.random() >= SLIP:
        return voxel
    moved = np.clip(np.add(voxel, rng.integers(-2, 3, 3)), 0, np.subtract(valid_ZYX.shape, 1))
    z, y, x = moved.tolist()
    return (z, y, x) if valid_ZYX[z, y, x] else voxel


def jittered_box(object_ZYX: Mask, rng: Generator) -> Box:
    """Draw a box around an object as by hand: each face moved by up to 15 % of the extent and one voxel."""
    corner, cut = cut_out(object_ZYX)
    low = np.array(corner)
    high = low + cut.shape - 1
    reach = BOX_JITTER * np.array(cut.shape) + 1
    top = np.array(object_ZYX.shape) - 1
    new_low = np.clip(np.round(low + rng.uniform(-reach, reach)), 0, top)
    new_high = np.clip(np.round(high + rng.uniform(-reach, reach)), 0, top)
    return Box(tuple(np.minimum(new_low, new_high).tolist()), tuple(np.maximum(new_low, new_high).tolist()))


def spoiled_mask(truth_ZYX: Mask, rng: Generator) -> Mask:
    """Spoil a mask as an earlier, unfinished segmentation: grown, shrunk, or known only on one side of a plane."""
    kind = rng.integers(3)
    if kind < 2:
        box = _enlarged(box_of(truth_ZYX), 2, truth_ZYX.shape)
        change = ndimage.binary_dilation if kind == 0 else ndimage.binary_erosion
        spoiled = np.zeros_like(truth_ZYX)
        spoiled[box] = change(truth_ZYX[box], iterations=int(rng.integers(1, 3)))
        return spoiled
    axis = int(rng.integers(3))
    cut = random_voxel(truth_ZYX, rng)[axis]
    kept = np.arange(truth_ZYX.shape[axis]) <= cut
    if rng.random() < 0.5:
        kept = ~kept
    return truth_ZYX & kept.reshape([-1 if other == axis else 1 for other in range(3)])


def _close_by(mask_ZYX: Mask, outside_ZYX: Mask) -> tuple[Voxel, Mask]:
    """Return which of the voxels outside of a mask are close to it, in a box around it, and the box's corner."""
    if not mask_ZYX.any():
        return (0, 0, 0), mask_ZYX
    box = _enlarged(box_of(mask_ZYX), CLOSE_VOXELS, mask_ZYX.shape)
    around = ndimage.maximum_filter(mask_ZYX[box].view(np.uint8), 2 * CLOSE_VOXELS + 1, mode="constant") > 0
    return corner_of(box), around & outside_ZYX[box]


def _enlarged(box: tuple[slice, slice, slice], by: int, shape: Sequence[int]) -> tuple[slice, slice, slice]:
    sides = zip(box, shape, strict=True)
    z, y, x = (slice(max(0, part.start - by), min(size, part.stop + by)) for part, size in sides)
    return z, y, x
