"""Tests of what holds for any input: hypothesis thinks of the inputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EFFORTS = {
    "short": settings(max_examples=25, derandomize=True, deadline=None, database=None),
    "long": settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]),
}
BOTH = ["short", pytest.param("long", marks=pytest.mark.slow)]


def for_any(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[str], None]]:
    """Run a test on inputs drawn from strategies: a few, always the same ones, and under -m slow many others."""

    def decorate(test: Callable[..., None]) -> Callable[[str], None]:
        @pytest.mark.parametrize("effort", BOTH)
        def run(effort: str) -> None:
            EFFORTS[effort](given(**strategies)(test))()

        run.__doc__ = test.__doc__
        return run

    return decorate


def triples(element: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any, Any]]:
    """Draw three of a kind."""
    return st.tuples(element, element, element)


def masks(longest: int = 7) -> st.SearchStrategy[np.ndarray]:
    """Draw a small bool volume (Z, Y, X), from empty to full."""

    def fill(shape: tuple[int, int, int], seed: int, share: float) -> np.ndarray:
        return np.random.default_rng(seed).random(shape) < share

    sizes, seeds = triples(st.integers(1, longest)), st.integers(0, 2**32 - 1)
    return st.builds(fill, sizes, seeds, st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]))


def pairs_of_masks(longest: int = 7) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Draw two small bool volumes of one shape."""

    def another(mask_ZYX: np.ndarray, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        return mask_ZYX, np.where(rng.random(mask_ZYX.shape) < share, rng.random(mask_ZYX.shape) < 0.5, mask_ZYX)

    return st.builds(another, masks(longest), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 1.0]))
