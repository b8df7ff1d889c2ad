"""The connected components of a mask, whatever its size."""

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
