"""What prompts are made of, checked where it is made."""

import math
from typing import Any

import numpy as np
import pytest

from sam3dnet.errors import PromptError
from sam3dnet.prompts.types import Box, ClassPrompts, Point, as_coordinates


def test_numbers_of_any_kind_become_floats() -> None:
    for given in ((1, 2.5, 3), [1, 2.5, 3], np.array([1, 2.5, 3], dtype=np.float32)):
        point = Point(given)  # type: ignore[arg-type]
        assert point.at == (1.0, 2.5, 3.0)
        assert all(type(value) is float for value in point.at)
        assert point.positive


@pytest.mark.parametrize(
    "given", [(1, 2), "123", None, (1, 2, "3"), (True, 2, 3), (1, math.nan, 3), (1, 2, math.inf), (1, 2, 10**400)]
)
def test_anything_but_three_finite_numbers_is_refused(given: Any) -> None:
    with pytest.raises(PromptError, match=r"a point is .*, expected three finite numbers"):
        Point(given)
    with pytest.raises(PromptError, match=r"highest corner is .*, expected three finite numbers"):
        Box((0, 0, 0), given)
    with pytest.raises(PromptError, match=r"^it is .*, expected three finite numbers$"):
        as_coordinates(given, "it")


def test_box_may_be_one_slice_thick_but_not_empty() -> None:
    assert Box((1, 2, 3), (1, 5, 7)).high == (1.0, 5.0, 7.0)
    with pytest.raises(PromptError, match=r"from \(1, 2.5, 3\) to \(4, 2, 7\) is empty"):
        Box((1, 2.5, 3), (4, 2, 7))


def test_class_prompts_know_whether_anything_is_said() -> None:
    assert not ClassPrompts()
    assert ClassPrompts(points=[Point((1, 2, 3))]).points == (Point((1, 2, 3)),)  # type: ignore[arg-type]
    assert ClassPrompts(boxes=(Box((1, 2, 3), (1, 2, 3)),))
    assert ClassPrompts(mask=np.zeros((5, 6, 7), dtype=bool))


@pytest.mark.parametrize("mask", [np.zeros((5, 6, 7), dtype=np.uint8), np.zeros((6, 7), dtype=bool)])
def test_mask_must_be_bool_with_three_axes(mask: np.ndarray) -> None:
    with pytest.raises(PromptError, match=rf"array of {mask.dtype} with {mask.ndim} axes, expected bool with 3"):
        ClassPrompts(mask=mask)


def test_a_point_lies_in_the_voxel_whose_centre_is_nearest() -> None:
    assert Point((2.5, 3.49, -0.5)).voxel == (3, 3, 0)
    assert Point((4, 0, 7)).voxel == (4, 0, 7)
