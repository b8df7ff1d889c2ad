"""Whether a box says what a mask says already: that the object reaches just as far."""

from collections.abc import Sequence

import numpy as np

from sam3dnet.interactive.correction import Slices
from sam3dnet.preprocessing.geometry import Mask
from sam3dnet.prompts.made_up import BOX_JITTER
from sam3dnet.prompts.types import Box

DRAWN_VOXELS = 1.5  # by which a face may be off beside a share of the extent: what training takes for well drawn


def looked_at(box: Box, shape: Sequence[int]) -> Slices:
    """Give the part of an image of this shape that `box_agrees` must see: the box and what is just too far from it."""
    sides = []
    for low, high, tolerance, size in zip(box.low, box.high, _tolerances(box), shape, strict=True):
        reach = 0 if low == high else int(tolerance) + 1
        first = int(np.clip(np.floor(low + 0.5) - reach, 0, size - 1))
        sides.append(slice(first, int(np.clip(np.floor(high + 0.5) + reach, first, size - 1)) + 1))
    z, y, x = sides
    return z, y, x


def box_agrees(mask_zyx: Mask, seen: Slices, box: Box) -> bool:
    """Tell whether a mask ends where a box does, as nearly as boxes are drawn.

    Along an axis on which the box is one voxel thick it says nothing of where the object ends.

    Args:
        mask_zyx: In the part `seen` of the image.
        seen: From `looked_at`.
        box: In voxels (z, y, x) of the image.
    """
    if not mask_zyx.any():
        return False
    for axis, (part, tolerance) in enumerate(zip(seen, _tolerances(box), strict=True)):
        if box.low[axis] == box.high[axis]:
            continue
        along = np.flatnonzero(mask_zyx.any(axis=tuple(other for other in range(3) if other != axis)))
        ends = part.start + along[0], part.start + along[-1]
        if abs(ends[0] - box.low[axis]) > tolerance or abs(ends[1] - box.high[axis]) > tolerance:
            return False
    return True


def _tolerances(box: Box) -> list[float]:
    return [BOX_JITTER * (high - low + 1) + DRAWN_VOXELS for low, high in zip(box.low, box.high, strict=True)]
