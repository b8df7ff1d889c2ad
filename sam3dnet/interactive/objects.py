"""The objects of a label map that prompts name."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.correction import Slices
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.components import connected
from sam3dnet.prompts.depth import box_of
from sam3dnet.prompts.made_up import BOX_JITTER
from sam3dnet.prompts.types import Box, ClassPrompts

Classes = Mapping[int, PromptClass]  # by channel of the logits
Said = Mapping[int, ClassPrompts]

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
        found = find_named(labels_ZYX, prompts, classes[number])
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
    found = {number: find_named(labels_ZYX, prompts, classes[number]) for number, prompts in naming.items()}
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
class Found:
    """What there is of a class in its bounding box, and what of it is named."""

    box: Slices
    mask_zyx: Mask
    named_zyx: Mask


def find_named(labels_ZYX: np.ndarray, prompts: ClassPrompts, wanted: PromptClass) -> Found | None:
    """Find the objects of a class that prompts name; None where the label map has none of the class."""
    mask_ZYX = wanted.mask(labels_ZYX)
    if not mask_ZYX.any():
        return None
    box = box_of(mask_ZYX)
    mask_zyx = mask_ZYX[box]
    objects_zyx, count = connected(mask_zyx)
    named = np.zeros(count + 1, bool)
    for voxel in _clicked(prompts):
        if all(part.start <= at < part.stop for at, part in zip(voxel, box, strict=True)):
            named[objects_zyx[tuple(at - part.start for at, part in zip(voxel, box, strict=True))]] = True
    for drawn in prompts.boxes:
        named |= _held(objects_zyx, count, drawn, box)
    if prompts.mask is not None:
        named[objects_zyx[prompts.mask[box]]] = True
    named[0] = False
    return Found(box, mask_zyx, named[objects_zyx])


def _clicked(prompts: ClassPrompts) -> list[Voxel]:
    """Give the voxels that were clicked positively, of two clicks on one by the later."""
    clicks = {point.voxel: point.positive for point in prompts.clicks}
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
