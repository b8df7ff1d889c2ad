"""Clicks, boxes and masks drawn from a target: what a user might have said about an object.

All coordinates are voxels (z, y, x) of the given arrays, voxel centres at integers.
"""

from collections.abc import Callable, Sequence
from typing import Final

import cc3d
import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from scipy import ndimage

from sam3dnet.prompts.depth import Mask, Voxel, box_of, cut_out, deepest_voxel, depth_at, near_surface
from sam3dnet.prompts.types import Box, ClassPrompts, Point

Slices = tuple[slice, slice, slice]

MARGIN_VOXELS = 2.0  # how far from the surface a click "near the margin" may be, in units of the smallest spacing
BOX_JITTER = 0.15  # of the box's extent along each axis
SHARE_OF_KINDS = {"clicks": 0.55, "box": 0.15, "mask": 0.15, "nothing": 0.15}
FURTHER_CLICK = 0.3  # probability of one more positive click, and of one more
NEGATIVE_CLICK = 0.3  # likewise of negative ones
CLOSE_VOXELS = 3  # to an object, along each axis
FACES: Final = 6  # neighbours by which voxels are connected
CORNERS: Final = 26
MISSED, FALSE = 1, 2  # kinds of errors


def innermost_voxel(mask_ZYX: Mask, spacing_mm: Sequence[float]) -> Voxel:
    """Return the voxel that is farthest in mm from everything outside the mask; the array's border counts as outside.

    Args:
        mask_ZYX: At least one voxel is True.
        spacing_mm: (Z, Y, X).

    Raises:
        ValueError: If the mask is empty.
    """
    return deepest_voxel(mask_ZYX, spacing_mm)[0]


def deeper_voxel(mask_ZYX: Mask, than: Voxel, spacing_mm: Sequence[float]) -> Voxel | None:
    """Return the innermost voxel of the mask; None where a voxel of it is as far inside already.

    Args:
        mask_ZYX: The object.
        than: A voxel of it.
        spacing_mm: (Z, Y, X).
    """
    voxel, depth_mm = deepest_voxel(mask_ZYX, spacing_mm)
    return None if depth_at(mask_ZYX, than, spacing_mm) == depth_mm else voxel


def margin_voxel(mask_ZYX: Mask, spacing_mm: Sequence[float], rng: Generator) -> Voxel:
    """Return a random voxel of the mask near its surface.

    Args:
        mask_ZYX: At least one voxel is True.
        spacing_mm: (Z, Y, X).
        rng: Source of randomness.

    Raises:
        ValueError: If the mask is empty.
    """
    corner, cut = cut_out(mask_ZYX)
    return _shifted(random_voxel(near_surface(cut, spacing_mm, MARGIN_VOXELS * min(spacing_mm)), rng), corner)


def random_voxel(mask_ZYX: Mask, rng: Generator) -> Voxel:
    """Return a random voxel of the mask, each equally likely; the mask must not be empty."""
    before = np.cumsum([np.count_nonzero(plane) for plane in mask_ZYX])
    chosen = int(rng.integers(before[-1]))
    z = int(np.searchsorted(before, chosen, side="right"))
    from_last = np.flatnonzero(mask_ZYX[z])[chosen - before[z]]
    y, x = np.unravel_index(int(from_last), mask_ZYX.shape[1:])
    return z, int(y), int(x)


def random_component(mask_ZYX: Mask, rng: Generator) -> Mask:
    """Return one connected component of the mask, each equally likely, so that small objects are not left out."""
    labels, count = cc3d.connected_components(np.ascontiguousarray(mask_ZYX), connectivity=CORNERS, return_N=True)
    return np.asarray(labels == rng.integers(1, count + 1))


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
    return click_on_errors(errors(predicted_ZYX, truth_ZYX), spacing_mm)


def errors(predicted_ZYX: Mask, truth_ZYX: Mask) -> npt.NDArray[np.uint8]:
    """Return 0 where a mask is right, MISSED or FALSE elsewhere."""
    wrong = predicted_ZYX ^ truth_ZYX
    return wrong.view(np.uint8) + (wrong & predicted_ZYX).view(np.uint8)


def click_on_errors(errors_ZYX: npt.NDArray[np.uint8], spacing_mm: Sequence[float]) -> Point | None:
    """Click at the innermost voxel of the largest error, as `corrective_click`; of two the missed one, else the first.

    Args:
        errors_ZYX: From `errors`.
        spacing_mm: (Z, Y, X).
    """
    wrong = errors_ZYX > 0
    if not wrong.any():
        return None
    box = box_of(wrong)
    cut = np.ascontiguousarray(errors_ZYX[box])
    voxels = np.flatnonzero(wrong[box])
    labels = cc3d.connected_components(cut, connectivity=FACES).ravel()[voxels]
    sizes = np.bincount(labels)
    is_largest = sizes[labels] == sizes.max()
    is_missed = cut.ravel()[voxels] == MISSED
    chosen = int((2 * is_largest + (is_largest & is_missed)).argmax())
    component = np.zeros(cut.shape, bool)
    component.ravel()[voxels[labels == labels[chosen]]] = True
    return Point(_shifted(innermost_voxel(component, spacing_mm), _corner(box)), bool(is_missed[chosen]))


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
    close: tuple[Voxel, Mask] | None = None
    while outside.any() and rng.random() < NEGATIVE_CLICK:
        close = close or _close_by(truth_ZYX)
        if close[1].any() and rng.random() < 0.5:
            points.append(Point(_shifted(random_voxel(close[1], rng), close[0]), positive=False))
        else:
            points.append(Point(random_voxel(outside, rng), positive=False))
    return tuple(points)


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


def _close_by(mask_ZYX: Mask) -> tuple[Voxel, Mask]:
    """Return which voxels outside of a mask are close to it, in a box around it, and the box's corner."""
    if not mask_ZYX.any():
        return (0, 0, 0), mask_ZYX
    box = _enlarged(box_of(mask_ZYX), CLOSE_VOXELS, mask_ZYX.shape)
    around = ndimage.maximum_filter(mask_ZYX[box].view(np.uint8), 2 * CLOSE_VOXELS + 1, mode="constant") > 0
    return _corner(box), around & ~mask_ZYX[box]


def _enlarged(box: Slices, by: int, shape: Sequence[int]) -> Slices:
    sides = zip(box, shape, strict=True)
    z, y, x = (slice(max(0, part.start - by), min(size, part.stop + by)) for part, size in sides)
    return z, y, x


def _corner(box: Slices) -> Voxel:
    z, y, x = (part.start for part in box)
    return z, y, x


def _shifted(voxel: Voxel, corner: Voxel) -> Voxel:
    z, y, x = (position + first for position, first in zip(voxel, corner, strict=True))
    return z, y, x
