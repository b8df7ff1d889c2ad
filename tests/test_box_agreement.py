"""Whether a box says what a mask says already."""

import numpy as np
import pytest

from sam3dnet.interactive.objects import box_agrees, looked_at
from sam3dnet.prompts.types import Box

SHAPE = (12, 40, 30)


def agrees(box, low=(4, 10, 8), high=(7, 29, 17), extra=()):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = True
    for voxel in extra:
        mask[voxel] = True
    seen = looked_at(box, SHAPE)
    return box_agrees(mask[seen], seen, box)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ((4, 10, 8), (7, 29, 17), True),
        ((4, 7, 8), (7, 31, 19), True),  # drawn by hand
        ((3, 10, 7), (8, 29, 18), True),
        ((4, 4, 8), (7, 29, 17), False),  # wider than the mask
        ((4, 10, 8), (7, 20, 17), False),  # the mask goes on
        ((0, 10, 8), (11, 29, 17), False),
        ((4, 34, 8), (7, 38, 17), False),  # elsewhere
    ],
)
def test_a_box_agrees_with_a_mask_that_ends_where_it_does(low, high, expected):
    assert agrees(Box(low, high)) == expected


def test_a_box_in_one_slice_says_nothing_of_the_others():
    assert agrees(Box((5, 10, 8), (5, 29, 17)))
    assert not agrees(Box((5, 10, 8), (5, 29, 25)))
    assert not agrees(Box((9, 10, 8), (9, 29, 17)))
    assert agrees(Box((5, 10, 8), (5, 29, 17)), extra=[(9, 30, 25)])


def test_what_lies_far_off_is_another_object():
    box = Box((4, 10, 8), (7, 29, 17))
    assert agrees(box, extra=[(6, 38, 10)])
    assert not agrees(box, extra=[(6, 34, 10)])
    assert agrees(Box((0, 0, 0), (11, 39, 29)), (0, 0, 0), (11, 39, 29))
