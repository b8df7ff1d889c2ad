"""Metrics against values worked out by hand, on a grid whose axes all differ."""

import math

import numpy as np
import pytest

from sam3dnet.evaluation.lesions import LesionCounts, count_lesions
from sam3dnet.evaluation.metrics import MaskScore, score_masks

SHAPE = (5, 6, 13)
SPACING_MM = (3.0, 0.7, 1.1)
VOXEL_ML = 3.0 * 0.7 * 1.1 / 1000
DIAGONAL_MM = math.sqrt(15.0**2 + 4.2**2 + 14.3**2)


def mask(*boxes: tuple[object, object, object]) -> np.ndarray:
    """Mark boxes given as indices or slices (z, y, x)."""
    marked = np.zeros(SHAPE, dtype=bool)
    for box in boxes:
        marked[box] = True
    return marked


def score(prediction: np.ndarray, truth: np.ndarray, tolerance_mm: float = 1.5, **options: object) -> MaskScore:
    return score_masks(prediction, truth, SPACING_MM, tolerance_mm=tolerance_mm, **options)


def test_counts_and_volumes() -> None:
    truth, prediction = mask((1, 2, slice(2, 8))), mask((1, 2, slice(5, 9)))
    found = score(prediction, truth)
    assert (found.true_positive, found.false_positive, found.false_negative) == (3, 1, 3)
    assert found.true_negative == truth.size - 7
    assert found.dice == pytest.approx(6 / 10)
    assert found.truth_ml == pytest.approx(6 * VOXEL_ML)
    assert found.prediction_ml == pytest.approx(4 * VOXEL_ML)
    assert found.volume_error_ml == pytest.approx(-2 * VOXEL_ML)
    assert found.volume_error_relative == pytest.approx(-2 / 6)
    assert found.empty == ""


def test_equal_masks_are_perfect() -> None:
    truth = mask((slice(1, 4), slice(0, 3), slice(2, 6)))
    found = score(truth, truth, tolerance_mm=0.0)
    assert (found.dice, found.nsd, found.hd95_mm, found.volume_error_ml) == (1, 1, 0, 0)
    assert (found.lesion_recall, found.lesion_precision) == (1, 1)


@pytest.mark.parametrize(("tolerance_mm", "nsd"), [(1.0, 0.0), (1.5, 0.5), (2.5, 1.0)])
def test_surface_of_two_single_voxels(tolerance_mm: float, nsd: float) -> None:
    """Each has eight equal corners; the inner four are 1.1 mm from the other's, the outer four 2.2 mm."""
    found = score(mask((2, 3, 4)), mask((2, 3, 6)), tolerance_mm)
    assert found.nsd == pytest.approx(nsd)
    assert found.hd95_mm == pytest.approx(2.2)


@pytest.mark.parametrize("x", [4, 0])
def test_area_of_the_surface_counts_and_not_its_voxels(x: int) -> None:
    """A prediction one voxel longer: its far end is wrong, four corners of a triangle each (a half of
    sqrt(p²q² + q²r² + p²r²), with half the spacings); its middle is right, four rectangles."""
    p, q, r = (spacing / 2 for spacing in SPACING_MM)
    triangle = math.sqrt((p * q) ** 2 + (q * r) ** 2 + (p * r) ** 2) / 2
    rectangle = math.sqrt(p**2 + q**2) * 2 * r
    found = score(mask((2, 0, slice(x, x + 2))), mask((2, 0, x)), tolerance_mm=0.5)
    expected = (8 * triangle + 4 * triangle + 4 * rectangle) / (8 * triangle + 8 * triangle + 4 * rectangle)
    assert found.nsd == pytest.approx(expected, abs=1e-6)


def test_hd95_is_a_percentile_of_each_side() -> None:
    """Ten of eleven predicted voxels lie on the truth, one beside it: 95 % lies halfway between 0 and 1.1 mm."""
    found = score(mask((2, 3, slice(1, 12))), mask((2, 3, slice(1, 11))))
    assert found.hd95_mm == pytest.approx(0.55)


