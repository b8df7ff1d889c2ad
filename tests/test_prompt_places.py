"""Sequences of places in an object: drawn uniformly, or innermost first."""

from itertools import islice

import numpy as np

from sam3dnet.prompts.places import innermost_voxels, random_voxels, uniform_voxels

SPACING_MM = (3.0, 0.7, 1.1)


def test_uniform_voxels_reach_every_voxel_and_do_not_depend_on_the_box() -> None:
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2:4, 1:3] = mask[3, 4, 5] = True
    drawn = list(islice(uniform_voxels(mask, np.random.default_rng(0)), 400))
    counts = {voxel: drawn.count(voxel) for voxel in set(drawn)}
    assert set(counts) == {(1, 2, 1), (1, 2, 2), (1, 3, 1), (1, 3, 2), (3, 4, 5)}
    assert all(55 <= count <= 105 for count in counts.values())
    cut = list(islice(uniform_voxels(mask[1:, 2:, 1:], np.random.default_rng(0)), 400))
    assert [(z + 1, y + 2, x + 1) for z, y, x in cut] == drawn


def test_innermost_voxels_take_the_largest_component_first_then_what_is_farthest_from_all_before() -> None:
    mask = np.zeros((3, 6, 14), bool)
    mask[0, 0, 0] = True
    mask[1, 2, 3:14] = True
    mask[1, 5, 3:8] = True
    # In mm along x, two components one voxel thick: all voxels are as deep, the first counts. Then every voxel that is
    # no place, again as deep as all others.
    assert list(islice(innermost_voxels(mask, SPACING_MM), 3)) == [(1, 2, 3), (1, 5, 3), (0, 0, 0)]
    assert len(list(innermost_voxels(mask, SPACING_MM))) == mask.sum()
    assert len(set(innermost_voxels(mask, SPACING_MM))) == mask.sum()


def test_a_second_place_in_one_component_lies_in_the_middle_of_what_is_left() -> None:
    mask = np.ones((7, 9, 31), bool)
    first, second, third = islice(innermost_voxels(mask, (1.0, 1.0, 1.1)), 3)
    # Four voxels deep along z: the first place of that depth is at x = 3; the next ones keep that far from it.
    assert first == (3, 3, 3)
    assert second[0] == third[0] == 3
    apart = [abs(a[2] - b[2]) * 1.1 for a, b in ((first, second), (first, third), (second, third))]
    assert min(apart) >= 4 or abs(first[1] - second[1]) >= 4
    assert mask.all()


def test_random_voxels_are_the_first_uniform_ones():
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 1:3, 2:] = True
    expected = list(islice(uniform_voxels(mask, np.random.default_rng(3)), 6))
    assert random_voxels(mask, 6, np.random.default_rng(3)) == expected
    assert random_voxels(mask, 0, np.random.default_rng(3)) == []
