"""How deep voxels lie inside an object: their distance in mm to the nearest voxel that is not of it.

The border of the array counts as outside. Distances are those of `scipy.ndimage.distance_transform_edt`, bit for bit,
but only for the voxels that can be deepest. Of what is thin nearly all voxels are soon seen to lie at the surface; of
what is not, the transform of a mask at half the resolution tells which ones can be deepest, and how deep at most.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, find_objects

from sam3dnet.prompts.components import connected

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Voxel = tuple[int, int, int]

FEW_VOXELS = 30_000  # the transform of so many is fast
THIN = 6.0  # as deep as what is thin, in the smallest spacing
MOST_OFFSETS = 4_000  # that are looked at one after the other
MOST_STEPS = 40  # a voxel, which scipy needs about as long for


def deepest_voxel(mask_ZYX: Mask, spacing_mm: Sequence[float]) -> tuple[Voxel, float]:
    """Return the first of the deepest voxels of a mask, and how deep it lies in mm.

    Args:
        mask_ZYX: At least one voxel is True.
        spacing_mm: (Z, Y, X).

    Raises:
        ValueError: If the mask is empty.
    """
    corner, cut = cut_out(mask_ZYX)
    spacing = tuple(float(mm) for mm in spacing_mm)
    if cut.size > FEW_VOXELS:
        at, depth_mm = _deepest_of_thin(cut, spacing) or _deepest_candidate(cut, spacing)
    else:
        depth = distance_transform_edt(np.pad(cut, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
        at = np.unravel_index(int(depth.argmax()), depth.shape)
        depth_mm = float(depth[at])
    z, y, x = (int(position) + first for position, first in zip(at, corner, strict=True))
    return (z, y, x), depth_mm


def depth_at(mask_ZYX: Mask, voxel: Voxel, spacing_mm: Sequence[float]) -> float:
    """Return how deep in mm a voxel of a mask lies."""
    corner, cut = cut_out(mask_ZYX)
    box = [slice(at - first + 1, at - first + 2) for at, first in zip(voxel, corner, strict=True)]
    return float(np.sqrt(_squared_depth(np.pad(cut, 1), box, spacing_mm)).item())


def near_surface(mask_ZYX: Mask, spacing_mm: Sequence[float], reach_mm: float) -> Mask:
    """Return which voxels of a mask lie at most so deep."""
    reach = _reach_voxels(spacing_mm, reach_mm)
    padded = np.pad(mask_ZYX, [(n, n) for n in reach])
    deeper = mask_ZYX.copy()
    offsets, _ = _offsets(tuple(spacing_mm), reach_mm)
    for offset in offsets.tolist():
        sides = zip(reach, offset, mask_ZYX.shape, strict=True)
        deeper &= padded[tuple(slice(n + step, n + step + size) for n, step, size in sides)]
    return mask_ZYX & ~deeper


def cut_out(mask_ZYX: Mask) -> tuple[Voxel, Mask]:
    """Return the lowest corner of a mask's bounding box, and the mask within the box; see `box_of`."""
    z, y, x = box_of(mask_ZYX)
    return (z.start, y.start, x.start), mask_ZYX[z, y, x]


def box_of(mask_ZYX: Mask) -> tuple[slice, slice, slice]:
    """Return the bounding box of a mask.

    Raises:
        ValueError: If the mask is empty.
    """
    z = _extent(mask_ZYX, 0)
    return z, _extent(mask_ZYX[z], 1), _extent(mask_ZYX[z], 2)


def _extent(mask_ZYX: Mask, axis: int) -> slice:
    places = np.flatnonzero(mask_ZYX.any(tuple(other for other in range(3) if other != axis)))
    if not len(places):
        raise ValueError("the mask is empty; expected at least one voxel")
    return slice(int(places[0]), int(places[-1]) + 1)


def _deepest_of_thin(cut: Mask, spacing: tuple[float, ...]) -> tuple[Iterable[np.intp], float] | None:
    """Find the deepest voxel of a mask by looking around each; None where that takes long."""
    most_mm = THIN * min(spacing)
    reach = _reach_voxels(spacing, most_mm)
    padded = np.pad(cut, [(n, n) for n in reach])
    flat = np.flatnonzero(padded)
    depth = _depth_by_lookup(padded, flat, spacing, 0.0, most_mm, most_lookups=cut.size)
    best = int(depth.argmax())
    if np.isinf(depth[best]):
        return None
    at = np.unravel_index(flat[best], padded.shape)
    return [position - n for position, n in zip(at, reach, strict=True)], float(depth[best])