@pytest.mark.parametrize(("shift", "distance_mm"), [((1, 0, 0), 3.0), ((0, 1, 0), 0.7), ((0, 0, 1), 1.1)])
def test_distances_follow_the_spacing_of_their_axis(shift: tuple[int, int, int], distance_mm: float) -> None:
    truth = mask((2, 3, 4))
    found = score(np.roll(truth, shift, (0, 1, 2)), truth, tolerance_mm=distance_mm - 0.1)
    assert found.hd95_mm == pytest.approx(distance_mm)
    assert found.nsd < 1


def test_both_empty() -> None:
    found = score(mask(), mask())
    assert (found.dice, found.nsd, found.hd95_mm, found.volume_error_ml, found.volume_error_relative) == (1, 1, 0, 0, 0)
    assert math.isnan(found.lesion_recall)
    assert math.isnan(found.lesion_precision)
    assert (found.empty, found.true_negative) == ("both", math.prod(SHAPE))


def test_empty_truth() -> None:
    found = score(mask((1, 1, slice(1, 3))), mask())
    assert (found.dice, found.nsd, found.lesion_precision) == (0, 0, 0)
    assert found.hd95_mm == pytest.approx(DIAGONAL_MM)
    assert found.volume_error_ml == pytest.approx(2 * VOXEL_ML)
    assert math.isnan(found.volume_error_relative)
    assert math.isnan(found.lesion_recall)
    assert found.empty == "truth"


def test_empty_prediction() -> None:
    found = score(mask(), mask((1, 1, slice(1, 3))))
    assert (found.dice, found.nsd, found.lesion_recall, found.volume_error_relative) == (0, 0, 0, -1)
    assert found.hd95_mm == pytest.approx(DIAGONAL_MM)
    assert math.isnan(found.lesion_precision)
    assert found.empty == "prediction"


def test_ignored_voxels_count_nowhere() -> None:
    truth, ignored = mask((2, 3, slice(2, 5))), mask((slice(None), slice(None), slice(7, None)))
    found = score(mask((2, 3, slice(2, 5)), (1, 1, slice(8, 11))), truth, ignored_ZYX=ignored)
    assert (found.dice, found.nsd, found.hd95_mm, found.lesions_predicted) == (1, 1, 0, 1)
    assert found.true_negative == 5 * 6 * 7 - 3


def test_what_nobody_annotated_cuts_no_lesion_in_pieces() -> None:
    """One object, of which a true lesion is a part, with stripes that are ignored."""
    ignored = mask((slice(None), slice(None), slice(3, None, 3)))
    truth, prediction = mask((2, 3, slice(1, 3))), mask((2, 3, slice(1, 13)))
    found = score(prediction, truth, ignored_ZYX=ignored)
    assert (found.lesions_truth, found.lesions_predicted, found.lesions_found, found.lesions_correct) == (1, 1, 1, 1)
    assert (found.true_positive, found.false_positive) == (2, 6)
    assert count_lesions(prediction, truth, 0.3, ignored).correct == 0  # two of eight that count


def test_lesions_connect_over_corners_and_match_by_overlap() -> None:
    truth = mask((0, 0, 0), (1, 1, 1), (2, 4, slice(3, 7)), (4, 5, 12))
    prediction = mask((1, 1, 1), (2, 4, slice(5, 9)), (4, 0, 10))
    assert count_lesions(prediction, truth) == LesionCounts(truth=3, predicted=3, found=2, correct=2)
    # One of two voxels; two of six.
    assert count_lesions(prediction, truth, 0.4) == LesionCounts(truth=3, predicted=3, found=1, correct=1)


def test_one_lesion_may_match_several() -> None:
    whole, parts = mask((2, 3, slice(2, 9))), mask((2, 3, slice(2, 5)), (2, 3, slice(6, 9)), (0, 0, 0))
    assert count_lesions(parts, whole) == LesionCounts(truth=1, predicted=3, found=1, correct=2)
    assert count_lesions(whole, parts) == LesionCounts(truth=3, predicted=1, found=2, correct=1)


def test_an_iou_of_zero_still_wants_a_common_voxel() -> None:
    large, inside, beside = mask((2, slice(0, 5), slice(0, 12))), mask((2, 0, 0)), mask((4, 5, 12))
    assert count_lesions(inside, large, 0).found == 1
    assert count_lesions(inside, large, 0.1).found == 0
    assert count_lesions(beside, large, 0).found == 0
