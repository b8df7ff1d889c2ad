"""Structures of DICOM SEG and RTSTRUCT files as masks on the image of the series that they were drawn on."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sam3dnet.dicom.files import Instance
from sam3dnet.dicom.segmentation import require_highdicom
from sam3dnet.dicom.stacks import Grid, Stack
from sam3dnet.dicom.structures import read_structures
from sam3dnet.dicom.volumes import grid_of
from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    import SimpleITK as sitk

Mask = npt.NDArray[np.bool_]
KINDS = ("SEG", "RTSTRUCT")
HALF = 0.5  # of fractional segments


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
    return _read_segmentation(labels, image)


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


def _read_segmentation(labels: Instance, image: "sitk.Image") -> dict[str, Mask]:
    highdicom = require_highdicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not as the standard has them
            read = highdicom.seg.segread(labels.file)
            volume = read.get_volume(combine_segments=False, skip_overlap_checks=True)
    except Exception as problem:  # highdicom and what decodes for it raise many kinds
        raise DatasetError(f"{labels.file.name}: cannot be read as DICOM SEG ({problem}); export it again") from problem
    names = [(int(one.SegmentNumber), str(one.SegmentLabel)) for one in read.SegmentSequence]
    found = {}
    for index, (number, name) in enumerate(names):
        if number:  # 0 is the background of a label map
            mask = _resampled(np.asarray(volume.array[..., index] >= HALF, np.uint8), volume, image)
            if mask.any():
                found[name] = mask
    return found


def _resampled(mask: npt.NDArray[np.uint8], volume: Any, image: "sitk.Image") -> Mask:
    """Bring a mask of highdicom's volume onto an image's grid, by the nearest voxel."""
    import SimpleITK as sitk

    placed = sitk.GetImageFromArray(mask)
    placed.SetOrigin([float(mm) for mm in volume.position])
    placed.SetSpacing([float(mm) for mm in reversed(volume.spacing)])
    placed.SetDirection(np.asarray(volume.direction)[:, ::-1].ravel().tolist())
    moved = sitk.Resample(placed, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(moved).astype(bool)
