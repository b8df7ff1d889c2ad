"""Measure the objects of one case: how large they are, how many, and how bright inside and around.

Arrays are (Z, Y, X), spacings (Z, Y, X) in millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

# A shell this thick holds what a radiologist compares an object with, and stays out of the next organ but one.
SHELL_MM = 3.0
MOST_SHELL_VOXELS = 15  # of microscopy, where 3 mm are wider than the image
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
# 26 neighbours: a thin oblique structure is one object.
NEIGHBOURHOOD = np.ones((3, 3, 3), dtype=bool)

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ObjectMeasures:
    """What one class looks like in one case; intensities hold one entry a channel, the centre is that of all voxels."""

    largest_extent_voxels: list[int]
    largest_extent_mm: list[float]
    object_count: int
    largest_voxels: int
    voxels: int
    volume_mm3: float
    centre_mm: list[float]
    inside: list[dict[str, float]]
    around: list[dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Give the measures as plain JSON values."""
        return asdict(self)


def measure_classes(
    images_CZYX: np.ndarray,
    labels_ZYX: np.ndarray,
    classes: Mapping[str, Sequence[int]],
    spacing_mm: tuple[float, float, float],
) -> dict[str, ObjectMeasures | None]:
    """Measure all classes of a case, each where it lies.

    Args:
        images_CZYX: All channels of the case.
        labels_ZYX: Whole numbers, on the same grid.
        classes: Labels of each class or region by name.
        spacing_mm: (Z, Y, X).

    Returns:
        None for a class that does not occur.
    """
    boxes = LabelBoxes(labels_ZYX)
    reach_voxels = [min(max(1, round(SHELL_MM / spacing)), MOST_SHELL_VOXELS) for spacing in spacing_mm]
    measures: dict[str, ObjectMeasures | None] = {}
    for name, values in classes.items():
        box = boxes.of(values)
        measures[name] = (
            None if box is None else _measure(images_CZYX, labels_ZYX, values, spacing_mm, box, reach_voxels)
        )
    return measures


def _measure(
    images_CZYX: np.ndarray,
    labels_ZYX: np.ndarray,
    values: Sequence[int],
    spacing_mm: Sequence[float],
    box: Box,
    reach_voxels: Sequence[int],
) -> ObjectMeasures:
    slicer = tuple(
        slice(max(0, axis.start - reach), axis.stop + reach) for axis, reach in zip(box, reach_voxels, strict=True)
    )
    mask = mask_of(labels_ZYX[slicer], values)
    extent_voxels, object_count, largest_voxels = largest_object(mask)
    shell = ndimage.maximum_filter(mask, size=[2 * reach + 1 for reach in reach_voxels], mode="constant") & ~mask
    crops = [channel[slicer] for channel in images_CZYX]
    return ObjectMeasures(
        largest_extent_voxels=extent_voxels,
        largest_extent_mm=[float(n * mm) for n, mm in zip(extent_voxels, spacing_mm, strict=True)],
        object_count=object_count,
        largest_voxels=largest_voxels,
        voxels=int(np.count_nonzero(mask)),
        volume_mm3=float(np.count_nonzero(mask) * np.prod(spacing_mm)),
        centre_mm=[
            float((axis.start + at) * mm)
            for axis, at, mm in zip(slicer, ndimage.center_of_mass(mask), spacing_mm, strict=True)
        ],
        inside=[describe(crop[mask]) for crop in crops],
        around=[describe(crop[shell]) for crop in crops],
    )


class LabelBoxes:
    """Where each label of a label map lies, found in one pass.

    Args:
        labels_ZYX: Whole numbers; those below 1 are looked for nowhere.
    """

    def __init__(self, labels_ZYX: np.ndarray) -> None:
        largest = int(labels_ZYX.max(initial=0))
        narrow = np.min_scalar_type(largest) if labels_ZYX.min(initial=0) >= 0 else np.int64
        self._found = ndimage.find_objects(labels_ZYX.astype(narrow, copy=False), largest) if largest > 0 else []

    def of(self, values: Iterable[int]) -> Box | None:
        """Give the smallest box that holds all voxels with one of these labels; None when there are none."""
        found = [self._found[value - 1] for value in values if 0 < value <= len(self._found)]
        return union(box for box in found if box is not None)


def mask_of(labels_ZYX: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Mark the voxels that have one of the values."""
    mask = labels_ZYX == values[0]
    for value in values[1:]:
        mask |= labels_ZYX == value
    return mask


def union(boxes: Iterable[Box | None]) -> Box | None:
    """Give the smallest box that holds some; None for none."""
    there = [box for box in boxes if box is not None]
    if not there:
        return None
    z, y, x = (slice(min(a.start for a in axes), max(a.stop for a in axes)) for axes in zip(*there, strict=True))
    return z, y, x


def bounding_box(mask_ZYX: np.ndarray) -> Box | None:
    """Find the smallest box that holds all marked voxels; None when there are none."""
    found = ndimage.find_objects(mask_ZYX.astype(np.uint8))
    return found[0] if found else None


def largest_object(mask_ZYX: np.ndarray) -> tuple[list[int], int, int]:
    """Find the extent (Z, Y, X) of the connected object with most voxels, the number of objects, and its voxels."""
    objects, count = ndimage.label(mask_ZYX, structure=NEIGHBOURHOOD)
    sizes = np.bincount(objects.ravel())[1:]
    largest = int(np.argmax(sizes))
    box = ndimage.find_objects(objects)[largest]
    return [int(axis.stop - axis.start) for axis in box], int(count), int(sizes[largest])


def largest_of(mask_ZYX: np.ndarray) -> np.ndarray:
    """Mark the connected object with most voxels; all that are as large."""
    objects, count = ndimage.label(mask_ZYX, structure=NEIGHBOURHOOD)
    if count < 2:
        return mask_ZYX
    sizes = np.bincount(objects.ravel())
    sizes[0] = 0
    return (sizes == sizes.max())[objects]


def describe(values: np.ndarray) -> dict[str, float]:
    """Give mean, standard deviation and percentiles; an empty dict for no values."""
    if values.size == 0:
        return {}
    levels = np.percentile(values, PERCENTILES)
    named = {percentile_name(p): float(level) for p, level in zip(PERCENTILES, levels, strict=True)}
    return {"mean": float(values.mean(dtype=np.float64)), "std": float(values.std(dtype=np.float64)), **named}


def percentile_name(percentile: float) -> str:
    """Name a percentile as nnU-Net does: 0.5 -> percentile_00_5."""
    return f"percentile_{percentile:04.1f}".replace(".", "_")
