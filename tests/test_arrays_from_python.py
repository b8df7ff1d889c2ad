"""Images in memory: whatever is an array of numbers is taken, anything else gets one sentence."""

import numpy as np
import pytest
import torch

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import as_channels, as_spacing

ARRAY = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "image",
    [
        ARRAY,
        ARRAY.astype(">i2"),
        np.asfortranarray(ARRAY),
        ARRAY[::-1][::-1],
        ARRAY.tolist(),
        torch.from_numpy(ARRAY),
        ARRAY[None],
    ],
)
def test_what_is_an_array(image):
    channels = as_channels(image)
    assert channels.dtype == np.float32
    np.testing.assert_array_equal(channels, ARRAY[None])
    channels[:] = 0
    assert np.asarray(image).any()  # a copy


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 3, 4)),
        np.zeros((3, 4)),
        np.zeros((1, 1, 2, 3, 4)),
        [[1, 2], [3]],
        ARRAY + 1j,
        None,
        [],
        "a" * 0 or {},
    ],
)
def test_what_is_none(image):
    with pytest.raises(DatasetError, match=r"the image .*; expected numbers \(Z, Y, X\) or \(C, Z, Y, X\)"):
        as_channels(image)


@pytest.mark.parametrize(
    "spacing",
    [None, (), (1, 1), (1, 1, 0), (1, -1, 1), (1, float("nan"), 1), (1, float("inf"), 1), "1 1 1", (1, "a", 1)],
)
def test_spacings_that_are_none(spacing):
    with pytest.raises(DatasetError, match=r"spacing_mm is .*; expected three millimetres above 0"):
        as_spacing(spacing)


def test_spacings():
    assert as_spacing(np.array([3, 0.5, 0.25])) == [3.0, 0.5, 0.25]


def test_voxels_that_are_not_finite_are_refused_by_the_rule_of_files(model):
    from sam3dnet import load_model

    loaded = load_model(model)
    image = np.zeros((8, 9, 7), np.float64)
    for value in (np.nan, np.inf, 1e300):
        image[2, 3, 4] = value
        with pytest.raises(DatasetError, match="NaN, infinite or beyond float32"):
            loaded.segment(image, spacing_mm=(1, 1, 1))
    with pytest.raises(DatasetError, match="spacing_mm is"):
        loaded.segment(np.zeros((8, 9, 7)), spacing_mm=(1, 1, 0))
