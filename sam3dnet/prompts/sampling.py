"""Clicks, boxes and masks drawn from a target: what a user might have said about an object.

All coordinates are voxels (z, y, x) of the given arrays, voxel centres at integers.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from scipy import ndimage

from sam3dnet.prompts.types import Box, ClassPrompts, Point

Mask = npt.NDArray[np.bool_]
Voxel = tuple[int, int, int]

MARGIN_VOXELS = 2.0  # how far from the surface a click "near the margin" may be, in units of the smallest spacing
BOX_JITTER = 0.15  # of the box's extent along each axis
SHARE_OF_KINDS = {"clicks": 0.55, "box": 0.15, "mask": 0.15, "nothing": 0.15}
FURTHER_CLICK = 0.3  # probability of one more positive click, and of one more
NEGATIVE_CLICK = 0.3  # likewise of negative ones
HALF_CONNECTED = ndimage.generate_binary_structure(3, 1)
FULLY_CONNECTED = ndimage.generate_binary_structure(3, 3)


def innermost_voxel(mask_ZYX: Mask, spacing_mm: Sequence[float]) -> Voxel:
    """Return the voxel that is farthest in mm from everything outside the mask; the array's border counts as outside.

    Args:
        mask_ZYX: At least one voxel is True.
        spacing_mm: (Z, Y, X).

    Raises:
        ValueError: If the mask is empty.
    """
    corner, depth = _depth(mask_ZYX, spacing_mm)
    return _voxel(np.unravel_index(int(depth.argmax()), depth.shape), corner)


def deeper_voxel(mask_ZYX: Mask, than: Voxel, spacing_mm: Sequence[float]) -> Voxel | None:
    """Return the innermost voxel of the mask; None where a voxel of it is as far inside already.

    Args:
        mask_ZYX: The object.
        than: A voxel of it.
        spacing_mm: (Z, Y, X).
    """
    corner, depth = _depth(mask_ZYX, spacing_mm)
    reached = depth[tuple(position - first for position, first in zip(than, corner, strict=True))]
    if reached == depth.max():
        return None
    return _voxel(np.unravel_index(int(depth.argmax()), depth.shape), corner)


def margin_voxel(mask_ZYX: Mask, spacing_mm: Sequence[float], rng: Generator) -> Voxel:
    """Return a random voxel of the mask near its surface.

    Args:
        mask_ZYX: At least one voxel is True.
        spacing_mm: (Z, Y, X).
        rng: Source of randomness.

    Raises:
        ValueError: If the mask is empty.
    """
    corner, depth = _depth(mask_ZYX, spacing_mm)
    near = (depth > 0) & (depth <= MARGIN_VOXELS * min(spacing_mm))
    return _voxel(random_voxel(near if near.any() else depth > 0, rng), corner)


def random_voxel(mask_ZYX: Mask, rng: Generator) -> Voxel:
    """Return a random voxel of the mask, each equally likely; the mask must not be empty."""
    inside = np.flatnonzero(mask_ZYX)
    return _voxel(np.unravel_index(int(inside[rng.integers(len(inside))]), mask_ZYX.shape))


def random_component(mask_ZYX: Mask, rng: Generator) -> Mask:
    """Return one connected component of the mask, each equally likely, so that small objects are not left out."""
    labels, count = ndimage.label(mask_ZYX, FULLY_CONNECTED)
    return labels == rng.integers(1, count + 1)


def corrective_click(predicted_ZYX: Mask, truth_ZYX: Mask, spacing_mm: Sequence[float]) -> Point | None:
    """Click as a patient user would: at the innermost voxel of the largest error.

    Errors are connected by their faces; missed parts and false parts are separate errors.

    Args:
        predicted_ZYX: The present mask.
        truth_ZYX: What it should be.
        spacing_mm: (Z, Y, X).

    Returns:
        A positive click where the object was missed, a negative one where it is not; None if nothing is wrong.
    """
    largest, positive = None, True
    for wrong, is_missed in ((truth_ZYX & ~predicted_ZYX, True), (predicted_ZYX & ~truth_ZYX, False)):
        component = _largest_component(wrong)
        if component is not None and (largest is None or component.sum() > largest.sum()):
            largest, positive = component, is_missed
    return None if largest is None else Point(innermost_voxel(largest, spacing_mm), positive)


def draw_prompts(truth_ZYX: Mask, spacing_mm: Sequence[float], rng: Generator) -> ClassPrompts:
    """Draw what a user might say about a class: clicks, a box, a previous mask, or nothing yet.

    Args:
        truth_ZYX: Where the class is; may be empty, then only negative clicks can be drawn.
        spacing_mm: (Z, Y, X).
        rng: Source of randomness.
    """
    if not truth_ZYX.any():
        return ClassPrompts(points=negative_clicks(truth_ZYX, rng))
    kind = rng.choice(list(SHARE_OF_KINDS), p=list(SHARE_OF_KINDS.values()))
    if kind == "nothing":
        return ClassPrompts()
    if kind == "mask":
        return ClassPrompts(mask=spoiled_mask(truth_ZYX, rng))
    component = random_component(truth_ZYX, rng)
    if kind == "box":
        return ClassPrompts(boxes=(jittered_box(component, rng),))
    points = [positive_click(component, spacing_mm, rng)]
    while rng.random() < FURTHER_CLICK:
        points.append(positive_click(random_component(truth_ZYX, rng), spacing_mm, rng))
    points.extend(negative_clicks(truth_ZYX, rng))
    return ClassPrompts(points=tuple(points[i] for i in rng.permutation(len(points))))


def positive_click(object_ZYX: Mask, spacing_mm: Sequence[float], rng: Generator) -> Point:
    """Click an object at its centre, anywhere inside, or near its margin, each as often."""
    places: tuple[Callable[[], Voxel], ...] = (
        lambda: innermost_voxel(object_ZYX, spacing_mm),
        lambda: random_voxel(object_ZYX, rng),
        lambda: margin_voxel(object_ZYX, spacing_mm, rng),
    )
    return Point(places[rng.integers(len(places))]())


def negative_clicks(truth_ZYX: Mask, rng: Generator) -> tuple[Point, ...]:
    """Draw some clicks outside a class, half of them close by; none more often than not."""
    points = []
    outside = ~truth_ZYX
    while outside.any() and rng.random() < NEGATIVE_CLICK:
        close = ndimage.binary_dilation(truth_ZYX, FULLY_CONNECTED, iterations=3) & outside
        where = close if close.any() and rng.random() < 0.5 else outside
        points.append(Point(random_voxel(where, rng), positive=False))
    return tuple(points)


def jittered_box(object_ZYX: Mask, rng: Generator) -> Box:
    """Draw a box around an object as by hand: each face moved by up to 15 % of the extent and one voxel."""
    corner, cut = _cut_out(object_ZYX)
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
    if kind == 0:
        return ndimage.binary_dilation(truth_ZYX, HALF_CONNECTED, iterations=int(rng.integers(1, 3)))
    if kind == 1:
        return ndimage.binary_erosion(truth_ZYX, HALF_CONNECTED, iterations=int(rng.integers(1, 3)))
    axis = int(rng.integers(3))
    cut = random_voxel(truth_ZYX, rng)[axis]
    kept = np.arange(truth_ZYX.shape[axis]) <= cut
    if rng.random() < 0.5:
        kept = ~kept
    return truth_ZYX & kept.reshape([-1 if other == axis else 1 for other in range(3)])


def _largest_component(mask_ZYX: Mask) -> Mask | None:
    labels, count = ndimage.label(mask_ZYX, HALF_CONNECTED)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    return labels == int(sizes[1:].argmax()) + 1


def _depth(mask_ZYX: Mask, spacing_mm: Sequence[float]) -> tuple[Voxel, npt.NDArray[np.float64]]:
    """Return how far (mm) each voxel of the mask's bounding box is from everything outside, and the box's corner."""
    corner, cut = _cut_out(mask_ZYX)
    return corner, ndimage.distance_transform_edt(np.pad(cut, 1), sampling=tuple(spacing_mm))[1:-1, 1:-1, 1:-1]


def _cut_out(mask_ZYX: Mask) -> tuple[Voxel, Mask]:
    """Return the lowest corner of the mask's bounding box, and the mask within the box."""
    found = ndimage.find_objects(mask_ZYX.astype(np.int8))
    if not found:
        raise ValueError("the mask is empty; expected at least one voxel")
    box = found[0]
    return _voxel([part.start for part in box]), mask_ZYX[box]


def _voxel(index: Sequence, corner: Voxel = (0, 0, 0)) -> Voxel:
    z, y, x = (int(i) + start for i, start in zip(index, corner, strict=True))
    return z, y, x
