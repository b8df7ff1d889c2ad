"""A class of two objects, for tests of what is clicked and said about it."""

import numpy as np

SPACING = (3.0, 0.7, 1.1)


def two_objects(shape=(7, 12, 15)):
    """A large block and a single voxel."""
    mask = np.zeros(shape, bool)
    mask[1:5, 1:7, 2:8] = True
    mask[5, 10, 13] = True
    return mask


def at(mask, voxel):
    return bool(mask[tuple(int(v) for v in voxel)])
