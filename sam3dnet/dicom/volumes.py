"""The values of a stack of slices, on a grid with right angles, and label maps back on the slices."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sam3dnet.dicom.files import EXTRA, Instance, read_dataset
from sam3dnet.dicom.frames import Frame
from sam3dnet.dicom.stacks import Grid, Stack
from sam3dnet.dicom.uptake import suv_factor
from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    import SimpleITK as sitk

Array = npt.NDArray[Any]
LARGEST_INT16 = np.iinfo(np.int16)


def grid_of(stack: Stack) -> Grid:
    """Give the grid of a stack.

    Raises:
        DatasetError: If it has none.
    """
    if stack.grid is None:
        raise DatasetError(f"{stack.in_words()}: {stack.fault}; export it again, or choose another series")
    return stack.grid


def read_image(stack: Stack) -> "sitk.Image":
    """Read the slices as an image with right angles: those of a tilted gantry are shifted along their planes.

    Raises:
        DatasetError: If they are no volume, a file cannot be decoded, or SUV is wanted and the header lacks a part.
    """
    import SimpleITK as sitk

    grid = grid_of(stack)
    read_ZYX = _read_frames(stack)
    values_ZYX = _narrowed(read_ZYX if stack.units is None else read_ZYX.astype(np.float64) * suv_factor(stack))
    if grid.is_tilted:
        values_ZYX = _straightened(values_ZYX, grid)
    image = sitk.GetImageFromArray(values_ZYX)
    before = grid.room_voxels[0] * grid.spacing_mm[:2]
    image.SetOrigin((grid.origin_mm - before @ grid.axes[:2]).tolist())
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetDirection(grid.axes.T.ravel().tolist())
    return image


def labels_on_slices(labels_ZYX: Array, grid: Grid) -> Array:
    """Bring a label map of a stack's image onto its slices (slices, rows, columns), as they are in the files."""
    if not grid.is_tilted:
        return labels_ZYX
    columns, rows, slices = grid.shape
    found = np.zeros((slices, rows, columns), labels_ZYX.dtype)
    starts = np.rint(grid.shifts_voxels).astype(int) + grid.room_voxels[0]
    for number, (x, y) in enumerate(starts):
        found[number] = labels_ZYX[number, y : y + rows, x : x + columns]
    return found


def _read_frames(stack: Stack) -> Array:
    by_file: dict[int, list[int]] = defaultdict(list)
    for number, frame in enumerate(stack.frames):
        by_file[id(frame.instance)].append(number)
    slices: list[Array | None] = [None] * len(stack.frames)
    for numbers in by_file.values():
        instance = stack.frames[numbers[0]].instance
        stored = _decoded(instance)
        for number in numbers:
            frame = stack.frames[number]
            slices[number] = _rescaled(stored[frame.number], frame)
    kind = np.result_type(*(one.dtype for one in slices if one is not None))
    return np.stack([np.asarray(one, kind) for one in slices])


def _decoded(instance: Instance) -> Array:
    """Decode the stored values of a file, (frames, rows, columns)."""
    try:
        dataset = read_dataset(instance.file)
        pixels = np.asarray(dataset.pixel_array)
    except Exception as problem:  # of pydicom and of each library that decodes
        syntax = getattr(instance.header.file_meta.TransferSyntaxUID, "name", "unknown")
        raise DatasetError(
            f"{instance.file}: cannot be decoded ({syntax}): {type(problem).__name__}: {problem}; export it again, "
            f"uncompressed if the file is not damaged; {EXTRA} brings what decodes most kinds"
        ) from problem
    frames = pixels.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    return _without_unused_bits(frames, int(dataset.BitsStored), int(dataset.BitsAllocated))


def _without_unused_bits(stored: Array, used: int, allocated: int) -> Array:
    """Clear bits beyond those that hold the value, where old files have overlays; keep the sign."""
    if used >= allocated or stored.dtype.kind not in "iu":
        return stored
    if stored.dtype.kind == "u":
        return stored & stored.dtype.type((1 << used) - 1)
    unused = 8 * stored.dtype.itemsize - used
    return (stored << unused) >> unused


def _rescaled(stored: Array, frame: Frame) -> Array:
    """Give a slice in the units that its header promises, as whole numbers where these are exact."""
    table = frame.of("ModalityLUTSequence")
    if table:
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(stored, frame.instance.header))
    slope, intercept = float(frame.of("RescaleSlope", 1)), float(frame.of("RescaleIntercept", 0))
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise DatasetError(f"{frame.instance.file}: values are rescaled by {slope} and {intercept}; export it again")
    if slope.is_integer() and intercept.is_integer() and stored.dtype.kind in "iu":
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _narrowed(values: Array) -> Array:
    """Store whole numbers in as few bytes as hold them, the rest in single precision."""
    if values.dtype.kind not in "iu":
        return values.astype(np.float32, copy=False)
    fits = LARGEST_INT16.min <= values.min() and values.max() <= LARGEST_INT16.max
    return values.astype(np.int16 if fits else np.int32)


def _straightened(values_ZYX: Array, grid: Grid) -> Array:
    """Shift slices of a tilted gantry, by linear interpolation, to where their places in space are above each other."""
    from scipy import ndimage

    columns, rows, slices = grid.shape
    (left, up), (right, down) = grid.room_voxels
    empty = float(values_ZYX.min())
    found = np.full((slices, up + rows + down, left + columns + right), empty, np.float32)
    for number, (x, y) in enumerate(grid.shifts_voxels):
        found[number, up : up + rows, left : left + columns] = values_ZYX[number]
        found[number] = ndimage.shift(found[number], (y, x), order=1, cval=empty, prefilter=False)
    return np.rint(found).astype(values_ZYX.dtype) if values_ZYX.dtype.kind in "iu" else found
