"""Summaries over cases with their uncertainty: seeded bootstrap intervals and a paired test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
INTERVAL_PERCENT = (2.5, 97.5)
SEED = 20240


@dataclass(frozen=True)
class Estimate:
    """A mean over cases, its 95 % bootstrap interval (percentiles), and the median.

    Attributes:
        mean: Or the pooled ratio.
        low: Lower end of the interval; NaN with fewer than two cases, as is `high`.
        high: Upper end.
        median: Over the cases.
        count: Cases that have a value.
        undefined: Cases that have none.
    """

    mean: float
    low: float
    high: float
    median: float
    count: int
    undefined: int


@dataclass(frozen=True)
class PairedEstimate(Estimate):
    """The paired difference, second minus first; `p_value` of Wilcoxon's signed-rank test, two-sided."""

    p_value: float


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Summarise one value a case; NaN stands for a case without a value."""
    defined = _defined(values)
    low, high = _interval(len(defined), lambda drawn: defined[drawn].mean(1))
    return Estimate(_mean(defined), low, high, _median(defined), len(defined), len(values) - len(defined))


def estimate_ratio(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    """Divide two sums over the cases, such as lesions found by lesions there are; cases are drawn for the interval.

    Args:
        parts: One number a case.
        wholes: One number a case; one of 0 adds nothing.

    Returns:
        The ratio of the sums as mean, and the median of the ratios of the cases.
    """
    used = [(part, whole) for part, whole in zip(parts, wholes, strict=True) if whole]
    pairs = np.array(used, dtype=float).reshape(-1, 2)
    low, high = _interval(len(pairs), lambda drawn: np.divide(*pairs[drawn].sum(1).T))
    ratio = float(np.divide(*pairs.sum(0))) if used else np.nan
    return Estimate(ratio, low, high, _median(pairs[:, 0] / pairs[:, 1]), len(pairs), len(parts) - len(pairs))


def estimate_difference(first: Sequence[float], second: Sequence[float]) -> PairedEstimate:
    """Summarise second minus first, case by case; NaN on one side leaves the case undefined."""
    differences = np.subtract(second, first, dtype=float)
    estimate = estimate_mean(list(differences))
    return PairedEstimate(**vars(estimate), p_value=_signed_rank_p_value(_defined(differences)))


def _signed_rank_p_value(differences: np.ndarray) -> float:
    """Test whether the differences are symmetric around zero; 1 where all are zero, NaN where there are none."""
    if not len(differences):
        return np.nan
    if not np.any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)


def _interval(num_cases: int, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Draw cases with replacement; `statistic` takes their indices, (resamples, cases), and gives one value a row."""
    if num_cases < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(SEED).integers(0, num_cases, (RESAMPLES, num_cases))
    low, high = np.percentile(statistic(drawn), INTERVAL_PERCENT)
    return float(low), float(high)


def _defined(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[~np.isnan(array)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan
