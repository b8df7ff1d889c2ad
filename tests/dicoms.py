"""Made-up DICOM: series as scanners write them, with what goes wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
STRAIGHT = np.eye(3)
FRAME = "1.2.826.0.1.3680043.8.498.7"
STUDY = "1.2.826.0.1.3680043.8.498.8"


def oblique():
    """Directions of columns, rows and slices that are along no axis, as rows."""
    first = np.array([0.8, 0.1, 0.59])
    first /= np.linalg.norm(first)
    second = np.cross([0.2, -0.3, 0.9], first)
    second /= np.linalg.norm(second)
    return np.array([first, second, np.cross(first, second)])


def header(modality="MR", sop_class=None, **elements) -> Any:
    """A file without an image."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class or CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = modality, STUDY, FRAME
    dataset.PatientName, dataset.PatientID = "Secret^Name", "secret-id"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def set_pixels(dataset, stored) -> None:
    """Store whole numbers, (rows, columns) or (frames, rows, columns)."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()


def places(count, axes=STRAIGHT, spacing=(0.7, 0.9, 2.5), origin=(-30.0, 12.0, 400.0), tilt_mm=(0.0, 0.0)):
    """ImagePositionPatient of each slice; spacing (x, y, z)."""
    return [
        np.asarray(origin) + number * (spacing[2] * axes[2] + tilt_mm[0] * axes[0] + tilt_mm[1] * axes[1])
        for number in range(count)
    ]


def write_series(
    folder: Path,
    stored_ZYX,
    *,
    axes=STRAIGHT,
    spacing=(0.7, 0.9, 2.5),
    positions=None,
    rescale=None,
    each=None,
    **shared,
) -> str:
    """Write a file a slice, named against their order; `rescale` a (slope, intercept) a slice; give the series' UID."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = places(len(stored_ZYX), axes, spacing) if positions is None else positions
    uid = shared.pop("SeriesInstanceUID", generate_uid())
    compress = shared.pop("compress", None)
    for number, (stored, position) in enumerate(zip(stored_ZYX, positions, strict=True)):
        dataset = header(**{"SeriesInstanceUID": uid, "InstanceNumber": number + 1, **shared})
        dataset.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in np.ravel(axes[:2])]
        dataset.ImagePositionPatient = [f"{value:.9f}"[:16] for value in position]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        for keyword, values in (each or {}).items():
            setattr(dataset, keyword, values[number])
        if rescale is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = rescale[number]
        set_pixels(dataset, stored)
        if compress is not None:
            dataset.compress(compress)
        dataset.save_as(folder / f"{1000 - number:04d}-{uid[-6:]}.dcm", enforce_file_format=True)
    return uid


def write_enhanced(file: Path, stored_ZYX, *, axes=STRAIGHT, spacing=(0.7, 0.9, 2.5), order=None, **elements) -> str:
    """Write one multi-frame file, its frames in any order of the slices."""
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset = header("MR", ENHANCED_MR, SeriesInstanceUID=generate_uid(), **elements)
    order = range(len(stored_ZYX)) if order is None else order
    set_pixels(dataset, np.stack([stored_ZYX[number] for number in order]))
    dataset.NumberOfFrames = len(stored_ZYX)
    orientation, measures, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in np.ravel(axes[:2])]
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    where, groups = places(len(stored_ZYX), axes, spacing), []
    for number in order:
        position, values, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [f"{value:.9f}"[:16] for value in where[number]]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2 + number, -1, "US"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.save_as(file, enforce_file_format=True)
    return str(dataset.SeriesInstanceUID)