def _deepest_candidate(cut: Mask, spacing: tuple[float, ...]) -> tuple[Iterable[np.intp], float]:
    """Find the deepest voxel of a mask among those that may be."""
    candidates, least_mm, most_mm = _candidates(cut, spacing)
    positions_3N = np.array(np.nonzero(candidates))
    reach = _reach_voxels(spacing, most_mm)
    if np.prod([2 * n + 1 for n in reach]) <= MOST_OFFSETS:
        padded = np.pad(cut, [(n, n) for n in reach])
        flat = np.ravel_multi_index(tuple(positions_3N + np.array(reach)[:, None]), padded.shape)
        depth = _depth_by_lookup(padded, flat, spacing, least_mm, most_mm)
    else:
        depth = _depth_in_boxes(cut, candidates, spacing, most_mm)[candidates]
    best = int(depth.argmax())
    return positions_3N[:, best], float(depth[best])


def _candidates(cut: Mask, spacing: tuple[float, ...]) -> tuple[Mask, float, float]:
    """Find which voxels may be the deepest, the least depth of any of these, and the greatest in mm."""
    factors = [2 if mm < 2 * min(spacing) else 1 for mm in spacing]
    padded = np.pad(cut, [(factor, factor + size % factor) for factor, size in zip(factors, cut.shape, strict=True)])
    cell_mm = [factor * mm for factor, mm in zip(factors, spacing, strict=True)]
    depth = distance_transform_edt(_whole_cells(padded, factors), sampling=cell_mm)
    # a voxel, and the nearest one outside, are each so far at most from the middle of their cell
    slack = 1.0001 * float(np.sqrt(sum(((factor - 1) * mm) ** 2 for factor, mm in zip(factors, spacing, strict=True))))
    greatest = float(depth.max())
    reached = 0.0
    if greatest > 0:
        cell = np.unravel_index(int(depth.argmax()), depth.shape)
        first = [int(number) * factor - factor for number, factor in zip(cell, factors, strict=True)]
        box, around = _around([slice(at, at + 1) for at in first], cut, spacing, greatest + slack)
        reached = float(np.sqrt(_squared_depth(around, box, spacing)).item())
    near = depth >= reached - slack
    for axis, factor in enumerate(factors):
        near = near.repeat(factor, axis)
    inside = tuple(slice(factor, factor + size) for factor, size in zip(factors, cut.shape, strict=True))
    return near[inside] & cut, reached - 2 * slack, greatest + slack


def _whole_cells(padded: Mask, factors: Sequence[int]) -> Mask:
    """Return which cells of so many voxels along each axis lie wholly inside."""
    cells = padded
    for axis, factor in enumerate(factors):
        before = (slice(None),) * axis
        cells = cells[(*before, slice(None, None, factor))] & cells[(*before, slice(factor - 1, None, factor))]
    return cells


