"""Sizes follow the spacing: images in micrometres or in wrong units plan as fast, and scores fit them."""

import numpy as np
import pytest
from fingerprints import measure

from sam3dnet.evaluation.results import format_number
from sam3dnet.evaluation.tolerance import choose_tolerance
from sam3dnet.planning.objects import MOST_SHELL_VOXELS
from sam3dnet.preprocessing.checks_geometry import Grid, check_extents


@pytest.mark.parametrize("spacing_mm", [1e-3, 3e-7])
def test_the_shell_around_an_object_is_never_wider_than_some_voxels(spacing_mm):
    mask = np.zeros((60, 60, 60), bool)
    mask[28:32, 28:32, 28:32] = True
    image = np.zeros((1, *mask.shape), np.float32)
    reach = MOST_SHELL_VOXELS
    image[0, 28 - reach : 32 + reach, 28 - reach : 32 + reach, 28 - reach : 32 + reach] = 1
    measures = measure(image, mask, (spacing_mm,) * 3)
    assert measures is not None
    assert measures.around[0]["mean"] == 1


@pytest.mark.parametrize(
    ("spacing_mm", "mm", "source"),
    [
        ((3.0, 0.8, 0.8), 2.0, "default"),
        ((0.1, 0.1, 0.1), 2.0, "default"),
        ((5e-5, 4e-6, 4e-6), 8e-6, "2 voxels, since 2 mm are more than 20 of them"),
        ((20000.0, 20000.0, 20000.0), 20000.0, "a voxel, since 2 mm are less than half of one"),
        (None, 2.0, "default"),
    ],
)
def test_the_tolerance_follows_voxels_that_are_far_from_a_millimetre(spacing_mm, mm, source):
    tolerance = choose_tolerance(["Dataset001_Cells"], None, spacing_mm)
    assert (tolerance.mm, tolerance.source) == (pytest.approx(mm), source)
    assert choose_tolerance(["Dataset001_Cells"], 0.5, spacing_mm).mm == 0.5


def test_a_kidney_under_the_microscope_is_not_scored_as_one_in_ct():
    assert choose_tolerance(["Dataset001_Kidney"], None, (3.0, 0.8, 0.8)).mm == 5
    assert choose_tolerance(["Dataset001_Kidney"], None, (2e-3, 1e-3, 1e-3)).mm == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("channels", "spacing_mm", "is_told"),
    [
        (["CT"], (2.0, 1.0, 1.0), False),
        (["MR_T2SPIR", "PET"], (0.2, 0.1, 0.1), False),
        (["CT"], (2e-3, 1e-3, 1e-3), True),  # written in micrometres
        (["mri"], (2e-3, 1e-3, 1e-3), True),
        (["fluorescence"], (2e-3, 1e-3, 1e-3), False),
        (["EM"], (5e-5, 4e-6, 4e-6), False),
        (["fluorescence"], (3e-7, 3e-7, 3e-7), True),  # in metres
        (["CT"], (100.0, 100.0, 100.0), True),
        ([], (20000.0, 1.0, 1.0), True),
    ],
)
def test_implausible_spacing_is_named(channels, spacing_mm, is_told):
    grids = [Grid((40, 60, 70), spacing_mm, (0, 0, 0), tuple(np.eye(3).ravel())) for _ in range(3)]
    problems = check_extents(grids, channels)
    assert [(problem.severity, problem.check) for problem in problems] == is_told * [("warning", "implausible spacing")]
    if channels == ["mri"]:
        assert "the images are 0.08 x 0.06 x 0.07 mm large (z, y, x, median)" in problems[0].message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345, "1.234"),
        (123.45, "123.5"),
        (0.0, "0.000"),
        (4.56e-7, "4.56e-07"),
        (-4.56e-7, "-4.56e-07"),
        (0.0006, "0.001"),
    ],
)
def test_small_volumes_are_not_nothing(value, text):
    assert format_number(value) == text
