"""Corrections of windows: constant where all was looked at, fading without a jump where not."""

import itertools

import numpy as np
import pytest

from sam3dnet.inference.stitching import Stitching
from sam3dnet.inference.window_grid import WindowGrid

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
    result = stitched(grid, windows).result()
    assert (result.low, result.high) == ((0, 0, 0), SHAPE)
    np.testing.assert_allclose(result.values_zyx, 3.0, rtol=1e-4)


@pytest.mark.parametrize("windows", [[(0, 1, 0)], [(0, 1, 0), (0, 2, 0), (1, 1, 0)]])
def test_a_correction_fades_without_a_jump_where_nothing_was_looked_at(windows):
    grid = WindowGrid.over(SHAPE, PATCH, 0.5)
    result = stitched(grid, windows).result()
    values = np.zeros(SHAPE, np.float32)
    values[result.box] = result.values_zyx
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
        results.append(stitching.result())
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
