"""How deep voxels lie inside an object: bit for bit as scipy's distance transform of the whole array says."""

import numpy as np
import pytest
from scipy import ndimage

from sam3dnet.prompts import depth
from sam3dnet.prompts.depth import cut_out, deepest_voxel, depth_at, near_surface

SPACINGS = [(3.0, 0.7, 1.1), (3.0, 0.7, 0.7), (0.8, 0.9, 0.8)]
SHAPE = (19, 34, 29)


def blobs(rng, smooth, share):
    values = ndimage.gaussian_filter(rng.normal(size=SHAPE), smooth)
    return values > np.quantile(values, 1 - share)


def shell(rng):
    solid = blobs(rng, 4, 0.4)
    return solid & ~ndimage.binary_erosion(solid)


def bar(_):
    mask = np.zeros(SHAPE, bool)
    mask[3:15, 2:31, 4:17] = True
    return mask


MASKS = {
    "noise": lambda rng: blobs(rng, 0.6, 0.3),
    "blobs": lambda rng: blobs(rng, 3, 0.3),
    "almost all": lambda rng: blobs(rng, 2, 0.98),
    "shell": shell,
    "bar": bar,
    "all": lambda _: np.ones(SHAPE, bool),
}


def whole_transform(mask, spacing_mm):
    return ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]


def paths(monkeypatch):
    """Take note of which way depths are found."""
    taken = set()
    for name in ("_depth_by_lookup", "_depth_in_boxes", "_deepest_candidate"):
        original = getattr(depth, name)
        monkeypatch.setattr(
            depth, name, lambda *a, name=name, original=original, **o: taken.add(name) or original(*a, **o)
        )
    return taken


@pytest.mark.parametrize(("most_offsets", "thin"), [(0, 0.0), (4_000, 0.0), (4_000, 6.0)])
def test_the_deepest_voxel_is_scipy_s_to_the_bit_whatever_way_it_is_found(monkeypatch, most_offsets, thin):
    monkeypatch.setattr(depth, "FEW_VOXELS", 0)
    monkeypatch.setattr(depth, "MOST_OFFSETS", most_offsets)
    monkeypatch.setattr(depth, "THIN", thin)
    taken = paths(monkeypatch)
    for number, (make, spacing_mm) in enumerate((make, mm) for make in MASKS.values() for mm in SPACINGS * 2):
        mask = make(np.random.default_rng(number))
        expected = whole_transform(mask, spacing_mm)
        voxel, depth_mm = deepest_voxel(mask, spacing_mm)
        assert voxel == np.unravel_index(expected.argmax(), SHAPE)
        assert depth_mm == expected.max()
    assert taken == {"_depth_by_lookup", "_depth_in_boxes", "_deepest_candidate"}


def test_what_would_take_longer_is_left_to_scipy(monkeypatch):
    for name in ("FEW_VOXELS", "THIN", "MOST_OFFSETS", "MOST_STEPS"):
        monkeypatch.setattr(depth, name, 0)
    mask = blobs(np.random.default_rng(0), 3, 0.3)
    expected = whole_transform(mask, SPACINGS[0])
    assert deepest_voxel(mask, SPACINGS[0]) == (np.unravel_index(expected.argmax(), SHAPE), expected.max())


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_the_depth_of_one_voxel_and_what_is_near_the_surface_are_scipy_s(spacing_mm):
    rng = np.random.default_rng(3)
    mask = blobs(rng, 2, 0.4)
    expected = whole_transform(mask, spacing_mm)
    for at in rng.permutation(np.argwhere(mask))[:20]:
        assert depth_at(mask, tuple(at), spacing_mm) == expected[tuple(at)]
    reach_mm = 2 * min(spacing_mm)
    near = near_surface(mask, spacing_mm, reach_mm)
    np.testing.assert_array_equal(near, (expected > 0) & (expected <= reach_mm))
    assert 0 < near.sum() < mask.sum()


def test_a_mask_is_cut_to_its_bounding_box():
    mask = np.zeros((5, 6, 7), bool)
    mask[1:4, 2, 3:5] = True
    mask[2, 4, 6] = True
    corner, cut = cut_out(mask)
    assert corner == (1, 2, 3)
    np.testing.assert_array_equal(cut, mask[1:4, 2:5, 3:7])
