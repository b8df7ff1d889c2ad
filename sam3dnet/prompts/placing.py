"""From a user's coordinates to the preprocessed array that the network sees, and to the voxels of the label map."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import PromptError
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.geometry import DRIFT_VOXELS, CaseGeometry, Mask, Space, Voxel, nearest_voxel, same_place
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.world import Floats
from sam3dnet.prompts.stated import CasePrompts, Corners, StatedPrompts, corners_of
from sam3dnet.prompts.types import Box, ClassPrompts, Point, Scribble, as_coordinates, format_coordinates

logger = logging.getLogger(__name__)

_TOLERANCE_VOXELS = 1e-3  # of the image's outline, and of a box's sides


@dataclass(frozen=True, eq=False)
class PlacedPrompts:
    """The prompts of one class, for the network and for the label map.

    Attributes:
        prompts: In preprocessed voxels (z, y, x); what lies in the part of the image that the crop leaves out (it is
            all zeros) is not among them.
        on_image: All of them, in voxels (z, y, x) of the array that the reader gave: points and scribbles at
            the centres of the voxels that were clicked, boxes from the first to the last voxel that they touch.
        instance: Whether only those objects of the class are wanted that the prompts name.
    """

    prompts: ClassPrompts
    on_image: ClassPrompts
    instance: bool = False


def place_prompts(prompts: ClassPrompts, space: Space, geometry: CaseGeometry) -> PlacedPrompts:
    """Bring the prompts of one class from a user's coordinates to the preprocessed array.

    A point goes to the centre of the image's voxel that holds it, so that `geometry.array_voxel` finds this voxel
    again. A box takes in each of the image's voxels that it touches; what sticks out of the image is cut off.

    Args:
        prompts: Coordinates (x, y, z) in millimetres or (i, j, k); the mask is on the grid of the array that the
            reader gave, (Z, Y, X).
        space: "LPS", "RAS" or "voxel".
        geometry: From `case_geometry`.

    Raises:
        PromptError: If a point or a whole box lies outside of the image, the mask's shape is not the image's, or the
            space is in millimetres and the image has no place in the world.
    """
    points = [_clicked(point, space, geometry) for point in prompts.points]
    boxes = [_voxel_box(corners_of(box), space, geometry) for box in prompts.boxes]
    mask = None if prompts.mask is None else prompts.mask.copy()  # a user may draw on
    scribbles = [_scribbled(scribble, space, geometry) for scribble in prompts.scribbles]
    return _placed(ClassPrompts(tuple(points), tuple(boxes), mask, tuple(scribbles)), geometry)


def place_case(
    stated_by_class: CasePrompts, geometry: CaseGeometry, reader: DatasetReader, properties: Mapping[str, Any]
) -> "dict[str, PlacedPrompts]":
    """Bring all prompts that files state about one case to its preprocessed array.

    Args:
        stated_by_class: From `FilePrompts.of_case`; what several files state about one class is put together, masks
            by their union; that only named objects are wanted holds if one file says so.
        geometry: From `case_geometry`.
        reader: Of the image's dataset, which reads the masks too.
        properties: Of the image, as the reader gave them.

    Returns:
        By class.

    Raises:
        PromptError: As `place_prompts`, or if a mask cannot be read, is not binary, or is not on the image's grid; the
            message names file, case and class.
    """
    return {name: _place_class(stated, geometry, reader, properties) for name, stated in stated_by_class.items()}


def _place_class(
    stated: Sequence[StatedPrompts], geometry: CaseGeometry, reader: DatasetReader, properties: Mapping[str, Any]
) -> PlacedPrompts:
    points: list[Point] = []
    boxes: list[Box] = []
    scribbles: list[Scribble] = []
    mask: Mask | None = None
    for one in stated:
        try:
            points += [_clicked(point, one.space, geometry) for point in one.points]
            boxes += [_voxel_box(corners, one.space, geometry) for corners in one.boxes]
            scribbles += [_scribbled(scribble, one.space, geometry) for scribble in one.scribbles]
            if one.mask_file is not None:
                read = read_mask(one.mask_file, reader, properties, geometry.array_shape)
                mask = read if mask is None else mask | read
        except PromptError as error:
            raise one.source.error(error) from error
    instance = any(one.instance for one in stated)
    return _placed(ClassPrompts(tuple(points), tuple(boxes), mask, tuple(scribbles)), geometry, instance)


def read_mask(file: Path, reader: DatasetReader, image_properties: Mapping[str, Any], array_shape: Voxel) -> Mask:
    """Read a binary mask that lies on the image's grid.

    Args:
        file: Of a format that the reader knows.
        reader: Of the image's dataset.
        image_properties: As the reader gave them.
        array_shape: (Z, Y, X) that the reader gave the image.

    Returns:
        (Z, Y, X); whatever is not 0 is true.

    Raises:
        PromptError: If the file is damaged, has another shape or place, or holds more than one value besides 0.
    """
    damages = [problem.message for problem in check_bytes(file.name, file) if problem.severity == "error"]
    if damages:
        raise PromptError(f"mask {'; '.join(damages)}")
    try:
        values, properties = reader.read_seg(file)
    except Exception as error:  # each reader raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise PromptError(f"mask {file} cannot be read ({reason}); write it in the format of the images") from error
    if tuple(values.shape) != (1, *array_shape):
        raise PromptError(
            _wrong_shape(f"mask {file}", values.shape[1:] if len(values) == 1 else values.shape, array_shape)
        )
    if not same_place(image_properties, properties, array_shape, DRIFT_VOXELS):
        raise PromptError(
            f"mask {file} has the image's shape, but another origin, spacing or direction; save it on the image's grid"
        )
    found = np.unique(values)
    if not np.isfinite(found).all() or np.count_nonzero(found) > 1:
        shown = ", ".join(f"{value:g}" for value in found[:5])
        raise PromptError(f"mask {file} holds the values {shown}; expected 0 and one other; save one class alone")
    return np.asarray(values[0] != 0)


def _wrong_shape(what: str, came: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"{what} has shape {tuple(int(size) for size in came)} (z, y, x), the image {tuple(expected)}; save it on the "
        "image's grid"
    )


def _clicked(point: Point, space: Space, geometry: CaseGeometry) -> Point:
    """Bring a point to the centre of the voxel of the array that holds it."""
    at_zyx = geometry.to_array(point.at, space)
    if _outside(at_zyx, at_zyx, geometry):
        raise PromptError(
            f"point {format_coordinates(point.at)} in {space} lies outside of the image{_extent(geometry, space)}; "
            f"{_remedy(space)}"
        )
    return Point(nearest_voxel(at_zyx, geometry.array_shape), point.positive)


def _scribbled(scribble: Scribble, space: Space, geometry: CaseGeometry) -> Scribble:
    """Bring a scribble to the centres of the voxels of the array that hold its places, each once.

    What sticks out of the image is cut off.
    """
    placed = geometry.to_array(scribble.at, space)
    last, edge = np.asarray(geometry.array_shape) - 1, 0.5 + _TOLERANCE_VOXELS
    inside = np.all((placed >= -edge) & (placed <= last + edge), axis=1)
    if not inside.any():
        raise PromptError(
            f"scribble at {format_coordinates(scribble.at[0])} in {space} lies outside of the image"
            f"{_extent(geometry, space)}; {_remedy(space)}"
        )
    voxels = np.clip(np.floor(placed[inside] + 0.5), 0, last)
    return Scribble(tuple(dict.fromkeys(map(tuple, voxels.tolist()))), scribble.positive)


def _voxel_box(corners: Corners, space: Space, geometry: CaseGeometry) -> Box:
    """Give the first and the last voxel of the array that a box touches."""
    placed = geometry.to_array(corners, space)
    low, high = placed.min(axis=0), placed.max(axis=0)
    if _outside(low, high, geometry):
        ends = [format_coordinates(as_coordinates(end, "")) for end in (np.min(corners, 0), np.max(corners, 0))]
        raise PromptError(
            f"box from {ends[0]} to {ends[1]} in {space} lies outside of the image{_extent(geometry, space)}; "
            f"{_remedy(space)}"
        )
    last = np.asarray(geometry.array_shape) - 1
    first_voxel = np.clip(np.floor(low + 0.5 + _TOLERANCE_VOXELS), 0, last)
    last_voxel = np.clip(np.ceil(high - 0.5 - _TOLERANCE_VOXELS), first_voxel, last)
    return _box(first_voxel, last_voxel)


def _outside(low: Floats, high: Floats, geometry: CaseGeometry) -> bool:
    edge = 0.5 + _TOLERANCE_VOXELS
    return bool(np.any(high < -edge) or np.any(low > np.asarray(geometry.array_shape) - 1 + edge))


def _extent(geometry: CaseGeometry, space: Space) -> str:
    last = [size - 1 for size in geometry.array_shape]
    ends = geometry.from_array([[0, 0, 0], last], space)
    first, final = (format_coordinates(as_coordinates(np.round(end, 1) + 0.0, "")) for end in ends)
    return f", whose first voxel is at {first} and last at {final}"


def _remedy(space: Space) -> str:
    if space == "voxel":
        return "an index counts from 0, in the order (i, j, k) of the image's file"
    return f"correct it, or the space: is it in {'RAS' if space == 'LPS' else 'LPS'}, or of another image?"


def _placed(on_image: ClassPrompts, geometry: CaseGeometry, instance: bool = False) -> PlacedPrompts:
    """Bring what is placed in the array on to the preprocessed array."""
    mask = on_image.mask
    if mask is not None and mask.shape != geometry.array_shape:
        raise PromptError(_wrong_shape("the mask", mask.shape, geometry.array_shape))
    points = [
        Point(as_coordinates(geometry.array_to_preprocessed(point.at), "a point"), point.positive)
        for point in on_image.points
        if _in_crop(point.at, point.at, geometry)
    ]
    scribbles = [_preprocessed_scribble(scribble, geometry) for scribble in on_image.scribbles]
    inside = [box for box in on_image.boxes if _in_crop(box.low, box.high, geometry)]
    if len(points) < len(on_image.points) or len(inside) < len(on_image.boxes) or None in scribbles:
        logger.warning("some prompts lie where the image has zeros only up to its edge; the network does not see them")
    prompts = ClassPrompts(
        points=tuple(points),
        boxes=tuple(_preprocessed_box(box, geometry) for box in inside),
        mask=None if mask is None else geometry.mask_to_preprocessed(mask),
        scribbles=tuple(one for one in scribbles if one is not None),
    )
    return PlacedPrompts(prompts, on_image, instance)


def _in_crop(low: Sequence[float], high: Sequence[float], geometry: CaseGeometry) -> bool:
    """Tell whether a box of the array reaches into the crop."""
    first = np.asarray(geometry.crop_low)
    last = first + geometry.crop_shape - 1
    transposed_low, transposed_high = (np.asarray(end)[list(geometry.transpose_forward)] for end in (low, high))
    return bool(np.all(transposed_high >= first) and np.all(transposed_low <= last))


def _preprocessed_scribble(scribble: Scribble, geometry: CaseGeometry) -> Scribble | None:
    """Bring what of a scribble the crop holds to the preprocessed voxels; None if it holds nothing of it."""
    places = np.asarray(scribble.at)
    transposed = places[:, list(geometry.transpose_forward)] - geometry.crop_low
    held = places[np.all((transposed >= 0) & (transposed < geometry.crop_shape), axis=1)]
    if not len(held):
        return None
    return Scribble(tuple(map(tuple, geometry.array_to_preprocessed(held).tolist())), scribble.positive)


def _preprocessed_box(box: Box, geometry: CaseGeometry) -> Box:
    """Bring a box from the array's voxels to the preprocessed ones; both go from a voxel's outer side to another's."""
    low, high = (np.asarray(end) for end in (box.low, box.high))
    low_side = geometry.array_to_preprocessed(low - 0.5)
    high_side = geometry.array_to_preprocessed(high + 0.5)
    middle = (low_side + high_side) / 2
    edge = np.asarray(geometry.preprocessed_shape) - 1
    # A box thinner than a preprocessed voxel becomes its middle.
    first = np.clip(np.minimum(low_side + 0.5, middle), 0, edge)
    return _box(first, np.clip(np.maximum(high_side - 0.5, middle), first, edge))


def _box(low: Floats, high: Floats) -> Box:
    return Box(as_coordinates(low, "a box's lowest corner"), as_coordinates(high, "a box's highest corner"))
