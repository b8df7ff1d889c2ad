"""Structures of DICOM SEG and RTSTRUCT files as masks on the image of the series that they were drawn on."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    from pydicom import Dataset

Image = tuple[str, int | None]  # UID of an instance, and number of a frame; None for all of its frames
Mask = npt.NDArray[np.bool_]
KINDS = ("SEG", "RTSTRUCT")
HALF = 0.5  # of fractional segments
OFF_ITS_PLACE = 0.1  # voxels


def is_labels(instance: Instance) -> bool:
    """Tell whether a file holds structures."""
    return instance.of("Modality") in KINDS


def stack_of(labels: Instance, stacks: Sequence[Stack]) -> Stack:
    """Find the volume that structures were drawn on: by the series' UID, else in their frame of reference.

    A series of several times or echoes is several volumes with one UID; of these it is the one whose images the
    structures refer to.

    Raises:
        DatasetError: If it is not there, or no volume, or may be one of several, or the file cannot be read.
    """
    with _reading(labels):
        series, frame, images = _series_of(labels), _frame_of_reference(labels), _images_of(labels)
    named = [stack for stack in stacks if stack.series in series]
    near = named or [stack for stack in stacks if frame and stack.frame_of_reference == frame]
    referred = ([stack for stack in near if _holds(stack, these)] for these in images)
    chosen = next((found for found in referred if found), near)
    there = [stack for stack in chosen if stack.grid is not None]
    volumes = [stack for stack in there if not stack.is_no_choice] or there
    if len(volumes) == 1:
        return volumes[0]
    if chosen and not volumes:
        words, fault = chosen[0].in_words(), chosen[0].fault
        raise DatasetError(f"{labels.file.name}: was drawn on {words}, which is no volume: {fault}")
    if named and volumes:
        raise DatasetError(
            f"{labels.file.name}: {len(volumes)} volumes are of the series that it was drawn on, as of several times "
            f"or echoes, one of them {volumes[0].in_words()}, and it does not refer to the images of one alone; export "
            "it again with references to its images, or each volume as a series of its own"
        )
    what = f"{len(volumes)} volumes are in its frame of reference" if volumes else "it is not there"
    raise DatasetError(
        f"{labels.file.name}: the series that it was drawn on is not known: {what}; export both together"
    )


def _series_of(labels: Instance) -> set[str]:
    """Give the UIDs of the series that a file refers to."""
    return {str(one.SeriesInstanceUID) for one in _referenced_series(labels)}


def _referenced_series(labels: Instance) -> "Iterator[Dataset]":
    yield from labels.of("ReferencedSeriesSequence", ())
    for frame in labels.of("ReferencedFrameOfReferenceSequence", ()):
        for study in frame.get("RTReferencedStudySequence", ()):
            yield from study.get("RTReferencedSeriesSequence", ())


def _images_of(labels: Instance) -> tuple[set[Image], set[Image]]:
    """Give the images that single frames or outlines refer to, and those that the whole file does.

    The first say more: many programs list all images of a series for the whole file.
    """
    each = [
        image
        for group in labels.of("PerFrameFunctionalGroupsSequence", ())
        for derivation in group.get("DerivationImageSequence", ())
        for image in derivation.get("SourceImageSequence", ())
    ]
    each += [
        image
        for roi in labels.of("ROIContourSequence", ())
        for contour in roi.get("ContourSequence", ())
        for image in contour.get("ContourImageSequence", ())
    ]
    whole = [
        image
        for series in _referenced_series(labels)
        for keyword in ("ReferencedInstanceSequence", "ContourImageSequence")
        for image in series.get(keyword, ())
    ]
    return {one for image in each for one in _named(image)}, {one for image in whole for one in _named(image)}


def _named(image: "Dataset") -> Iterator[Image]:
    """Yield the UID that a reference names with each of its frames, from 0; None for all frames."""
    numbers = image.get("ReferencedFrameNumber")
    uid = str(image.get("ReferencedSOPInstanceUID", ""))
    if numbers is None or numbers == "":
        yield uid, None
        return
    for number in [numbers] if isinstance(numbers, int | str) else numbers:
        yield uid, int(number) - 1


def _holds(stack: Stack, images: set[Image]) -> bool:
    """Tell whether one of these images is a slice of a stack."""
    return any(
        (uid, number) in images
        for frame in stack.frames
        for uid in [str(frame.instance.header.SOPInstanceUID)]
        for number in (frame.number, None)
    )


def _frame_of_reference(labels: Instance) -> str:
    frames = [one.get("FrameOfReferenceUID") for one in labels.of("ReferencedFrameOfReferenceSequence", ())]
    return str(labels.of("FrameOfReferenceUID") or next(iter(frames), "") or "")


def read_labels(labels: Instance, stack: Stack, image: "sitk.Image") -> dict[str, Mask]:
    """Read structures as masks (Z, Y, X) on the image of a stack, by name; those that are empty are left out.

    Raises:
        DatasetError: If they cannot be read, or lie beside the slices.
    """
    grid = grid_of(stack)
    with _reading(labels):
        if labels.of("Modality") == "RTSTRUCT":
            return {name: on_image(mask, grid) for name, mask in read_structures(labels.file, grid).items()}
        return _read_segmentation(labels, image, grid)


@contextmanager
def _reading(labels: Instance) -> Iterator[None]:
    """Say of which file it is that something cannot be read.

    Damaged files, such as those that were cut off, are read by pydicom as far as they go, and lack elements.

    Raises:
        DatasetError: In place of all that pydicom, highdicom and what decodes for them raise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not as the standard has them
            yield
    except DatasetError:
        raise
    except Exception as problem:
        kind = f"DICOM {labels.of('Modality')}"
        reason = f"{type(problem).__name__}: {problem}"
        raise DatasetError(f"{labels.file.name}: cannot be read as {kind} ({reason}); export it again") from problem


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
    read = require_highdicom().seg.Segmentation.from_dataset(read_dataset(labels.file), copy=False)
    if grid.is_tilted:  # no volume with right angles, which is what highdicom gives
        return {name: on_image(mask, grid) for name, mask in _on_slices(labels, read, grid).items()}
    names = _names_of_segments(read)
    volume = read.get_volume(combine_segments=False, skip_overlap_checks=True, segment_numbers=list(names))
    found: dict[str, Mask] = {}
    for index, name in enumerate(names.values()):
        mask = _resampled(np.asarray(volume.array[..., index] >= HALF, np.uint8), volume, image)
        if mask.any():  # several segments of one name are one structure
            found[name] = found[name] | mask if name in found else mask
    return found


def _names_of_segments(read: Any) -> dict[int, str]:
    """Give what the segments are called, by their number; 0 is the background of a label map."""
    names = {int(one.SegmentNumber): str(one.SegmentLabel) for one in read.SegmentSequence}
    return {number: name for number, name in names.items() if number in read.segment_numbers and number != 0}


def _on_slices(labels: Instance, read: Any, grid: Grid) -> dict[str, Mask]:
    """Put the frames of a segmentation onto the slices where they lie, (slices, rows, columns)."""
    columns, rows, slices = grid.shape
    segments = _names_of_segments(read)
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