def _depth_in_boxes(cut: Mask, candidates: Mask, spacing: tuple[float, ...], most_mm: float) -> Floats:
    """Give how deep candidates are, each group of neighbours for itself; 0 elsewhere."""
    groups, _ = connected(candidates)
    boxes = [box for box in find_objects(groups.astype(np.int32)) if box is not None]
    work = [_around(box, cut, spacing, most_mm) for box in boxes]
    if sum(_steps(box, around) for box, around in work) > MOST_STEPS * cut.size:
        return distance_transform_edt(np.pad(cut, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    depth = np.zeros(cut.shape)
    for place, (box, around) in zip(boxes, work, strict=True):
        depth[place] = np.sqrt(_squared_depth(around, box, spacing))
    return depth


def _around(
    box: Sequence[slice], cut: Mask, spacing: Sequence[float], most_mm: float
) -> tuple[tuple[slice, ...], Mask]:
    """Cut out all that is near enough to a box to matter, with one voxel outside around it, and the box in it."""
    sides, places = [], []
    for part, size, reach in zip(box, cut.shape, _reach_voxels(spacing, most_mm), strict=True):
        first, stop = max(0, part.start - reach), min(size, part.stop + reach)
        sides.append(slice(first, stop))
        places.append(slice(part.start - first + 1, part.stop - first + 1))
    return tuple(places), np.pad(cut[tuple(sides)], 1)


def _steps(box: Sequence[slice], around: Mask) -> int:
    """Estimate what the depth of a box costs, in sums of two squares."""
    depth, height, width = (part.stop - part.start for part in box)
    return 4 * around.size + depth * around[0].size * height + depth * height * around.shape[2] * width


def _depth_by_lookup(
    padded: Mask,
    flat: npt.NDArray[np.intp],
    spacing: tuple[float, ...],
    least_mm: float,
    most_mm: float,
    most_lookups: float = np.inf,
) -> Floats:
    """Look at what lies around each voxel, the nearest first.

    Args:
        padded: The mask, with as much outside around it as is looked at.
        flat: The voxels, as indices of the flattened mask.
        spacing: (Z, Y, X) in mm.
        least_mm: None of them is less deep.
        most_mm: How far to look.
        most_lookups: How often to look.

    Returns:
        How deep each voxel is; infinite where it is deeper than was looked.
    """
    offsets, distances = _offsets(spacing, most_mm)
    steps = offsets @ np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    inside = padded.ravel()
    depth = np.full(len(flat), np.inf)
    alive = np.arange(len(flat))
    first = int(np.searchsorted(distances, least_mm))
    for step, distance in zip(steps[first:].tolist(), distances[first:].tolist(), strict=True):
        most_lookups -= len(alive)
        if not len(alive) or most_lookups < 0:
            break
        survives = inside[flat[alive] + step]
        if not survives.all():
            depth[alive[~survives]] = distance
            alive = alive[survives]
    return depth


@lru_cache(maxsize=64)
def _offsets(spacing: tuple[float, ...], most_mm: float) -> tuple[npt.NDArray[np.intp], Floats]:
    """Give the voxels around one, (N, 3), and how far they are in mm, the nearest first."""
    around = np.array(list(product(*(range(-n, n + 1) for n in _reach_voxels(spacing, most_mm)))))
    squares = (around * np.array(spacing)) ** 2
    distances = np.sqrt(squares[:, 0] + squares[:, 1] + squares[:, 2])
    chosen = np.flatnonzero((distances > 0) & (distances <= most_mm))
    order = chosen[np.argsort(distances[chosen], kind="stable")]
    return around[order], distances[order]


def _squared_depth(padded: Mask, box: Sequence[slice], spacing_mm: Sequence[float]) -> Floats:
    """Give the squared depth of the voxels in a box, one axis after the other; infinite nowhere.

    Args:
        padded: The mask; at its border all is outside.
        box: Whose voxels are wanted.
        spacing_mm: (Z, Y, X).
    """
    squares = _squares_along_z(padded, box[0], spacing_mm[0])
    for axis in (1, 2):  # in this order scipy adds the squares up
        places = np.arange(padded.shape[axis])
        wanted = places[box[axis]]
        shape = [len(wanted) if other == axis else 1 for other in range(3)]
        least = np.full([len(wanted) if i == axis else size for i, size in enumerate(squares.shape)], np.inf)
        for place in places:
            away = (((wanted - place) * spacing_mm[axis]) ** 2).reshape(shape)
            plane = squares[(slice(None),) * axis + (slice(place, place + 1),)]
            np.minimum(least, plane + away, out=least)
        squares = least
    return squares


def _squares_along_z(padded: Mask, wanted: slice, spacing_mm: float) -> Floats:
    """Give the squared distance along z to the nearest voxel outside, of some planes."""
    places = np.arange(len(padded), dtype=np.int32)[:, None, None]
    before = np.maximum.accumulate(np.where(padded, -1, places))[wanted]
    after = np.minimum.accumulate(np.where(padded, len(padded), places)[::-1])[::-1][wanted]
    nearest = np.minimum(places[wanted] - before, after - places[wanted])
    return (nearest * spacing_mm) ** 2


def _reach_voxels(spacing_mm: Sequence[float], reach_mm: float) -> list[int]:
    return [max(1, int(reach_mm / mm + 1e-6)) for mm in spacing_mm]
