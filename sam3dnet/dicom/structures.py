"""Label maps as RTSTRUCT, and back: an outline a slice, where the mask's edge is half way between voxels.

Holes are outlines inside of outlines: a voxel belongs to a structure if an odd number of outlines is around it, which
is how treatment planning systems read them, in each plane by itself. Outlines are placed by their coordinates alone;
some files refer to images that are not there.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sam3dnet import __version__
from sam3dnet.dicom.files import read_dataset, require_pydicom
from sam3dnet.dicom.segments import Segment, segments_of
from sam3dnet.dicom.stacks import Grid, Stack
from sam3dnet.dicom.volumes import grid_of, labels_on_slices
from sam3dnet.errors import DatasetError
from sam3dnet.planning.objects import mask_of

if TYPE_CHECKING:
    from pydicom import Dataset

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
LONGEST_NAME, LONGEST_LABEL = 64, 16
FROM_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "SpecificCharacterSet",
)
DIGITS = 4  # of a coordinate in mm
OFF_A_SLICE = 0.5  # of the distance of slices: an outline beyond is of no slice
SAME_PLANE, ROUNDED = 0.05, 1e-3  # of the distance of slices: coordinates are rounded
FEWEST_POINTS = 3


def write_structures(
    labels_ZYX: npt.NDArray[Any], file: Path, stack: Stack, classes: Mapping[str, Sequence[int]], model: str
) -> None:
    """Write an RTSTRUCT.

    Args:
        labels_ZYX: On the grid of the stack's image.
        file: Where to.
        stack: What was segmented.
        classes: Labels of each class or region by name; regions may overlap.
        model: Name of what made it.

    The series must name a frame of reference, without which outlines have no place.
    """
    pydicom = require_pydicom()
    slices = labels_on_slices(labels_ZYX, grid_of(stack))
    dataset = _file(pydicom, stack, model)
    dataset.ReferencedFrameOfReferenceSequence = [_referenced(pydicom, stack)]
    rois, contours, observations = [], [], []
    for segment, values in zip(segments_of(classes), classes.values(), strict=True):
        rois.append(_roi(pydicom, segment, stack.frame_of_reference))
        contours.append(_contours(pydicom, segment, mask_of(slices, values), stack))
        observations.append(_observation(pydicom, segment))
    dataset.StructureSetROISequence, dataset.ROIContourSequence = rois, contours
    dataset.RTROIObservationsSequence = observations
    dataset.save_as(file, enforce_file_format=True)


def _file(pydicom: Any, stack: Stack, model: str) -> Any:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = STORAGE
    uid = pydicom.uid.generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    header = stack.instance.header
    for keyword in FROM_STUDY:
        if keyword in header:
            dataset[keyword] = header[keyword]
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    for keyword in ("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"):
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    now = datetime.now()
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", pydicom.uid.generate_uid()
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.OperatorsName = 901, 1, ""
    dataset.SeriesDescription = f"Segmentation by {model}"[:LONGEST_NAME]
    dataset.Manufacturer = dataset.ManufacturerModelName = "sam3dnet"
    dataset.SoftwareVersions = __version__
    dataset.StructureSetLabel, dataset.StructureSetName = model[:LONGEST_LABEL], model[:LONGEST_NAME]
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _referenced(pydicom: Any, stack: Stack) -> Any:
    series = pydicom.Dataset()
    series.SeriesInstanceUID = stack.series
    series.ContourImageSequence = [_image(pydicom, instance.header) for instance in stack.files]
    study = pydicom.Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", stack.study
    study.RTReferencedSeriesSequence = [series]
    frame = pydicom.Dataset()
    frame.FrameOfReferenceUID = stack.frame_of_reference
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(pydicom: Any, header: "Dataset", number: int | None = None) -> Any:
    image = pydicom.Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if number is not None:
        image.ReferencedFrameNumber = number + 1
    return image


def _roi(pydicom: Any, segment: Segment, frame_of_reference: str) -> Any:
    roi = pydicom.Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID = segment.number, frame_of_reference
    roi.ROIName, roi.ROIGenerationAlgorithm = segment.name[:LONGEST_NAME], "AUTOMATIC"
    return roi


def _observation(pydicom: Any, segment: Segment) -> Any:
    observation = pydicom.Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = segment.number
    observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
    return observation


def _contours(pydicom: Any, segment: Segment, mask_ZYX: npt.NDArray[np.bool_], stack: Stack) -> Any:
    of_roi = pydicom.Dataset()
    of_roi.ROIDisplayColor, of_roi.ReferencedROINumber = list(segment.rgb), segment.number
    contours = []
    axes, (row_mm, column_mm) = stack.frames[0].axes, stack.frames[0].spacing_mm
    for frame, mask in zip(stack.frames, mask_ZYX, strict=True):
        for outline in outlines(mask):
            points = frame.position_mm + outline[:, 1:] * column_mm * axes[0] + outline[:, :1] * row_mm * axes[1]
            contour = pydicom.Dataset()
            multi = frame.instance.of("NumberOfFrames") is not None
            contour.ContourImageSequence = [_image(pydicom, frame.instance.header, frame.number if multi else None)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.{DIGITS}f}" for value in points.ravel()]
            contours.append(contour)
    if contours:
        of_roi.ContourSequence = contours
    return of_roi


def outlines(mask_YX: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the outlines of a mask, (row, column) of their corners, half way between voxels in and out."""
    from skimage.measure import find_contours

    if mask_YX.any():
        for outline in find_contours(np.pad(mask_YX, 1).astype(np.float32), 0.5):
            yield _without_points_on_lines(outline[:-1] - 1)


