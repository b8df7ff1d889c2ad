"""Prompts made up from a target."""

import numpy as np
import pytest
from scipy import ndimage
from two_objects import SPACING, at, two_objects

from sam3dnet.prompts import made_up
from sam3dnet.prompts.made_up import (
    MOST_CLICKS,
    MOST_NEGATIVE_CLICKS,
    click_set,
    draw_prompts,
    jittered_box,
    negative_clicks,
    spoiled_mask,
)


def test_prompts_say_the_truth_and_every_kind_occurs(monkeypatch):
    monkeypatch.setattr(made_up, "SLIP", 0.0)
    truth = two_objects()
    kinds = set()
    for seed in range(200):
        prompts = draw_prompts(truth, SPACING, np.random.default_rng(seed))
        assert all(at(truth, point.at) == point.positive for point in prompts.points)
        kinds |= {("click", point.positive) for point in prompts.points}
        kinds.add((bool(prompts.points), bool(prompts.boxes), prompts.mask is not None))
    alone = {(True, False, False), (False, True, False), (False, False, True), (False, False, False)}
    assert kinds == {("click", True), ("click", False), (True, True, False), (True, False, True)} | alone


def test_the_same_seed_draws_the_same_prompts():
    drawn = [draw_prompts(two_objects(), SPACING, np.random.default_rng(3)) for _ in range(2)]
    assert drawn[0].points == drawn[1].points and drawn[0].boxes == drawn[1].boxes


def test_of_an_absent_class_only_negative_clicks_are_drawn():
    for seed in range(30):
        prompts = draw_prompts(np.zeros((5, 6, 7), bool), SPACING, np.random.default_rng(seed))
        assert not prompts.boxes and prompts.mask is None and not any(point.positive for point in prompts.points)
    assert negative_clicks(np.ones((2, 3, 4), bool), np.random.default_rng(0)) == ()


def test_a_jittered_box_stays_in_the_image_and_near_the_object():
    mask = two_objects()
    mask[5, 10, 13] = False
    boxes = [jittered_box(mask, np.random.default_rng(seed)) for seed in range(50)]
    lows, highs = (np.array([getattr(box, corner) for box in boxes]) for corner in ("low", "high"))
    assert (lows >= 0).all() and (highs < mask.shape).all()
    assert (abs(lows - [1, 1, 2]) <= 2).all() and (abs(highs - [4, 6, 7]) <= 2).all()
    assert len(np.unique(lows, axis=0)) > 5


def test_a_spoiled_mask_differs_from_the_truth_but_overlaps_it():
    truth = two_objects()
    spoiled = [spoiled_mask(truth, np.random.default_rng(seed)) for seed in range(20)]
    assert all(mask.dtype == bool and mask.shape == truth.shape for mask in spoiled)
    assert sum(bool((mask & truth).any()) for mask in spoiled) > 15
    assert sum(bool((mask ^ truth).any()) for mask in spoiled) > 15


def test_half_of_the_negative_clicks_are_close_to_the_object():
    mask = two_objects((21, 32, 45))
    close = ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 3), iterations=3)
    points = [point for seed in range(600) for point in negative_clicks(mask, np.random.default_rng(seed))]
    assert not any(at(mask, point.at) for point in points)
    near = np.mean([at(close, point.at) for point in points])
    assert near == pytest.approx(0.5 + 0.5 * (close & ~mask).sum() / (~mask).sum(), abs=0.08)


@pytest.mark.parametrize(("kind", "change"), [(0, ndimage.binary_dilation), (1, ndimage.binary_erosion)])
def test_a_spoiled_mask_is_grown_or_shrunk_as_in_the_whole_array(kind, change):
    truth = two_objects()
    truth[0] = True  # at the border
    expected = [change(truth, iterations=n) for n in (1, 2)]
    for seed in range(20):
        if np.random.default_rng(seed).integers(3) == kind:
            spoiled = spoiled_mask(truth, np.random.default_rng(seed))
            assert any((spoiled == one).all() for one in expected)


def test_a_user_clicks_once_or_up_to_twenty_times():
    sets = [click_set(two_objects(), SPACING, np.random.default_rng(seed)) for seed in range(1200)]
    positive = np.array([sum(point.positive for point in points) for points in sets])
    negative = np.array([len(points) for points in sets]) - positive
    assert (positive.min(), positive.max()) == (1, MOST_CLICKS)
    assert (negative.min(), negative.max()) == (0, MOST_NEGATIVE_CLICKS)
    once = made_up.ONE_CLICK + (1 - made_up.ONE_CLICK) * np.log(2) / np.log(MOST_CLICKS + 1)
    assert np.mean(positive == 1) == pytest.approx(once, abs=0.05)
    assert np.mean(positive > 6) == pytest.approx(
        (1 - made_up.ONE_CLICK) * (1 - np.log(7) / np.log(MOST_CLICKS + 1)), abs=0.05
    )
    assert np.mean(negative == 0) == pytest.approx(1 - made_up.NEGATIVE_CLICKS, abs=0.05)


def test_clicks_lie_all_over_the_object_or_on_one_spot_in_its_middle_or_near_its_margin(monkeypatch):
    monkeypatch.setattr(made_up, "SLIP", 0.0)
    truth = np.zeros((15, 16, 17), bool)
    truth[1:14, 1:15, 1:16] = True
    depth = ndimage.distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1, 1:-1]
    sets = [click_set(truth, (1.0, 1.0, 1.0), np.random.default_rng(seed)) for seed in range(900)]
    many = [np.array([p.at for p in points if p.positive], int) for points in sets]
    many = [points for points in many if len(points) > 5]
    on_one_spot = [np.ptp(points, axis=0).max() <= 4 for points in many]
    at_margin = [depth[tuple(points.T)].max() <= 2 < np.ptp(points, axis=0).max() / 2 for points in many]
    central = [depth[tuple(points.T)].max() == depth.max() for points in many]
    assert 0.1 < np.mean(on_one_spot) < 0.25
    assert 0.1 < np.mean(at_margin) < 0.25
    assert 0.2 < np.mean(central) < 0.6


def test_no_click_lies_where_nobody_knows_whether_the_class_is_there(monkeypatch):
    monkeypatch.setattr(made_up, "SLIP", 0.5)
    truth, valid = two_objects(), np.zeros(two_objects().shape, bool)
    valid[:, :9] = True
    for known in (truth & valid, np.zeros_like(truth)):
        for seed in range(300):
            points = draw_prompts(known, SPACING, np.random.default_rng(seed), valid).points
            assert all(at(valid, point.at) for point in points)
            assert all(not at(known, point.at) for point in points if not point.positive)
    assert negative_clicks(truth, np.random.default_rng(0), truth) == ()


def test_the_same_prompts_are_drawn_where_all_is_known():
    truth = two_objects()
    for seed in range(40):
        known, any_ = (
            draw_prompts(truth, SPACING, np.random.default_rng(seed), valid) for valid in (np.ones_like(truth), None)
        )
        assert known.points == any_.points


def test_now_and_then_a_click_goes_astray_but_stays_in_the_image():
    truth = np.zeros((3, 9, 4), bool)
    truth[0, 2:4] = True
    points = [p for seed in range(600) for p in click_set(truth, SPACING, np.random.default_rng(seed)) if p.positive]
    assert all(0 <= v < size for p in points for v, size in zip(p.at, truth.shape, strict=True))
    assert 0.01 < np.mean([not at(truth, p.at) for p in points]) < made_up.SLIP
