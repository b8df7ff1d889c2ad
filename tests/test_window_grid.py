"""Which windows prompts concern, and what of them each window gets."""

import numpy as np
import pytest

from sam3dnet.interactive.window_grid import WindowGrid, first_windows, prompts_in_window
from sam3dnet.prompts.types import Box, ClassPrompts, Point

PATCH = (4, 8, 6)
SHAPE = (9, 20, 6)


@pytest.fixture
def grid():
    return WindowGrid.over(SHAPE, PATCH, 0.5)


def test_windows_lie_where_the_image_is_predicted(grid):
    assert grid.starts == ((0, 2, 3, 5), (0, 4, 8, 12), (0,))
    assert grid.image_shape == SHAPE
    assert grid.corner((0, 2, 0)) == (0, 8, 0)


def test_neighbours_share_a_direction_and_end_at_the_border(grid):
    found = {(axis, direction): other for axis, direction, other in grid.neighbours((0, 1, 0))}
    assert found == {(0, 1): (1, 1, 0), (1, -1): (0, 0, 0), (1, 1): (0, 2, 0)}


@pytest.mark.parametrize("step_size", [0.5, 1.0])
def test_a_click_is_well_inside_its_window(step_size):
    grid = WindowGrid.over(SHAPE, PATCH, step_size)
    for y in np.arange(-0.5, SHAPE[1] - 0.5, 0.25):
        point = Point((0, y, 0))
        (window,) = first_windows(grid, ClassPrompts(points=(point,)))
        distances = [abs(y - start - 3.5) for start in grid.starts[1]]
        assert distances[window[1]] <= min(distances) + 0.51
        inside = prompts_in_window(ClassPrompts(points=(point,)), grid.corner(window), PATCH)
        assert len(inside.points) == 1


def test_windows_come_once_in_the_order_of_the_clicks(grid):
    points = tuple(Point((0, y, 2)) for y in (19, 1, 18, 2))
    assert [window[1] for window in first_windows(grid, ClassPrompts(points=points))] == [3, 0]


def test_a_click_that_a_window_sees_well_needs_no_other(grid):
    def windows_of(*rows):
        return [window[1] for window in first_windows(grid, ClassPrompts(points=tuple(Point((0, y, 2)) for y in rows)))]

    assert windows_of(8, 10) == [1]  # alone the second would take window 2
    assert windows_of(10) == [2]
    assert windows_of(8, 11) == [1, 2]  # at the edge of window 1
    assert windows_of(0, 4) == [0]
    with_box = ClassPrompts((Point((0, 10, 2)),), (Box((0, 6, 2), (0, 9, 2)),))
    assert [window[1] for window in first_windows(grid, with_box)] == [1]


def test_a_small_box_takes_one_window_and_a_large_one_all_it_needs(grid):
    small = ClassPrompts(boxes=(Box((0, 5, 1), (2, 10, 4)),))
    assert [window[1] for window in first_windows(grid, small)] == [1]
    large = ClassPrompts(boxes=(Box((0, 1, 1), (2, 18, 4)),))
    assert [window[1] for window in first_windows(grid, large)] == [0, 1, 2, 3]


def test_a_mask_takes_the_windows_where_it_is(grid):
    mask = np.zeros(SHAPE, bool)
    mask[1, 1:3, 2] = True
    assert first_windows(grid, ClassPrompts(mask=mask)) == [(0, 0, 0)]
    mask[8, 19, 2] = True
    last = len(grid.starts[0]) - 1
    assert first_windows(grid, ClassPrompts(mask=mask)) == [(0, 0, 0), (last, 3, 0)]
    assert first_windows(grid, ClassPrompts(mask=np.zeros(SHAPE, bool))) == []


def test_a_window_gets_its_own_part_of_the_prompts():
    mask = np.zeros(SHAPE, bool)
    mask[2, 5, 1] = True
    prompts = ClassPrompts(
        (Point((2, 4, 0)), Point((2, 3, 0)), Point((5, 11, 5), False), Point((6, 11, 5))),
        (Box((0, 0, 0), (9, 5, 1)), Box((0, 0, 0), (9, 3, 1))),
        mask,
    )
    inside = prompts_in_window(prompts, (2, 4, 0), PATCH)
    assert inside.points == (Point((0, 0, 0)), Point((3, 7, 5), False))
    assert inside.boxes == (Box((0, 0, 0), (3, 1, 1)),)
    assert inside.mask is not None
    assert inside.mask.shape == PATCH
    assert np.argwhere(inside.mask).tolist() == [[0, 1, 1]]
