"""Corrections of windows: constant where all was looked at, fading without a jump where not."""

import itertools

import numpy as np
import pytest
from fake_prompts import whole

from sam3dnet.interactive.stitching import Stitching
from sam3dnet.interactive.window_grid import WindowGrid

PATCH = (4, 16, 8)
SHAPE = (6, 40, 8)
LEAD = np.full(PATCH, -1, np.float32)


def stitched(grid, windows, value=3.0):
    stitching = Stitching(grid)
    for window in windows:
        stitching.add(window, np.full(grid.patch_size, value, np.float32), np.full(grid.patch_size, -1, np.float32))
    return stitching


@pytest.mark.parametrize("step_size", [0.3, 0.5, 1.0])
def test_constant_everywhere_stays_constant_to_the_border(step_size):
    grid = WindowGrid.over(SHAPE, PATCH, step_size)
    windows = itertools.product(*(range(len(axis)) for axis in grid.starts))
    (box,) = stitched(grid, windows).result().boxes
    assert (box.low, box.high) == ((0, 0, 0), SHAPE)
    np.testing.assert_allclose(box.values_zyx, 3.0, rtol=1e-4)


@pytest.mark.parametrize("windows", [[(0, 1, 0)], [(0, 1, 0), (0, 2, 0), (1, 1, 0)]])
def test_a_correction_fades_without_a_jump_where_nothing_was_looked_at(windows):
    grid = WindowGrid.over(SHAPE, PATCH, 0.5)
    values = whole(stitched(grid, windows).result(), SHAPE)
    assert values[1, 16, 4] == pytest.approx(3.0)
    assert values[1, 10, 0] == pytest.approx(3.0)  # the border of the image is no edge of what was looked at
    along = values[0, :, 4]
    steps = np.abs(np.diff(along))
    assert steps.max() <= 3.0 / 2  # two voxels at the least, from all to nothing
    assert 0 < along[np.flatnonzero(along)[0]] < 1.5
    assert (np.diff(along)[:12] >= 0).all()
    assert (np.diff(along)[12:] <= 1e-4).all()


def test_the_order_of_windows_does_not_matter():
    grid = WindowGrid.over(SHAPE, PATCH, 0.5)
    rng = np.random.default_rng(4)
    windows = [(0, 1, 0), (1, 2, 0), (0, 3, 0)]
    parts = {window: rng.normal(size=PATCH).astype(np.float32) for window in windows}
    results = []
    for order in (windows, windows[::-1]):
        stitching = Stitching(grid)
        for window in order:
            stitching.add(window, parts[window], LEAD)
        results += stitching.result().boxes
    assert results[0].low == results[1].low == (0, 8, 0)
    np.testing.assert_allclose(results[0].values_zyx, results[1].values_zyx, atol=1e-5)


def test_a_mask_that_was_changed_at_a_face_asks_for_the_next_window():
    grid = WindowGrid.over(SHAPE, PATCH, 0.5)
    for y, expected in ((12, []), (23, [(0, 2, 0)]), (8, [(0, 0, 0)])):
        stitching = Stitching(grid)
        correction = np.zeros(PATCH, np.float32)
        correction[0, y - 8, 4] = 3.0
        stitching.add((0, 1, 0), correction, LEAD)
        assert stitching.next_windows() == expected


def test_a_face_that_the_mask_reaches_unchanged_asks_for_nothing():
    grid = WindowGrid.over(SHAPE, PATCH, 0.5)
    for correction, lead in ((3.0, 1.0), (-3.0, -1.0), (0.5, -1.0)):
        stitching = Stitching(grid)
        stitching.add((0, 1, 0), np.full(PATCH, correction, np.float32), np.full(PATCH, lead, np.float32))
        assert stitching.next_windows() == []


def test_a_new_window_gets_the_mask_so_far():
    grid = WindowGrid.over(SHAPE, PATCH, 0.5)
    stitching = stitched(grid, [(0, 1, 0)])
    lead = np.full(PATCH, -1, np.float32)
    lead[0, 15, 0] = 1.0
    mask = stitching.mask_in((0, 2, 0), lead)
    assert mask[:, :8].all()
    assert np.argwhere(mask[:, 8:]).tolist() == [[0, 7, 0]]
    assert not stitching.mask_in((0, 3, 0), LEAD).any()


LONG = (6, 16 * 8, 8)
RNG = np.random.default_rng(6)
CORRECTIONS = {y: RNG.normal(size=PATCH).astype(np.float32) for y in range(20)}
LEADS = {y: RNG.normal(size=PATCH).astype(np.float32) for y in range(20)}


