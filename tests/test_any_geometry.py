"""Any orientation, spacing, transposition and crop: coordinates come back; any image is covered by its windows."""

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st
from properties import for_any, triples

from sam3dnet.interactive.window_grid import WindowGrid, first_windows, prompts_in_window
from sam3dnet.preprocessing.geometry import CaseGeometry, case_geometry, nearest_voxel
from sam3dnet.prompts.types import Box, ClassPrompts, Point

ROTATIONS = [
    np.eye(3)[list(axes)] * signs
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SPACES = st.sampled_from(["LPS", "RAS", "voxel"])
LENGTHS_MM = st.floats(0.05, 12.0)
PLACES_MM = st.floats(-500, 500)


def sitk_properties(spacing: Any, origin: Any, direction: np.ndarray) -> dict[str, Any]:
    return {"sitk_stuff": {"spacing": spacing, "origin": origin, "direction": direction.ravel().tolist()}}


def nibabel_properties(spacing: Any, origin: Any, direction: np.ndarray) -> dict[str, Any]:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * np.asarray(spacing), origin
    return {"nibabel_stuff": {"original_affine": affine}}


@st.composite
def geometries(draw: st.DrawFn) -> CaseGeometry:
    """Draw an image of any place, orientation and tilt, and how it is transposed, cropped and resampled."""
    tilt = draw(st.floats(-0.7, 0.7))
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    direction = turn @ draw(st.sampled_from(ROTATIONS))
    where = draw(st.sampled_from([sitk_properties, nibabel_properties]))
    properties = where(draw(triples(LENGTHS_MM)), draw(triples(PLACES_MM)), direction)
    shape = draw(triples(st.integers(1, 40)))
    box = [sorted(draw(st.tuples(st.integers(0, size - 1), st.integers(1, size)))) for size in shape]
    properties["shape_before_cropping"] = shape
    properties["bbox_used_for_cropping"] = [(low, max(high, low + 1)) for low, high in box]
    axes = draw(st.sampled_from(list(itertools.permutations(range(3)))))
    return case_geometry(properties, axes, draw(triples(st.integers(1, 60))))


@for_any(geometry=geometries(), space=SPACES, at=triples(st.floats(-50, 50)))
def test_a_place_comes_back_from_the_array(geometry: CaseGeometry, space: Any, at: Any) -> None:
    np.testing.assert_allclose(geometry.to_array(geometry.from_array(at, space), space), at, atol=1e-6)


@for_any(geometry=geometries(), at=triples(st.floats(-50, 50)))
def test_a_place_comes_back_from_the_preprocessed_array(geometry: CaseGeometry, at: Any) -> None:
    np.testing.assert_allclose(geometry.preprocessed_to_array(geometry.array_to_preprocessed(at)), at, atol=1e-9)


@for_any(geometry=geometries())
def test_what_the_crop_keeps_lies_in_the_preprocessed_array_and_all_else_outside(geometry: CaseGeometry) -> None:
    voxels = np.stack(np.meshgrid(*map(np.arange, geometry.array_shape), indexing="ij"), -1).reshape(-1, 3)
    transposed = voxels[:, geometry.transpose_forward] - geometry.crop_low
    kept = ((transposed >= 0) & (transposed < geometry.crop_shape)).all(1)
    places = geometry.array_to_preprocessed(voxels)
    inside = ((places > -0.5) & (places < np.asarray(geometry.preprocessed_shape) - 0.5)).all(1)
    np.testing.assert_array_equal(inside, kept)


@for_any(geometry=geometries(), seed=st.integers(0, 99))
def test_a_mask_and_its_voxels_come_to_the_same_places(geometry: CaseGeometry, seed: int) -> None:
    mask = np.random.default_rng(seed).random(geometry.array_shape) < 0.3
    preprocessed = geometry.mask_to_preprocessed(mask)
    assert preprocessed.shape == geometry.preprocessed_shape
    for voxel in np.argwhere(np.ones_like(preprocessed))[:: max(1, preprocessed.size // 50)]:
        exact = geometry.preprocessed_to_array(voxel)
        if np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6:  # between two voxels either is right
            assert preprocessed[tuple(voxel)] == mask[nearest_voxel(exact, mask.shape)]


@st.composite
def grids(draw: st.DrawFn) -> WindowGrid:
    patch = draw(triples(st.integers(1, 24)))
    image = [size + draw(st.integers(0, 40)) for size in patch]
    return WindowGrid.over(image, patch, draw(st.floats(0.2, 1.0)))


@for_any(grid=grids())
def test_windows_cover_every_voxel_and_nothing_else(grid: WindowGrid) -> None:
    for axis, starts in enumerate(grid.starts):
        covered = np.zeros(grid.image_shape[axis], dtype=bool)
        for start in starts:
            assert 0 <= start <= grid.image_shape[axis] - grid.patch_size[axis]
            covered[start : start + grid.patch_size[axis]] = True
        assert covered.all()
        assert list(starts) == sorted(set(starts))


@for_any(grid=grids(), shares=st.lists(triples(st.floats(0, 1)), min_size=2, max_size=6), is_box=st.booleans())
def test_an_answer_begins_in_windows_that_see_all_prompts(grid: WindowGrid, shares: Any, is_box: bool) -> None:
    top = np.asarray(grid.image_shape) - 1
    places = [tuple(np.round(np.asarray(share) * top).tolist()) for share in shares]
    box = Box(tuple(np.minimum(*places[:2]).tolist()), tuple(np.maximum(*places[:2]).tolist()))
    prompts = ClassPrompts(tuple(map(Point, places)), (box,) if is_box else ())
    windows = first_windows(grid, prompts)
    assert len(windows) == len(set(windows))
    seen = {
        tuple(np.add(point.at, grid.corner(window)).tolist())
        for window in windows
        for point in prompts_in_window(prompts, grid.corner(window), grid.patch_size).points
    }
    assert seen == set(places)
