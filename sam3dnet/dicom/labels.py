"""Structures of DICOM SEG and RTSTRUCT files as masks on the image of the series that they were drawn on."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sam3dnet.dicom.files import Instance, read_dataset, require_highdicom
from sam3dnet.dicom.frames import Frame, frames_of
from sam3dnet.dicom.stacks import Grid, Stack
from sam3dnet.dicom.structures import read_structures
from sam3dnet.dicom.volumes import grid_of
from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    import SimpleITK as sitk

Mask = npt.NDArray[np.bool_]
KINDS = ("SEG", "RTSTRUCT")
HALF = 0.5  # of fractional segments
OFF_ITS_PLACE = 0.1  # voxels


def is_labels(instance: Instance) -> bool:
    """Tell whether a file holds structures."""
    return instance.of("Modality") in KINDS


def stack_of(labels: Instance, stacks: Sequence[Stack]) -> Stack:
    """Find the series that structures were drawn on: by its UID, else the only one in their frame of reference.

    Raises:
        DatasetError: If it is not there, or no volume.
    """
    named = [stack for stack in stacks if stack.series in _series_of(labels)]
    frame = _frame_of_reference(labels)
    chosen = named or [stack for stack in stacks if frame and stack.frame_of_reference == frame]
    volumes = [stack for stack in chosen if stack.grid is not None]
    if len(volumes) == 1 or (named and volumes):
        return volumes[0]
    if chosen and not volumes:
        series, fault = chosen[0].in_words(), chosen[0].fault
        raise DatasetError(f"{labels.file.name}: was drawn on {series}, which is no volume: {fault}")
    what = f"{len(volumes)} series are in its frame of reference" if volumes else "it is not there"
    raise DatasetError(
        f"{labels.file.name}: the series that it was drawn on is not known: {what}; export both together"
    )


def _series_of(labels: Instance) -> set[str]:
    """Give the UIDs of the series that a file refers to."""
    found = {str(one.SeriesInstanceUID) for one in labels.of("ReferencedSeriesSequence", ())}
    for frame in labels.of("ReferencedFrameOfReferenceSequence", ()):
        for study in frame.get("RTReferencedStudySequence", ()):
            found |= {str(one.SeriesInstanceUID) for one in study.get("RTReferencedSeriesSequence", ())}
    return found


def _frame_of_reference(labels: Instance) -> str:
    frames = [one.get("FrameOfReferenceUID") for one in labels.of("ReferencedFrameOfReferenceSequence", ())]
    return str(labels.of("FrameOfReferenceUID") or next(iter(frames), "") or "")


def read_labels(labels: Instance, stack: Stack, image: "sitk.Image") -> dict[str, Mask]:
    """Read structures as masks (Z, Y, X) on the image of a stack, by name; those that are empty are left out.

    Raises:
        DatasetError: If they cannot be read, or lie beside the slices.
    """
    if labels.of("Modality") == "RTSTRUCT":
        grid = grid_of(stack)
        return {name: on_image(mask, grid) for name, mask in read_structures(labels.file, grid).items()}
    return _read_segmentation(labels, image, grid_of(stack))


def on_image(mask: Mask, grid: Grid) -> Mask:
    """Bring a mask (slices, rows, columns) onto a stack's image, of a tilted gantry by whole voxels."""
    if not grid.is_tilted:
        return mask
    columns, rows, slices = grid.shape
    before, after = grid.room_voxels
    found = np.zeros((slices, int(before[1]) + rows + int(after[1]), int(before[0]) + columns + int(after[0])), bool)
    starts = np.rint(grid.shifts_voxels).astype(int) + before
    for number, (x, y) in enumerate(starts):
        found[number, y : y + rows, x : x + columns] = mask[number]
    return found


def _read_segmentation(labels: Instance, image: "sitk.Image", grid: Grid) -> dict[str, Mask]:
    highdicom = require_highdicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not as the standard has them
            read = highdicom.seg.Segmentation.from_dataset(read_dataset(labels.file), copy=False)
            if grid.is_tilted:  # no volume with right angles, which is what highdicom gives
                return {name: on_image(mask, grid) for name, mask in _on_slices(labels, read, grid).items()}
            volume = read.get_volume(combine_segments=False, skip_overlap_checks=True)
    except DatasetError:
        raise
    except Exception as problem:  # highdicom and what decodes for it raise many kinds
        raise DatasetError(f"{labels.file.name}: cannot be read as DICOM SEG ({problem}); export it again") from problem
    found = {}
    for index, (number, name) in enumerate(_names_of_segments(read)):
        if number:  # 0 is the background of a label map
            mask = _resampled(np.asarray(volume.array[..., index] >= HALF, np.uint8), volume, image)
            if mask.any():
                found[name] = mask
    return found


def _names_of_segments(read: Any) -> list[tuple[int, str]]:
    return [(int(one.SegmentNumber), str(one.SegmentLabel)) for one in read.SegmentSequence]


def _on_slices(labels: Instance, read: Any, grid: Grid) -> dict[str, Mask]:
    """Put the frames of a segmentation onto the slices where they lie, (slices, rows, columns)."""
    columns, rows, slices = grid.shape
    segments = {number: name for number, name in _names_of_segments(read) if number}
    is_label_map = str(read.SegmentationType) == "LABELMAP"
    highest = 1 if is_label_map else int(read.get("MaximumFractionalValue", 1))
    pixels = np.atleast_3d(read.pixel_array).reshape(-1, int(read.Rows), int(read.Columns))
    found: dict[str, Mask] = {}
    for frame in frames_of(Instance(labels.file, read)):
        number = _slice_of(frame, grid)
        if number is None or frame.shape != (rows, columns):
            raise DatasetError(
                f"{labels.file.name}: frame {frame.number + 1} does not lie on a slice of the series that it was drawn "
                "on, which a tilted gantry took; export both together"
            )
        shown = pixels[frame.number]
        masks = (
            {segment: shown == segment for segment in segments}
            if is_label_map
            else {int(frame.of("ReferencedSegmentNumber", 0)): shown / highest >= HALF}
        )
        for segment, mask in masks.items():
            if mask.any():
                found.setdefault(segments[segment], np.zeros((slices, rows, columns), bool))[number] |= mask
    return found


def _slice_of(frame: Frame, grid: Grid) -> int | None:
    """Give the slice that a frame lies on; None where it lies elsewhere."""
    x, y, z = (frame.position_mm - grid.origin_mm) @ grid.axes.T / grid.spacing_mm
    number = round(z)
    off = np.abs([*(np.array([x, y]) - number * grid.tilt_voxels), z - number])
    return number if 0 <= number < grid.shape[2] and (off < OFF_ITS_PLACE).all() else None


def _resampled(mask: npt.NDArray[np.uint8], volume: Any, image: "sitk.Image") -> Mask:
    """Bring a mask of highdicom's volume onto an image's grid, by the nearest voxel."""
    import SimpleITK as sitk

    placed = sitk.GetImageFromArray(mask)
    placed.SetOrigin([float(mm) for mm in volume.position])
    placed.SetSpacing([float(mm) for mm in reversed(volume.spacing)])
    placed.SetDirection(np.asarray(volume.direction)[:, ::-1].ravel().tolist())
    moved = sitk.Resample(placed, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(moved).astype(bool)
