"""Sequences of places in an object for clicks that are chosen before any answer is seen."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.random import Generator

from sam3dnet.prompts.components import connected
from sam3dnet.prompts.depth import Mask, Voxel
from sam3dnet.prompts.sampling import innermost_voxel


def uniform_voxels(mask_ZYX: Mask, rng: Generator) -> Iterator[Voxel]:
    """Draw voxels of a mask without end, each voxel equally likely and each draw independent of those before.

    The draws are the same in any box that is cut out around the mask.

    Args:
        mask_ZYX: At least one voxel is True.
        rng: Source of randomness.
    """
    voxels = np.flatnonzero(mask_ZYX)
    while True:
        z, y, x = np.unravel_index(voxels[rng.integers(len(voxels))], mask_ZYX.shape)
        yield int(z), int(y), int(x)


def random_voxels(mask_ZYX: Mask, count: int, rng: Generator) -> list[Voxel]:
    """Give the first so many of `uniform_voxels`."""
    return list(islice(uniform_voxels(mask_ZYX, rng), count))


def innermost_voxels(mask_ZYX: Mask, spacing_mm: Sequence[float]) -> Iterator[Voxel]:
    """Give the innermost voxel of each component, the largest first, then what lies farthest from outside and places.

    Components are connected by 26 neighbours, of two as large the first in the array comes first. Once each has a
    place, the next one is the voxel that is farthest in mm from all that is outside of the mask and from the places
    before: the middle of the largest ball in the mask that holds none.

    Args:
        mask_ZYX: At least one voxel is True.
        spacing_mm: (Z, Y, X).

    Yields:
        Places until each voxel of the mask is one.
    """
    left = mask_ZYX.copy()
    components, count = connected(left)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    for index in np.argsort(-sizes, kind="stable"):
        voxel = innermost_voxel(components == index + 1, spacing_mm)
        left[voxel] = False
        yield voxel
    while left.any():
        voxel = innermost_voxel(left, spacing_mm)
        left[voxel] = False
        yield voxel
