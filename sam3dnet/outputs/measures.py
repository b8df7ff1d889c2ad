"""Measures of what was found in a case: how large it is, how many pieces, how bright."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.planning.objects import NEIGHBOURHOOD, LabelBoxes, mask_of

Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]
MM3_A_ML = 1000.0
FEW = 4  # points, of which no hull is made


def measure_case(
    labels_ZYX: Array,
    image_CZYX: Array,
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    channels: Sequence[str],
    axial_axis: int = 0,
) -> dict[str, dict[str, Any]]:
    """Measure the classes of a case.

    Args:
        labels_ZYX: Label map.
        image_CZYX: All channels.
        spacing_mm: (Z, Y, X).
        classes: Labels of each class or region by name.
        channels: Their names.
        axial_axis: Array axis across axial planes.

    Returns:
        By class: "volume_ml"; "components" (26 neighbours); "diameter_mm", the longest line between two places of its
        surface, which may leave it; "axial_diameter_mm", the longest within one axial plane; and by channel "mean" and
        "sd". What a class that was not found does not have is None.
    """
    boxes = LabelBoxes(labels_ZYX)
    measured = {}
    for name, values in classes.items():
        box = boxes.of(values)
        if box is None:
            measured[name] = _nothing(channels)
            continue
        mask = mask_of(labels_ZYX[box], values)
        inside = [channel[box][mask].astype(np.float64) for channel in image_CZYX]
        statistics = [{"mean": float(values.mean()), "sd": float(values.std())} for values in inside]
        intensity = dict(zip(channels, statistics, strict=True))
        measured[name] = {**_measure(mask, spacing_mm, axial_axis), "intensity": intensity}
    return measured


def _nothing(channels: Sequence[str]) -> dict[str, Any]:
    empty = {channel: {"mean": None, "sd": None} for channel in channels}
    return {"volume_ml": 0.0, "components": 0, "diameter_mm": None, "axial_diameter_mm": None, "intensity": empty}


def _measure(mask_ZYX: npt.NDArray[np.bool_], spacing_mm: Sequence[float], axial: int) -> dict[str, Any]:
    from scipy import ndimage

    surface = surface_mm(mask_ZYX, spacing_mm)
    planes = surface[:, axial].round(6)
    in_planes = [longest_mm(np.delete(surface[planes == place], axial, 1)) for place in np.unique(planes)]
    return {
        "volume_ml": float(np.count_nonzero(mask_ZYX) * math.prod(spacing_mm) / MM3_A_ML),
        "components": int(ndimage.label(mask_ZYX, NEIGHBOURHOOD)[1]),
        "diameter_mm": longest_mm(surface),
        "axial_diameter_mm": max(in_planes),
    }


def surface_mm(mask_ZYX: npt.NDArray[np.bool_], spacing_mm: Sequence[float]) -> Points:
    """Give the points half way between a voxel inside and its neighbour outside, along each axis, in mm."""
    padded = np.pad(mask_ZYX, 1)
    points = []
    for axis in range(3):
        changes = np.argwhere(np.diff(padded.astype(np.int8), axis=axis))
        between = changes.astype(np.float64) - 1
        between[:, axis] += 0.5
        points.append(between)
    return np.asarray(np.concatenate(points) * np.asarray(spacing_mm, np.float64))


def longest_mm(points: Points) -> float:
    """Measure the longest distance of two points, by the corners of their convex hull."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    corners = np.unique(points, axis=0)
    if len(corners) > FEW:
        with suppress(QhullError):  # they lie on a line or in a plane
            corners = corners[ConvexHull(corners).vertices]
    return float(pdist(corners).max()) if len(corners) > 1 else 0.0


def as_csv(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Format measures as CSV, a row a class of a case; an empty cell for what there is none of.

    Args:
        measured: By case and class.
    """
    rows_of_classes = [one for case in measured.values() for one in case.values()]
    channels = list(dict.fromkeys(name for one in rows_of_classes for name in one["intensity"]))
    keys = ["volume_ml", "components", "diameter_mm", "axial_diameter_mm"]
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["case", "class", *keys, *(f"{channel} {what}" for channel in channels for what in ("mean", "sd"))])
    for case, classes in measured.items():
        for name, one in classes.items():
            numbers = [one[key] for key in keys]
            for channel in channels:
                numbers += [one["intensity"].get(channel, {}).get(what) for what in ("mean", "sd")]
            rows.writerow([case, name, *("" if value is None else _rounded(value) for value in numbers)])
    return written.getvalue()


def _rounded(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
