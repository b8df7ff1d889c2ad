"""A correction changes the objects that were named, not others that happen to lie in the same window."""

import cc3d
import numpy as np
from scipy.ndimage import binary_dilation

from sam3dnet.interactive.correction import CorrectedBox, Floats
from sam3dnet.preprocessing.geometry import Mask, nearest_voxel
from sam3dnet.prompts.sampling import CORNERS
from sam3dnet.prompts.types import ClassPrompts

REACH_VOXELS = 2  # around a click that lies in no object, before or after


def within_named_objects(corrected: CorrectedBox, lead_zyx: Floats, named: ClassPrompts) -> CorrectedBox:
    """Take back what a correction changes in objects that no prompt names.

    An object is what hangs together by corners in the mask before and after taken together, so an object that grows,
    falls apart or merges with another is one.

    Args:
        corrected: What is added in a box.
        lead_zyx: In the box, logit of the class minus the highest other before that.
        named: Clicks that ask for a change, boxes and mask, in voxels as the box.
    """
    before_zyx, after_zyx = lead_zyx > 0, lead_zyx + corrected.values_zyx > 0
    changed_zyx = before_zyx ^ after_zyx
    if not changed_zyx.any():
        return corrected
    objects_zyx = cc3d.connected_components(before_zyx | after_zyx, connectivity=CORNERS)
    kept = _named(objects_zyx, corrected, named)
    kept[0] = True
    others_zyx = ~kept[objects_zyx]
    if not (others_zyx & changed_zyx).any():
        return corrected
    around_zyx = binary_dilation(others_zyx) & (others_zyx | (objects_zyx == 0))
    return CorrectedBox(corrected.low, np.where(around_zyx, np.float32(0), corrected.values_zyx))


def _named(objects_zyx: np.ndarray, corrected: CorrectedBox, named: ClassPrompts) -> Mask:
    """Tell of each number of an object whether a prompt names it."""
    found = np.zeros(int(objects_zyx.max()) + 1, bool)
    for point in named.points:
        voxel = corrected.place(nearest_voxel(point.at, corrected.high))
        if all(0 <= at < size for at, size in zip(voxel, objects_zyx.shape, strict=True)):
            found[objects_zyx[voxel] or _around(objects_zyx, voxel)] = True
    for box in named.boxes:
        low = np.floor(np.subtract(box.low, corrected.low) + 0.5).astype(int).clip(min=0)
        stop = np.floor(np.subtract(box.high, corrected.low) + 1.5).astype(int).clip(min=0)
        found[objects_zyx[tuple(slice(*side) for side in zip(low, stop, strict=True))]] = True
    if named.mask is not None:
        found[objects_zyx[named.mask[corrected.box]]] = True
    return found


def _around(objects_zyx: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    return objects_zyx[tuple(slice(max(0, at - REACH_VOXELS), at + REACH_VOXELS + 1) for at in voxel)]
