"""From a user's prompts to the preprocessed array; what does not fit the image is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import truncate
from phantoms import ORIGIN_MM, SPACING_MM, write_volume

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.geometry import CaseGeometry, Space, case_geometry
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.prompts.placing import PlacedPrompts, place_case, place_prompts, read_mask
from sam3dnet.prompts.stated import Source, StatedPrompts, corners_of
from sam3dnet.prompts.types import Box, ClassPrompts, Point

SHAPE = (5, 6, 7)
DIRECTION = (0, 1, 0, -1, 0, 0, 0, 0, 1)  # i runs to the front, j to the left
GEOMETRY_MM = {"spacing": SPACING_MM[::-1], "origin": ORIGIN_MM, "direction": DIRECTION}
PROPERTIES: dict[str, Any] = {
    "spacing": list(SPACING_MM),
    "sitk_stuff": GEOMETRY_MM,
    "shape_before_cropping": (5, 7, 6),
    "bbox_used_for_cropping": [[0, 4], [0, 7], [1, 6]],
}
TRANSPOSE = (0, 2, 1)


def make_geometry(preprocessed_shape: tuple[int, int, int] = (8, 7, 10)) -> CaseGeometry:
    """Twice as many voxels along z and y; the last slice and the first row are cropped, x comes second."""
    return case_geometry(PROPERTIES, TRANSPOSE, preprocessed_shape)


def place_boxes(*boxes: tuple[Any, Any], space: Space = "voxel", geometry: CaseGeometry | None = None) -> list[Any]:
    prompts = ClassPrompts(boxes=tuple(Box(low, high) for low, high in boxes))
    return [(box.low, box.high) for box in place_prompts(prompts, space, geometry or make_geometry()).prompts.boxes]


def clicks_of(placed: PlacedPrompts) -> list[tuple[tuple[int, int, int], bool]]:
    return [(point.voxel, point.positive) for point in placed.on_image.points]


def world(*voxel: float) -> np.ndarray:
    """Bring a file voxel (i, j, k) to LPS by hand."""
    i, j, k = voxel
    return np.add(ORIGIN_MM, (j * SPACING_MM[1], -i * SPACING_MM[2], k * SPACING_MM[0]))


@pytest.mark.parametrize("space", ["LPS", "RAS", "voxel"])
def test_point_goes_to_the_centre_of_its_voxel(space: Space) -> None:
    """Also one that lies off the centre, or by rounding a little outside of the image."""
    geometry = make_geometry()
    for given, voxel in (((5, 3, 2), (2, 3, 5)), ((4.6, 3.4, 1.7), (2, 3, 5)), ((-0.5004, 5.5004, 0), (0, 5, 0))):
        at = {"voxel": np.array(given), "LPS": world(*given), "RAS": world(*given) * (-1, -1, 1)}[space]
        placed = place_prompts(ClassPrompts(points=(Point(at),)), space, geometry)  # type: ignore[arg-type]
        assert clicks_of(placed) == [(voxel, True)]
        (point,) = placed.prompts.points
        z, y, x = voxel
        np.testing.assert_allclose(point.at, (2 * z + 0.5, x, 2 * (y - 1) + 0.5))
        assert geometry.array_voxel(point.at) == voxel


def test_points_keep_order_and_polarity() -> None:
    points = (Point((1, 2, 3), False), Point((4, 5, 2)), Point((1, 2, 3)))
    placed = place_prompts(ClassPrompts(points=points), "voxel", make_geometry())
    assert clicks_of(placed) == [((3, 2, 1), False), ((2, 5, 4), True), ((3, 2, 1), True)]
    assert [point.positive for point in placed.prompts.points] == [False, True, True]


def test_points_where_the_crop_leaves_zeros_out_are_clicks_alone(caplog: pytest.LogCaptureFixture) -> None:
    points = (Point((3, 0, 2)), Point((3, 1, 2)), Point((3, 3, 4), False))
    placed = place_prompts(ClassPrompts(points=points), "voxel", make_geometry())
    assert [voxel for voxel, _ in clicks_of(placed)] == [(2, 0, 3), (2, 1, 3), (4, 3, 3)]
    assert [point.at for point in placed.prompts.points] == [(4.5, 3.0, 0.5)]
    assert caplog.text.count("the network does not see them") == 1


@pytest.mark.parametrize(
    ("at", "space", "message"),
    [
        (
            (7, 0, 0),
            "voxel",
            r"\(7, 0, 0\) in voxel .* voxel is at \(0, 0, 0\) and last at \(6, 5, 4\); an index",
        ),
        ((0, 0, -0.6), "voxel", r"point \(0, 0, -0.6\) in voxel lies outside of the image"),
        (ORIGIN_MM, "RAS", r"first voxel is at \(11, -23, 5\) and last at \(7.5, -16.4, 17\); correct .* is it in LPS"),
        ((11, -23, 5), "LPS", "is it in RAS, or of another image"),
    ],
)
def test_point_outside_of_the_image_is_refused(at: Any, space: Space, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        place_prompts(ClassPrompts(points=(Point(at),)), space, make_geometry())


def test_box_goes_from_the_first_voxel_to_the_last() -> None:
    """Both sides of a voxel are its own, so twice as many voxels along an axis take in the neighbours between."""
    assert place_boxes(((2, 1, 1), (4, 3, 2))) == [((2, 2, 0), (5, 4, 5))]
    assert place_boxes(((2, 3, 1), (4, 3, 1))) == [((2, 2, 4), (3, 4, 5))]


def test_thin_box_keeps_its_middle_on_a_coarser_grid() -> None:
    geometry = make_geometry((2, 7, 5))
    assert place_boxes(((2, 3, 1), (2, 3, 1)), geometry=geometry) == [((0.25, 2, 2), (0.25, 2, 2))]
    assert place_boxes(((2, 3, 0), (2, 3, 2)), geometry=geometry) == [((0.0, 2, 2), (0.5, 2, 2))]


@pytest.mark.parametrize("space", ["LPS", "RAS"])
def test_box_in_millimetres_takes_in_each_voxel_that_it_touches(space: Space) -> None:
    ends = np.array([world(1.5, 0.5, 0.5), world(4.5, 3.5, 2.5)])  # the outer sides of voxels (2, 1, 1) to (4, 3, 2)
    ends = ends * (-1, -1, 1) if space == "RAS" else ends
    assert place_boxes((ends.min(0), ends.max(0)), space=space) == place_boxes(((2, 1, 1), (4, 3, 2)))
    middle = (ends.min(0) * 0.9 + ends.max(0) * 0.1, ends.min(0) * 0.1 + ends.max(0) * 0.9)
    assert place_boxes(middle, space=space) == place_boxes(((2, 1, 1), (4, 3, 2)))
    flat = ends.mean(0) * (1, 1, 0) + ends[0] * (0, 0, 1)  # between two slices, and without thickness
    assert place_boxes((flat, flat), space=space) == place_boxes(((3, 2, 1), (3, 2, 1)))


def test_box_is_cut_off_at_the_image_and_the_crop(caplog: pytest.LogCaptureFixture) -> None:
    assert place_boxes(((-3, -3, -3), (9, 2, 9))) == [((0, 0, 0), (7, 6, 3))]
    placed = place_prompts(ClassPrompts(boxes=(Box((-3, 0.6, 1.4), (9, 2, 9)),)), "voxel", make_geometry())
    assert placed.on_image.boxes == (Box((1, 1, 0), (4, 2, 6)),)
    assert place_boxes(((0, 0, 0), (6, 0, 3)), ((0, 0, 4), (6, 5, 4))) == []
    assert caplog.text.count("the network does not see them") == 1


@pytest.mark.parametrize(("low", "high"), [((7, 0, 0), (9, 5, 4)), ((0, 0, -4), (6, 5, -1))])
def test_box_outside_of_the_image_is_refused(low: Any, high: Any) -> None:
    with pytest.raises(PromptError, match=r"box from .* to .* in voxel lies outside of the image, whose first voxel"):
        place_boxes((low, high))


def test_mask_lands_where_its_voxels_do() -> None:
    geometry = make_geometry()
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:3, 2:4, 3] = True
    prompts = place_prompts(ClassPrompts(mask=mask), "voxel", geometry)
    placed, drawn = prompts.prompts.mask, prompts.on_image.mask
    assert placed is not None
    assert drawn is not None
    np.testing.assert_array_equal(drawn, mask)
    assert not np.shares_memory(drawn, mask)  # its owner may draw on
    low, high = place_boxes(((3, 2, 1), (3, 3, 2)))[0]
    found = np.argwhere(placed)
    assert (found.min(0).tolist(), found.max(0).tolist()) == (list(low), list(high))
    with pytest.raises(PromptError, match=r"the mask has shape \(5, 7, 6\) \(z, y, x\), the image \(5, 6, 7\)"):
        place_prompts(ClassPrompts(mask=np.zeros((5, 7, 6), dtype=bool)), "voxel", geometry)


def write_mask(path: Path, values: np.ndarray | None = None, **geometry: Any) -> Path:
    array = np.zeros(SHAPE, dtype=np.uint8) if values is None else values
    write_volume(array, path, **{"direction": DIRECTION, **geometry})
    return path


def two_valued(voxel: tuple[int, int, int], value: int = 1) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[voxel] = value
    return array


def test_mask_is_read_whatever_its_value(tmp_path: Path) -> None:
    for value in (1, 255):
        mask = read_mask(
            write_mask(tmp_path / "m.nii.gz", two_valued((1, 2, 3), value)),
            DatasetReader("SimpleITKIO"),
            PROPERTIES,
            SHAPE,
        )
        assert mask.dtype == bool
        assert np.argwhere(mask).tolist() == [[1, 2, 3]]
    assert not read_mask(write_mask(tmp_path / "m.nii.gz"), DatasetReader("SimpleITKIO"), PROPERTIES, SHAPE).any()


@pytest.mark.parametrize(
    ("values", "geometry", "message"),
    [
        (np.zeros((5, 6, 8), np.uint8), {}, r"has shape \(5, 6, 8\) \(z, y, x\), the image \(5, 6, 7\)"),
        (np.full(SHAPE, 2, np.uint8) - two_valued((1, 1, 1)), {}, "holds the values 1, 2; expected 0 and one other"),
        (None, {"origin_mm": (-11, 23, 9)}, "another origin, spacing or direction"),
        (None, {"spacing_mm": (3.0, 0.7, 1.2)}, "another origin, spacing or direction"),
        (None, {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, "another origin, spacing or direction"),
        (np.full(SHAPE, np.nan, np.float32), {}, "NaN|not finite|finite"),
    ],
)
def test_wrong_mask_is_refused(tmp_path: Path, values: Any, geometry: dict[str, Any], message: str) -> None:
    path = write_mask(tmp_path / "mask.nii.gz", values, **geometry)
    with pytest.raises(PromptError, match=f"mask.*{message}"):
        read_mask(path, DatasetReader("SimpleITKIO"), PROPERTIES, SHAPE)


def test_damaged_mask_is_refused(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "mask.nii.gz", two_valued((1, 2, 3)))
    truncate(path, 0.5)
    with pytest.raises(PromptError, match=r"mask .*mask.nii.gz"):
        read_mask(path, DatasetReader("SimpleITKIO"), PROPERTIES, SHAPE)
    (tmp_path / "mask.nrrd").write_text("no image", encoding="utf-8")
    with pytest.raises(PromptError, match=r"mask .*mask.nrrd"):
        read_mask(tmp_path / "mask.nrrd", DatasetReader("SimpleITKIO"), PROPERTIES, SHAPE)


def test_what_several_files_state_is_put_together(tmp_path: Path) -> None:
    one, other = (Source(tmp_path / name, "case", "tumour") for name in ("a.json", "b.json"))
    first, second = (write_mask(tmp_path / f"{z}.nii.gz", two_valued((z, 2, 3))) for z in (1, 2))
    stated = (
        StatedPrompts(one, "voxel", (Point((3, 2, 1)),), (corners_of(Box((3, 2, 1), (3, 2, 1))),), first),
        StatedPrompts(other, "LPS", (Point(world(3, 2, 1), False),), (), second),  # type: ignore[arg-type]
    )
    placed = place_case({"tumour": stated}, make_geometry(), DatasetReader("SimpleITKIO"), PROPERTIES)["tumour"]
    assert clicks_of(placed) == [((1, 2, 3), True), ((1, 2, 3), False)]
    assert [point.positive for point in placed.prompts.points] == [True, False]
    assert len(placed.prompts.boxes) == 1
    assert placed.prompts.mask is not None
    assert np.unique(np.argwhere(placed.prompts.mask)[:, 0]).tolist() == [2, 3, 4, 5]
    assert placed.on_image.boxes == (Box((1, 2, 3), (1, 2, 3)),)
    assert placed.on_image.mask is not None
    assert np.argwhere(placed.on_image.mask).tolist() == [[1, 2, 3], [2, 2, 3]]
    assert not placed.instance
    wanted = (stated[0], replace(stated[1], instance=True))
    assert place_case({"tumour": wanted}, make_geometry(), DatasetReader("SimpleITKIO"), PROPERTIES)["tumour"].instance


def test_rotated_region_is_enclosed_in_the_array(tmp_path: Path) -> None:
    """A region along the axes of a tilted image is no larger in the image than it was drawn."""
    tilt = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    stored = {**GEOMETRY_MM, "direction": tilt.ravel().tolist()}
    geometry = case_geometry({**PROPERTIES, "sitk_stuff": stored}, TRANSPOSE, (8, 7, 10))
    corners = geometry.from_array(np.array(corners_of(Box((0.6, 1.6, 1.6), (2.4, 3.4, 3.4)))), "RAS")
    stated = StatedPrompts(
        Source(tmp_path / "case.mrk.json", "case", "tumour"), "RAS", boxes=(tuple(map(tuple, corners.tolist())),)
    )
    (box,) = place_case({"tumour": (stated,)}, geometry, DatasetReader("SimpleITKIO"), PROPERTIES)[
        "tumour"
    ].prompts.boxes
    assert (box.low, box.high) == place_boxes(((2, 2, 1), (3, 3, 2)))[0]


def test_error_names_file_case_and_class(tmp_path: Path) -> None:
    source = Source(tmp_path / "prompts.json", "case", "tumour")
    stated = StatedPrompts(source, "voxel", (Point((1, 2, 30)),))
    with pytest.raises(PromptError, match=r'prompts.json: case "case", class "tumour": point \(1, 2, 30\) in'):
        place_case({"tumour": (stated,)}, make_geometry(), DatasetReader("SimpleITKIO"), PROPERTIES)
