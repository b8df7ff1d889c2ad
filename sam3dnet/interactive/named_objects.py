"""Only the objects of a label map that prompts name; an object is what hangs together by corners in a class's mask.

A class's prompts name each of its objects that holds a positive click, that a box holds, or that shares a voxel with a
previous mask. A box holds each object of which at least half of the voxels lie in it, and if there is none the one with
the most voxels in it; a box in one slice is about what lies in that slice, so the rest of an object does not count.
Negative clicks name nothing, nor does a click after which its voxel was clicked negatively.

All arrays and prompts are on the grid of the label map, prompts in its voxels (z, y, x).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt

from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.correction import Slices
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.depth import box_of
from sam3dnet.prompts.sampling import CORNERS
from sam3dnet.prompts.types import Box, ClassPrompts

Classes = Mapping[int, PromptClass]  # by channel of the logits
Said = Mapping[int, ClassPrompts]


def only_named_objects(labels_ZYX: np.ndarray, said: Said, classes: Classes) -> np.ndarray:
    """Make background of all that no prompt names, other classes too.

    Args:
        labels_ZYX: Is left as it is.
        said: All prompts of each class.
        classes: Of which something may be said.

    Returns:
        What is named, with its labels; the label map itself where the prompts are not such as name something.
    """
    naming = {number: prompts for number, prompts in said.items() if names_something(prompts)}
    if not naming:
        return labels_ZYX
    result = np.zeros_like(labels_ZYX)
    for number, prompts in naming.items():
        found = _find(labels_ZYX, prompts, classes[number])
        if found is not None:
            np.copyto(result[found.box], labels_ZYX[found.box], where=found.named_zyx)
    return result


def without_unnamed_objects(
    labels_ZYX: np.ndarray, said: Said, classes: Classes, numbers: Collection[int]
) -> np.ndarray:
    """Take out those objects of some classes that no prompt names; other classes stay.

    What is taken out becomes background, or where classes are regions what the other regions say that hold it. What
    prompts of another region name is not taken out.

    Args:
        labels_ZYX: Is left as it is.
        said: All prompts of each class.
        classes: Of which something may be said.
        numbers: Classes in question; one of which nothing is named stays as it is.

    Returns:
        The label map that is left.
    """
    naming = {number: prompts for number, prompts in said.items() if names_something(prompts)}
    found = {number: _find(labels_ZYX, prompts, classes[number]) for number, prompts in naming.items()}
    result, kept_ZYX = labels_ZYX.copy(), np.zeros(labels_ZYX.shape, bool)
    for one in found.values():
        if one is not None:
            kept_ZYX[one.box] |= one.named_zyx
    for number in sorted(numbers):
        one = found.get(number)
        if one is not None:
            left_zyx, gone_zyx = result[one.box], one.mask_zyx & ~kept_ZYX[one.box]
            for member in classes[number].members:
                left_zyx[gone_zyx & (left_zyx == member)] = _label_without(number, member, classes)
    return result


def names_something(prompts: ClassPrompts) -> bool:
    """Tell whether prompts of a class are such as name objects, whether or not these are there."""
    has_mask = prompts.mask is not None and bool(prompts.mask.any())
    return bool(_clicked(prompts) or prompts.boxes) or has_mask


@dataclass(frozen=True, eq=False)
class _Found:
    """What there is of a class in its bounding box, and what of it is named."""

    box: Slices
    mask_zyx: Mask
    named_zyx: Mask


def _find(labels_ZYX: np.ndarray, prompts: ClassPrompts, wanted: PromptClass) -> _Found | None:
    """Find the named objects of a class; None where the label map has none of the class."""
    mask_ZYX = wanted.mask(labels_ZYX)
    if not mask_ZYX.any():
        return None
    box = box_of(mask_ZYX)
    mask_zyx = np.ascontiguousarray(mask_ZYX[box])
    objects_zyx, count = cc3d.connected_components(mask_zyx, connectivity=CORNERS, return_N=True)
    named = np.zeros(count + 1, bool)
    for voxel in _clicked(prompts):
        if all(part.start <= at < part.stop for at, part in zip(voxel, box, strict=True)):
            named[objects_zyx[tuple(at - part.start for at, part in zip(voxel, box, strict=True))]] = True
    for drawn in prompts.boxes:
        named |= _held(objects_zyx, count, drawn, box)
    if prompts.mask is not None:
        named[objects_zyx[prompts.mask[box]]] = True
    named[0] = False
    return _Found(box, mask_zyx, named[objects_zyx])


def _clicked(prompts: ClassPrompts) -> list[Voxel]:
    """Give the voxels that were clicked positively, of two clicks on one by the later."""
    clicks = {point.voxel: point.positive for point in prompts.points}
    return [voxel for voxel, positive in clicks.items() if positive]


def _held(objects_zyx: np.ndarray, count: int, drawn: Box, box: Slices) -> Mask:
    """Tell of each number of an object in a box whether it is held by a box that was drawn."""
    inside, counted = [], []
    for low, high, part in zip(drawn.low, drawn.high, box, strict=True):
        side = slice(max(0, int(low) - part.start), max(0, int(high) + 1 - part.start))
        inside.append(side)
        counted.append(side if low == high else slice(None))
    voxels = _sizes(objects_zyx[tuple(inside)], count)
    held = (voxels > 0) & (2 * voxels >= _sizes(objects_zyx[tuple(counted)], count))
    if voxels.any() and not held.any():
        held[voxels.argmax()] = True
    return held


def _sizes(objects_zyx: np.ndarray, count: int) -> npt.NDArray[np.intp]:
    """Count the voxels of each number but 0."""
    return np.bincount(objects_zyx[objects_zyx > 0], minlength=count + 1)


def _label_without(number: int, label: int, classes: Classes) -> int:
    """Give the label of what is left where a class goes, by the order in which nnU-Net draws regions."""
    gone = classes[number]
    holding = [one for one in classes.values() if label in one.members and one.label not in gone.members]
    return max(holding, key=lambda one: one.index).label if holding else 0
