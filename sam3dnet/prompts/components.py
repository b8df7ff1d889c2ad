"""The connected components of a mask, whatever its size."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import cc3d
import numpy as np
import numpy.typing as npt

FACES: Final = 6  # neighbours by which voxels are connected
CORNERS: Final = 26
SMALL = 4096  # voxels; larger ones are no chessboards


def connected(mask_ZYX: npt.NDArray[Any], connectivity: Literal[6, 18, 26] = CORNERS) -> tuple[npt.NDArray[Any], int]:
    """Number the components of a mask from 1.

    Of small arrays the library that does it expects fewer components than single voxels can be, so that they get a
    layer more on three sides while it works.

    Args:
        mask_ZYX: What is not 0; components of an array of integers are of one value.
        connectivity: Neighbours of a voxel: by faces, edges too, or corners too.

    Returns:
        (Z, Y, X), 0 where the mask is 0, and how many components there are.
    """
    if mask_ZYX.size > SMALL:
        labels, count = cc3d.connected_components(
            np.ascontiguousarray(mask_ZYX), connectivity=connectivity, return_N=True
        )
        return labels, int(count)
    padded = np.pad(mask_ZYX, (0, 1))
    labels, count = cc3d.connected_components(padded, connectivity=connectivity, return_N=True)
    return np.ascontiguousarray(labels[:-1, :-1, :-1]), int(count)


@dataclass(frozen=True)
class Partners:
    """Which components of two masks match.

    Attributes:
        first: Whether each of the first mask's has a partner, in the order of their numbers.
        second: The same of the second mask's.
        pairs: (n, 2), the numbers of those that match, from 1.
        first_unknown: Whether more than half of the voxels of each of the first mask's is ignored.
        second_unknown: The same of the second mask's.
    """

    first: npt.NDArray[np.bool_]
    second: npt.NDArray[np.bool_]
    pairs: npt.NDArray[np.int64]
    first_unknown: npt.NDArray[np.bool_]
    second_unknown: npt.NDArray[np.bool_]


def partners(
    first_ZYX: npt.NDArray[Any],
    second_ZYX: npt.NDArray[Any],
    min_iou: float,
    ignored_ZYX: npt.NDArray[np.bool_] | None = None,
) -> Partners:
    """Find the components of two masks, of 26 neighbours, that match.

    Two match if they share a voxel and their intersection over union is at least `min_iou`; one may match several.

    Args:
        first_ZYX: Bool.
        second_ZYX: Bool, on the same grid.
        min_iou: From 0 (any common voxel) to 1.
        ignored_ZYX: Bool; voxels that connect, and count in no volume.
    """
    (first, num_first), (second, num_second) = connected(first_ZYX), connected(second_ZYX)
    first, second = first.astype(np.int64), second.astype(np.int64)
    wholes = [
        np.bincount(one.ravel(), minlength=count + 1)[1:] for one, count in ((first, num_first), (second, num_second))
    ]
    if ignored_ZYX is not None:
        first, second = np.where(ignored_ZYX, 0, first), np.where(ignored_ZYX, 0, second)
    common = (first > 0) & (second > 0)
    pairs, intersections = np.unique(first[common] * (num_second + 1) + second[common], return_counts=True)
    of_first, of_second = np.divmod(pairs, num_second + 1)
    known = [
        np.bincount(one.ravel(), minlength=len(whole) + 1)[1:]
        for one, whole in zip((first, second), wholes, strict=True)
    ]
    sizes = known[0][of_first - 1] + known[1][of_second - 1]
    match = intersections / (sizes - intersections) >= min_iou
    unknown = [2 * counted < whole for counted, whole in zip(known, wholes, strict=True)]
    return Partners(
        np.isin(np.arange(1, num_first + 1), of_first[match]),
        np.isin(np.arange(1, num_second + 1), of_second[match]),
        np.stack([of_first[match], of_second[match]], axis=1),
        *unknown,
    )
