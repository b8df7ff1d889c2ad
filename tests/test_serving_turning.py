"""Arrays whose axes run another way round: there and back, places, and the way between two orientations."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from sam3dnet.serving.turning import Turn, all_turns, turn_between

SHAPE = (3, 4, 5)
ALL = [
    "".join(letters[backwards] for letters, backwards in zip(axes, ends, strict=True))
    for axes in permutations(("SI", "AP", "RL"))
    for ends in product((0, 1), repeat=3)
]


@pytest.mark.parametrize("turn", [Turn(), *all_turns((2, 2, 2), (2, 2, 2))], ids=str)
def test_there_and_back(turn):
    first = np.arange(60).reshape(SHAPE)
    second = turn.forth(first)
    np.testing.assert_array_equal(turn.back(second), first)
    np.testing.assert_array_equal(turn.forth(first[None])[0], second)
    np.testing.assert_array_equal(turn.back(second[None])[0], first)
    for place in ((0, 0, 0), (2, 0, 3), (1, 3, 4)):
        assert second[tuple(turn.place(place, SHAPE))] == first[place]
    assert turn.spacing(SHAPE) == second.shape


@pytest.mark.parametrize("orientation", ALL)
def test_between_orientations_as_nibabel_has_it(orientation):
    """From axes to Superior, Anterior and Right, which is canonical in reversed order."""
    values = np.arange(60).reshape(SHAPE)
    stored = orientation[::-1]  # of index (i, j, k)
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(tuple(stored)), nib.orientations.axcodes2ornt(tuple("RAS"))
        ),
        SHAPE[::-1],
    )
    image = nib.Nifti1Image(values.transpose().astype(np.int16), np.linalg.inv(affine))
    assert "".join(nib.aff2axcodes(image.affine)) == stored
    canonical = np.asarray(nib.as_closest_canonical(image).dataobj).transpose()
    np.testing.assert_array_equal(turn_between("SAR", orientation).forth(canonical), values)


def test_all_turns_begin_with_none_and_fit():
    assert all_turns(SHAPE, SHAPE)[0] == Turn()
    assert len(all_turns(SHAPE, SHAPE)) == 8
    assert {turn.order for turn in all_turns((3, 4, 5), (5, 3, 4))} == {(2, 0, 1)}
    assert not all_turns((3, 4, 5), (3, 4, 6))
