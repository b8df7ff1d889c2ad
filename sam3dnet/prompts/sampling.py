"""Voxels of a mask that a user might click, and errors of a mask that one would.

All coordinates are voxels (z, y, x) of the given arrays, voxel centres at integers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from sam3dnet.prompts.components import FACES, connected
from sam3dnet.prompts.depth import Mask, Voxel, box_of, cut_out, deepest_voxel, depth_at, near_surface
from sam3dnet.prompts.types import Point

MARGIN_VOXELS = 2.0  # how far from the surface a click "near the margin" may be, in units of the smallest spacing
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
    return shifted(random_voxel(near_surface(cut, spacing_mm, MARGIN_VOXELS * min(spacing_mm)), rng), corner)


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
    labels, count = connected(mask_ZYX)
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
    labels = connected(cut, FACES)[0].ravel()[voxels]
    sizes = np.bincount(labels)
    is_largest = sizes[labels] == sizes.max()
    is_missed = cut.ravel()[voxels] == MISSED
    chosen = int((2 * is_largest + (is_largest & is_missed)).argmax())
    component = np.zeros(cut.shape, bool)
    component.ravel()[voxels[labels == labels[chosen]]] = True
    return Point(shifted(innermost_voxel(component, spacing_mm), corner_of(box)), bool(is_missed[chosen]))


def corner_of(box: tuple[slice, slice, slice]) -> Voxel:
    """Return the first voxel of a box."""
    z, y, x = (part.start for part in box)
    return z, y, x


def shifted(voxel: Voxel, corner: Voxel) -> Voxel:
    """Return a voxel of a box as one of the array that the box was cut from."""
    z, y, x = (position + first for position, first in zip(voxel, corner, strict=True))
    return z, y, x
