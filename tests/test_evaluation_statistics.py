"""Means with their intervals, pooled ratios and paired differences."""

import math

import numpy as np
import pytest

from sam3dnet.evaluation.statistics import estimate_difference, estimate_mean, estimate_ratio

NAN = float("nan")


def test_mean_median_and_interval() -> None:
    """Of two cases a resample holds one twice in a quarter of the draws each, so the interval is the whole range."""
    estimate = estimate_mean([0.0, 1.0])
    assert (estimate.mean, estimate.median, estimate.low, estimate.high, estimate.count) == (0.5, 0.5, 0.0, 1.0, 2)
    assert estimate_mean([1.0, 2.0, 9.0]).median == 2.0


def test_interval_agrees_with_theory_and_is_seeded() -> None:
    values = list(np.random.default_rng(3).normal(5, 2, 400))
    estimate = estimate_mean(values)
    half_width = 1.96 * np.std(values) / math.sqrt(400)
    assert estimate.low == pytest.approx(estimate.mean - half_width, abs=0.03)
    assert estimate.high == pytest.approx(estimate.mean + half_width, abs=0.03)
    assert estimate_mean(values) == estimate


def test_cases_without_value_are_counted() -> None:
    estimate = estimate_mean([NAN, 2.0, 4.0, NAN])
    assert (estimate.mean, estimate.count, estimate.undefined) == (3.0, 2, 2)


@pytest.mark.parametrize(("values", "mean", "count"), [([], NAN, 0), ([NAN], NAN, 0), ([3.0], 3.0, 1)])
def test_too_few_cases_have_no_interval(values: list[float], mean: float, count: int) -> None:
    estimate = estimate_mean(values)
    assert estimate.mean == pytest.approx(mean, nan_ok=True)
    assert estimate.count == count
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_ratio_is_pooled_over_the_cases() -> None:
    estimate = estimate_ratio([1, 0, 0, 8], [1, 1, 0, 8])
    assert estimate.mean == pytest.approx(9 / 10)
    assert (estimate.median, estimate.count, estimate.undefined) == (1.0, 3, 1)
    assert 0 <= estimate.low < 0.9 < estimate.high <= 1
    assert math.isnan(estimate_ratio([0], [0]).mean)


def test_difference_is_paired() -> None:
    """All six differences are positive and of different size: p is 2 / 2**6."""
    first = [0.1, 0.9, 0.4, 0.3, 0.5, 0.2]
    second = [a + 0.01 * step for step, a in enumerate(first, start=1)]
    estimate = estimate_difference(first, second)
    assert estimate.mean == pytest.approx(0.035)
    assert estimate.p_value == pytest.approx(2 / 64)
    assert 0.01 <= estimate.low < 0.035 < estimate.high <= 0.06
    assert estimate_difference(second, first).mean == pytest.approx(-0.035)


def test_difference_without_difference_or_cases() -> None:
    assert estimate_difference([0.3, 0.4], [0.3, 0.4]).p_value == 1.0
    nothing = estimate_difference([NAN, 0.3], [0.1, NAN])
    assert (nothing.count, nothing.undefined) == (0, 2)
    assert math.isnan(nothing.p_value)
