"""Label maps as DICOM SEG, by highdicom: a binary segment a class, on the slices of the series that was segmented."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sam3dnet import __version__
from sam3dnet.dicom.files import require_highdicom
from sam3dnet.dicom.segments import Segment, segments_of
from sam3dnet.dicom.stacks import Stack
from sam3dnet.dicom.volumes import grid_of, labels_on_slices
from sam3dnet.errors import DatasetError
from sam3dnet.planning.objects import mask_of

if TYPE_CHECKING:
    from pydicom import Dataset

OF_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
MANUFACTURER, PRODUCT = "sam3dnet", "sam3dnet"
SERIES_NUMBER = 900  # of what is derived from a study; those of scanners are small
LONGEST_LABEL = 64


def write_segmentation(
    labels_ZYX: npt.NDArray[Any], file: Path, stack: Stack, classes: Mapping[str, Sequence[int]], model: str
) -> None:
    """Write a DICOM SEG.

    Args:
        labels_ZYX: On the grid of the stack's image.
        file: Where to.
        stack: What was segmented.
        classes: Labels of each class or region by name; regions may overlap.
        model: Name of what made it.

    Raises:
        DatasetError: If highdicom is not installed, or does not take the series; nothing is written then. A label map
            without any object is written: an empty segmentation is a result.
    """
    highdicom = require_highdicom()
    slices = labels_on_slices(labels_ZYX, grid_of(stack))
    masks = np.stack([mask_of(slices, values) for values in classes.values()], -1).astype(np.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values of the source that are taken over as they are
            dataset = highdicom.seg.Segmentation(
                source_images=[_complete(instance.header, stack) for instance in stack.files],
                pixel_array=_in_order_of_files(masks, stack),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_description(segment, model) for segment in segments_of(classes)],
                series_instance_uid=highdicom.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=PRODUCT,
                software_versions=__version__,
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description=model[:LONGEST_LABEL],
                series_description=f"Segmentation by {model}"[:LONGEST_LABEL],
                omit_empty_frames=bool(masks.any()),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise DatasetError(
            f"{stack.in_words()}: highdicom cannot refer a segmentation to it ({problem}); take another output format"
        ) from problem
    dataset.save_as(file)


def _complete(header: "Dataset", stack: Stack) -> "Dataset":
    """Give a copy of a header with all elements of patient and study, empty where they are missing, as they may be."""
    completed = copy.copy(header)
    if "PixelSpacing" in completed and not completed.get("SliceThickness"):
        completed.SliceThickness = f"{grid_of(stack).spacing_mm[2]:.6g}"
    for keyword in OF_STUDY:
        if keyword not in completed:
            setattr(completed, keyword, None)
    return completed


def _in_order_of_files(masks: npt.NDArray[np.uint8], stack: Stack) -> npt.NDArray[np.uint8]:
    """Order slices as highdicom takes them: as the files are given, frames of one file as they lie in it."""
    frames = stack.frames
    if len(stack.files) == len(frames):
        return masks  # a file a slice, given in the same order
    ordered = np.zeros_like(masks, shape=(int(stack.instance.header.NumberOfFrames), *masks.shape[1:]))
    for frame, mask in zip(frames, masks, strict=True):
        ordered[frame.number] = mask
    return ordered


def _description(segment: Segment, model: str) -> Any:
    highdicom = require_highdicom()
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model[:LONGEST_LABEL], version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    described = highdicom.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.name[:LONGEST_LABEL],
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        primary_anatomic_structures=None if segment.place is None else [segment.place],
        tracking_id=segment.name[:LONGEST_LABEL],
        tracking_uid=highdicom.UID(),
        display_color=highdicom.color.CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.side is not None:
        side = highdicom.sr.CodedConcept.from_code(segment.side)
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return described