def _without_points_on_lines(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    before, after = np.diff(points, axis=0, prepend=points[-1:]), np.diff(points, axis=0, append=points[:1])
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return points[turns] if np.count_nonzero(turns) >= FEWEST_POINTS else points


def read_structures(file: Path, grid: Grid) -> dict[str, npt.NDArray[np.bool_]]:
    """Read the structures of an RTSTRUCT as masks (slices, rows, columns) on the slices of a grid.

    Raises:
        DatasetError: If it is no RTSTRUCT, or outlines lie beside the slices.
    """
    dataset = read_dataset(file)
    if dataset.SOPClassUID != STORAGE:
        raise DatasetError(f"{file}: expected an RTSTRUCT, it is {dataset.SOPClassUID.name}")
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for of_roi in dataset.get("ROIContourSequence", ()):
        name = names.get(int(of_roi.ReferencedROINumber), "")
        closed = [
            np.asarray([float(value) for value in contour.ContourData]).reshape(-1, 3)
            for contour in of_roi.get("ContourSequence", ())
            if str(contour.ContourGeometricType).startswith("CLOSED") and len(contour.ContourData) >= 3 * FEWEST_POINTS
        ]
        if closed:
            mask = _filled(closed, grid, f"{file}: {name}")
            masks[name] = masks[name] | mask if name in masks else mask  # several of one name are one structure
    return masks


def _filled(outlines_mm: Sequence[npt.NDArray[np.float64]], grid: Grid, where: str) -> npt.NDArray[np.bool_]:
    """Fill the outlines of one structure.

    They may lie in planes between the slices, and closer together than these. A slice gets what is inside of the
    outlines of the plane nearest to it, as a voxel belongs to a structure if its centre does: outlines of different
    planes say nothing of each other's holes, and all of them together would be larger than the structure.
    """
    from skimage.draw import polygon2mask

    columns, rows, slices = grid.shape
    mask = np.zeros((slices, rows, columns), bool)
    by_slice: dict[int, list[tuple[float, npt.NDArray[np.float64]]]] = defaultdict(list)
    for points_mm in outlines_mm:
        voxels = (points_mm - grid.origin_mm) @ grid.axes.T / grid.spacing_mm
        at = float(voxels[:, 2].mean())
        number = _slice_nearest_to(at, slices)
        if number is None or np.ptp(voxels[:, 2]) > OFF_A_SLICE:
            raise DatasetError(
                f"{where}: an outline lies at slice {at:.2f} of {slices}, or askew to them; is it of this series?"
            )
        by_slice[number].append((at, voxels[:, :2] - number * grid.tilt_voxels))
    for number, parts in by_slice.items():
        nearest, _ = min(parts, key=lambda part: abs(part[0] - number))
        for part in (outline for at, outline in parts if abs(at - nearest) <= SAME_PLANE):
            mask[number] ^= polygon2mask((rows, columns), part[:, ::-1])
    return mask


def _slice_nearest_to(at: float, slices: int) -> int | None:
    """Give the slice nearest to a place along the normal, in slices; half way it is the later one, if there is one.

    So outlines that all lie half way between slices fill every slice once. None for a place beside the slices.
    """
    if not -OFF_A_SLICE - ROUNDED <= at <= slices - 1 + OFF_A_SLICE + ROUNDED:
        return None
    return min(max(math.floor(at + OFF_A_SLICE + ROUNDED), 0), slices - 1)
