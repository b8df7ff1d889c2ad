"""Voxels of a mask that a user might click, and errors of a mask."""

import numpy as np
import pytest
from scipy import ndimage
from two_objects import SPACING, at, two_objects

from sam3dnet.prompts.sampling import (
    corrective_click,
    innermost_voxel,
    margin_voxel,
    random_component,
    random_voxel,
)
from sam3dnet.prompts.types import Point


def depth_by_hand(mask, voxel):
    """Distance in mm to the nearest voxel that is not of the mask, beyond the array included."""
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    return np.sqrt((((outside - np.array(voxel)) * SPACING) ** 2).sum(1)).min()


def test_the_innermost_voxel_is_farthest_from_everything_outside_in_millimetres():
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(5, 11, 13)), 1.5) > 0
    depths = {tuple(v): depth_by_hand(mask, v) for v in np.argwhere(mask)}
    assert depth_by_hand(mask, innermost_voxel(mask, SPACING)) == pytest.approx(max(depths.values()))


def test_the_border_of_the_array_counts_as_outside():
    assert innermost_voxel(np.ones((3, 9, 5), bool), SPACING) == (1, 4, 2)


def test_an_empty_mask_has_no_innermost_voxel():
    with pytest.raises(ValueError, match="the mask is empty"):
        innermost_voxel(np.zeros((2, 3, 4), bool), SPACING)


def test_a_margin_voxel_lies_inside_and_near_the_surface():
    mask = np.zeros((20, 22, 24), bool)
    mask[2:18, 2:20, 2:22] = True
    for seed in range(20):
        voxel = margin_voxel(mask, (1.0, 1.0, 1.0), np.random.default_rng(seed))
        assert at(mask, voxel)
        assert min(min(v - low, high - 1 - v) for v, low, high in zip(voxel, (2, 2, 2), (18, 20, 22), strict=True)) <= 1


def test_components_are_drawn_equally_often_whatever_their_size():
    rng = np.random.default_rng(0)
    small = sum(random_component(two_objects(), rng).sum() == 1 for _ in range(200))
    assert 70 < small < 130


def test_the_corrective_click_answers_the_largest_error():
    truth = two_objects()
    predicted = truth.copy()
    predicted[1:5, 1:7, 2:5] = False  # 72 voxels missed
    predicted[0:2, 9:12, 0:4] = True  # 24 false ones
    missed = corrective_click(predicted, truth, SPACING)
    assert missed.positive and at(truth & ~predicted, missed.at)
    predicted = truth.copy()
    predicted[0:2, 9:12, 0:4] = True
    predicted[5, 10, 13] = False
    false = corrective_click(predicted, truth, SPACING)
    assert not false.positive and at(predicted & ~truth, false.at)
    assert corrective_click(truth, truth, SPACING) is None


def click_by_scipy(predicted, truth, spacing_mm):
    """The largest error by passes over the whole array; of two as large the missed one, then the first."""
    best, positive = np.zeros_like(truth), True
    for wrong, is_missed in ((truth & ~predicted, True), (predicted & ~truth, False)):
        labels, count = ndimage.label(wrong)
        sizes = ndimage.sum_labels(wrong, labels, range(1, count + 1))
        if count and sizes.max() > best.sum():
            best, positive = labels == sizes.argmax() + 1, is_missed
    depth = ndimage.distance_transform_edt(np.pad(best, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return Point(np.unravel_index(depth.argmax(), depth.shape), positive)


@pytest.mark.parametrize("smooth", [0.0, 0.7, 2.0])
def test_the_corrective_click_is_where_plain_scipy_puts_it(smooth):
    kinds = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = [ndimage.gaussian_filter(rng.normal(size=(13, 22, 17)), s) for s in (2.5, smooth)]
        truth = values[0] / values[0].std() > 0.5
        predicted = values[0] / values[0].std() + rng.uniform(0.1, 1) * values[1] / values[1].std() > 0.5
        if seed % 3 == 0:  # few single voxels, so that many errors are as large as each other
            predicted = truth ^ (rng.random(truth.shape) < 0.002)
        click = corrective_click(predicted, truth, SPACING)
        assert click == click_by_scipy(predicted, truth, SPACING)
        kinds.add(click.positive)
    assert kinds == {True, False}


def test_of_errors_as_large_as_each_other_the_missed_one_is_clicked_and_then_the_first():
    truth = np.zeros((4, 6, 9), bool)
    truth[1, 2, 3:5] = truth[3, 4, 6:8] = True
    predicted = np.zeros_like(truth)
    predicted[0, 0, 0:2] = True
    assert corrective_click(predicted, truth, SPACING) == Point((1, 2, 3), True)
    assert corrective_click(predicted | truth, truth, SPACING) == Point((0, 0, 0), False)


def test_a_random_voxel_is_each_voxel_of_the_mask_equally_often():
    mask = two_objects()
    mask[0, :2, :3] = True
    drawn = [random_voxel(mask, np.random.default_rng(seed)) for seed in range(2000)]
    voxels, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(voxel) for voxel in voxels} == {tuple(voxel) for voxel in np.argwhere(mask)}
    assert counts.max() < 4 * counts.mean()
