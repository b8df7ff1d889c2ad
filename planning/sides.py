"""Classes that differ by the side of the body alone, such as two kidneys: found in the labels, and by their names.

A network that sees mirrored images learns that such classes are the same. Where a pair is one organ and its mirror
image, the two labels are swapped with every mirroring; where the names say sides and the labels do not, nothing is
mirrored from left to right.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam3dnet.planning.objects import bounding_box
from sam3dnet.preprocessing.cases import foreground_classes, has_regions, output_names

Mask = npt.NDArray[np.bool_]
ReadMasks = Callable[[str], Mapping[str, Mask]]  # of a case: the mask of each class

OPPOSITES = {"left": "right", "l": "r", "lt": "rt", "lft": "rgt", "links": "rechts", "gauche": "droite", "sin": "dex"}
SIDES = OPPOSITES | {right: left for left, right in OPPOSITES.items()}
FEWEST_CASES = 5  # without names that say so
MOST_COMPARED = 5
LEAST_SHARE = 0.95  # of the cases, in which one lies on the same side of the other
MOST_VOLUME_RATIO = 1.6
LEAST_OVERLAP = 0.6  # Dice of one with the mirror image of the other, where names say that they are sides
LEAST_OVERLAP_UNNAMED = 0.7  # where they do not: ventricles of the heart lie side by side too
SHIFT_SHARE = 0.5  # of the way between them, that they may differ along the other axes


@dataclass(frozen=True)
class Sides:
    """What planning found.

    Attributes:
        pairs: Classes that are each other's mirror image, by name.
        unlike: Pairs whose names say sides, but which are no mirror images.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    unlike: tuple[tuple[str, str], ...] = ()


def find_sides(classes: Mapping[str, Mapping[str, Any]], axis: int, read_masks: ReadMasks) -> Sides:
    """Find the pairs of classes that are told apart by their side.

    Args:
        classes: Of the fingerprint: by name, with "cases", "centre_mm" (Z, Y, X) and "volume_mm3" of each.
        axis: Of the arrays, from left to right.
        read_masks: Reads the masks of a case, for the shapes of a few of them.
    """
    candidates = sorted(
        (pair for pair in combinations(classes, 2) if _may_be_sides(*pair, classes, axis)),
        key=lambda pair: not named_as_sides(*pair),
    )
    pairs: list[tuple[str, str]] = []
    unlike: list[tuple[str, str]] = []
    taken: set[str] = set()
    for one, other in candidates:
        if taken & {one, other}:
            continue
        cases = [case for case in classes[one]["cases"] if case in classes[other]["cases"]][:MOST_COMPARED]
        overlaps = [mirrored_overlap(masks[one], masks[other], axis) for masks in map(read_masks, cases)]
        least = LEAST_OVERLAP if named_as_sides(one, other) else LEAST_OVERLAP_UNNAMED
        if np.median(overlaps) >= least:
            pairs.append((one, other))
            taken |= {one, other}
        elif named_as_sides(one, other) and _are_as_large(one, other, classes):  # else no one takes them for each other
            unlike.append((one, other))
    return Sides(tuple(pairs), tuple(unlike))


def named_as_sides(one: str, other: str) -> bool:
    """Tell whether two names differ in left and right alone: kidney_left and kidney_right, L-parotid and R-parotid."""
    first, second = (re.findall(r"[a-z]+|\d+", name.lower()) for name in (one, other))
    if len(first) != len(second):
        return False
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return bool(differing) and all(SIDES.get(a) == b for a, b in differing)


def mirrored_overlap(one: Mask, other: Mask, axis: int) -> float:
    """Give the Dice of one mask with the mirror image of the other, centre upon centre."""
    boxes = bounding_box(one), bounding_box(other)
    if boxes[0] is None or boxes[1] is None:
        return 0.0
    cut = np.flip(one[boxes[0]], axis), other[boxes[1]]
    shape = [2 * max(sizes) + 1 for sizes in zip(cut[0].shape, cut[1].shape, strict=True)]
    first, second = (_centred(mask, shape) for mask in cut)
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))


