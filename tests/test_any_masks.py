"""Any two masks: the metrics against the plainest way to compute them."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from properties import for_any, pairs_of_masks, triples

from sam3dnet.evaluation.lesions import count_lesions, voxels_without_partner
from sam3dnet.evaluation.metrics import score_masks

NEIGHBOURS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)]
FACES = [offset for offset in NEIGHBOURS if np.abs(offset).sum() == 1]
PAIRS = pairs_of_masks()
SPACINGS_MM = triples(st.sampled_from([0.5, 1.0, 2.5]))


def components(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Walk from voxel to voxel."""
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        one, border = set(), [left.pop()]
        while border:
            voxel = border.pop()
            one.add(voxel)
            near = {tuple(np.add(voxel, offset).tolist()) for offset in NEIGHBOURS} & left
            left -= near
            border += near
        found.append(one)
    return found


def surface(mask: np.ndarray) -> np.ndarray:
    """List the voxels that have a face without the mask; what lies outside of the array is none of it."""
    padded = np.pad(mask, 1)
    inner = np.logical_and.reduce([np.roll(padded, offset, (0, 1, 2)) for offset in FACES])
    return np.argwhere(padded & ~inner)


@for_any(pair=PAIRS, spacing_mm=SPACINGS_MM, tolerance_mm=st.sampled_from([0.0, 1.0, 3.0]))
def test_scores_are_what_counting_gives(pair: Any, spacing_mm: Any, tolerance_mm: float) -> None:
    prediction, truth = pair
    score = score_masks(prediction, truth, spacing_mm, tolerance_mm=tolerance_mm)
    a, b = (set(map(tuple, np.argwhere(mask).tolist())) for mask in pair)
    assert score.dice == pytest.approx(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
    counts = (score.true_positive, score.false_positive, score.false_negative, score.true_negative)
    assert counts == (len(a & b), len(a - b), len(b - a), truth.size - len(a | b))
    assert score.volume_error_ml == pytest.approx((len(a) - len(b)) * np.prod(spacing_mm) / 1000)
    assert 0 <= score.nsd <= 1
    assert score.nsd == pytest.approx(score_masks(truth, prediction, spacing_mm, tolerance_mm=tolerance_mm).nsd)
    if a == b:
        assert (score.dice, score.nsd, score.hd95_mm) == (1, 1, 0)


@for_any(pair=PAIRS, spacing_mm=SPACINGS_MM)
def test_hd95_is_the_larger_of_both_percentiles_of_all_distances(pair: Any, spacing_mm: Any) -> None:
    score = score_masks(*pair, spacing_mm, tolerance_mm=1)
    if not (pair[0].any() and pair[1].any()):
        return
    one, other = (surface(mask) * np.asarray(spacing_mm) for mask in pair)
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    expected = max(np.percentile(distances.min(axis), 95) for axis in (0, 1))
    assert score.hd95_mm == pytest.approx(expected, abs=1e-4)


@for_any(pair=PAIRS, min_iou=st.sampled_from([0.0, 0.1, 0.5]))
def test_lesions_are_found_as_by_comparing_all_with_all(pair: Any, min_iou: float) -> None:
    predicted, true = map(components, pair)
    matches = [
        (i, j)
        for (i, one), (j, other) in itertools.product(enumerate(predicted), enumerate(true))
        if one & other and len(one & other) / len(one | other) >= min_iou
    ]
    counts = count_lesions(*pair, min_iou)
    assert (counts.predicted, counts.truth) == (len(predicted), len(true))
    assert (counts.correct, counts.found) == (len({i for i, _ in matches}), len({j for _, j in matches}))
    alone = sum(len(one) for one in predicted if not any(pair[1][voxel] for voxel in one))
    assert voxels_without_partner(*pair, connectivity=26) == alone