def stitched_along_y(grid, order):
    """What is stitched of random corrections, and what next windows there are after each."""
    stitching, following = Stitching(grid), []
    for y in order:
        stitching.add((0, y, 0), CORRECTIONS[y], LEADS[y])
        following.append(stitching.next_windows())
    return stitching, following


@pytest.mark.parametrize(
    ("step_size", "order", "boxes"),
    [
        (0.5, (1, 12), 2),
        (0.5, (1, 2, 12, 11, 6), 3),
        (0.5, (1, 12, 3, 10, 5, 8, 7), 1),  # the last window joins two groups
        (0.5, (12, 1, 6), 3),
        (1.0, (1, 2), 1),  # face to face
        (1.0, (1, 3), 2),
    ],
)
def test_windows_far_apart_are_stitched_by_themselves_as_in_one_box(monkeypatch, step_size, order, boxes):
    grid = WindowGrid.over(LONG, PATCH, step_size)
    one_box = WindowGrid.over(LONG, PATCH, step_size)
    groups, following = stitched_along_y(grid, order)
    with monkeypatch.context() as patched:
        patched.setattr(WindowGrid, "are_close", lambda *_: True)
        together, expected = stitched_along_y(one_box, order)
    result, single = groups.result(), together.result()
    assert (len(result.boxes), len(single.boxes)) == (boxes, 1)
    assert following == expected
    assert len(groups) == len(together) == len(order)
    np.testing.assert_allclose(whole(result, LONG), whole(single, LONG), atol=2e-4)
    for y in range(len(grid.starts[1])):
        mask = groups.mask_in((1, y, 0), LEADS[y])
        np.testing.assert_array_equal(mask, together.mask_in((1, y, 0), LEADS[y]))


def test_what_is_held_grows_with_the_windows_and_not_with_their_distance():
    grid = WindowGrid.over((400, 16 * 200, 8), PATCH, 0.5)
    last = tuple(len(axis) - 1 for axis in grid.starts)
    result = stitched(grid, [(0, 0, 0), last]).result()
    assert [box.values_zyx.shape for box in result.boxes] == [PATCH, PATCH]
    assert [box.low for box in result.boxes] == [(0, 0, 0), grid.corner(last)]


def test_a_window_less_than_an_edge_away_belongs_to_a_group():
    grid = WindowGrid(PATCH, ((0,), (0, 17, 19, 40), (0,)))  # an edge is 2 voxels
    assert grid.are_close((0, 0, 0), (0, 1, 0))
    assert not grid.are_close((0, 0, 0), (0, 2, 0))
    assert grid.holds((0, 1, 0), (3, 17, 7)) and not grid.holds((0, 1, 0), (3, 16, 7))


def test_the_mask_around_a_voxel_is_that_of_its_group():
    grid = WindowGrid.over(LONG, PATCH, 0.5)
    stitching = stitched(grid, [(0, 1, 0), (0, 9, 0)])
    low, mask = stitching.mask_around((1, 75, 3))
    assert low == grid.corner((0, 9, 0))
    assert mask.shape == PATCH
    with pytest.raises(ValueError, match="no window was looked at"):
        stitching.mask_around((1, 40, 3))


@pytest.mark.parametrize("seed", range(6))
def test_groups_whose_boxes_overlap_join_as_in_one_box(monkeypatch, seed):
    shape = (30, 90, 8)
    rng = np.random.default_rng(seed)
    lead = rng.normal(size=shape).astype(np.float32)
    grid = WindowGrid.over(shape, PATCH, 0.5)
    windows = list(itertools.product(range(len(grid.starts[0])), range(len(grid.starts[1])), (0,)))
    order = [windows[n] for n in rng.permutation(len(windows))[: 8 + 5 * seed]]
    results, following, masks = [], [], []
    for together in (False, True):
        values = np.random.default_rng(seed)
        with monkeypatch.context() as patched:
            if together:
                patched.setattr(WindowGrid, "are_close", lambda *_: True)
            stitching = Stitching(grid)
            for window in order:
                stitching.add(window, values.normal(size=PATCH).astype(np.float32), lead[grid.box(window)])
        results.append(stitching.result())
        following.append(stitching.next_windows())
        masks.append([stitching.mask_in(window, lead[grid.box(window)]) for window in windows])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert len(results[0].boxes) > 1 == len(results[1].boxes)
    assert following[0] == following[1] != []
    np.testing.assert_allclose(whole(results[0], shape), whole(results[1], shape), atol=2e-4)