def _centred(mask: Mask, shape: Sequence[int]) -> Mask:
    """Lay a mask into an empty array, its centre of mass at the middle."""
    centre = ndimage.center_of_mass(mask)
    low = [size // 2 - round(float(at)) for size, at in zip(shape, centre, strict=True)]
    canvas = np.zeros(shape, bool)
    canvas[tuple(slice(start, start + size) for start, size in zip(low, mask.shape, strict=True))] = mask
    return canvas


def _may_be_sides(one: str, other: str, classes: Mapping[str, Mapping[str, Any]], axis: int) -> bool:
    first, second = (dict(zip(classes[n]["cases"], classes[n]["centre_mm"], strict=True)) for n in (one, other))
    both = [case for case in first if case in second]
    if len(both) < (1 if named_as_sides(one, other) else FEWEST_CASES):
        return False
    ways = np.array([np.subtract(first[case], second[case]) for case in both])
    one_side = max(np.mean(ways[:, axis] > 0), np.mean(ways[:, axis] < 0)) >= LEAST_SHARE
    if named_as_sides(one, other):
        return bool(one_side)
    others = np.delete(np.abs(ways), axis, axis=1).max(1)
    beside = bool(np.median(others / np.maximum(np.abs(ways[:, axis]), 1e-9)) <= SHIFT_SHARE)
    return bool(one_side) and beside and _are_as_large(one, other, classes)


def _are_as_large(one: str, other: str, classes: Mapping[str, Mapping[str, Any]]) -> bool:
    first, second = (float(np.median(classes[name]["volume_mm3"])) for name in (one, other))
    return max(first, second) <= MOST_VOLUME_RATIO * min(first, second)


@dataclass(frozen=True)
class MirroredSides:
    """What mirroring from left to right does to labels.

    Attributes:
        axis: Spatial axis (0 to 2) of the planned grid, from left to right.
        values: Label value -> what it becomes; others stay.
        channels: For each channel of the logits the one that holds its mirror image.
        input_channels: The same of the network's input; none where all stay.
    """

    axis: int
    values: Mapping[int, int]
    channels: tuple[int, ...]
    input_channels: tuple[int, ...] = ()

    def with_input(self, num_images: int, labels: Sequence[int]) -> "MirroredSides":
        """Give the same for an input of images, and after them a channel for each of these labels, as in a cascade."""
        mirrored = [labels.index(self.values.get(label, label)) for label in labels]
        return replace(self, input_channels=(*range(num_images), *(num_images + index for index in mirrored)))


def mirrored_sides(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> MirroredSides | None:
    """Read from a plan what mirroring does to labels.

    Returns:
        None where nothing is swapped, or nothing is mirrored from left to right.
    """
    block = plans.get("sam3d", {})
    sides = block.get("sides")
    if not sides or sides["axis"] not in block.get("mirror_axes", ()):
        return None
    values = swapped_values(sides["pairs"], foreground_classes(dataset_json))
    channels = swapped_channels(values, dataset_json)
    return None if channels is None else MirroredSides(int(sides["axis"]), values, channels)


def swapped_values(pairs: Iterable[Sequence[str]], values: Mapping[str, Sequence[int]]) -> dict[int, int]:
    """Give for each label value the one that it becomes in the mirror; values that keep their own are left out."""
    swap: dict[int, int] = {}
    for one, other in pairs:
        for a, b in zip(values[one], values[other], strict=False):
            swap |= {int(a): int(b), int(b): int(a)}
    return swap


def swapped_channels(values: Mapping[int, int], dataset_json: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Give for each channel of the logits the one of its mirror image; None if a region becomes none of the others."""
    names, classes = output_names(dataset_json), foreground_classes(dataset_json)
    if not has_regions(dataset_json):
        return tuple(values.get(channel, channel) for channel in range(len(names)))
    members = [frozenset(classes[name]) for name in names]
    mirrored = [frozenset(values.get(value, value) for value in of_region) for of_region in members]
    return tuple(map(members.index, mirrored)) if set(mirrored) <= set(members) else None
