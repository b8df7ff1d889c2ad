"""Connected components of arrays of any size, thin ones too."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from sam3dnet.prompts.components import CORNERS, FACES, connected


@pytest.mark.parametrize("connectivity", [FACES, 18, CORNERS])
def test_single_voxels_as_near_as_can_be_are_told_apart(connectivity):
    structure = ndimage.generate_binary_structure(3, {FACES: 1, 18: 2, CORNERS: 3}[connectivity])
    rng = np.random.default_rng(0)
    for shape in product((1, 2, 3, 5, 6), repeat=3):
        chessboard, corners = np.indices(shape).sum(0) % 2 == 0, (np.indices(shape) % 2 == 0).all(0)
        for mask in (chessboard, corners, rng.random(shape) < 0.3):
            labels, count = connected(mask, connectivity)
            expected, number = ndimage.label(mask, structure)
            assert (labels.shape, count) == (shape, number)
            pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
            assert len(pairs) == len(np.unique(expected))


def test_values_of_integers_are_components_of_their_own():
    labels, count = connected(np.array([[[1, 1, 2, 0, 1]]], np.uint8), FACES)
    assert count == 3
    assert labels.tolist() == [[[1, 1, 2, 0, 3]]]
