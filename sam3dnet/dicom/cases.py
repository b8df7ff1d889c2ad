"""DICOM as a folder of images that nnU-Net's readers open: a case a study, a file a channel, all on one grid."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sam3dnet.dicom.choosing import Rule, by_study, choose_stacks
from sam3dnet.dicom.files import Found
from sam3dnet.dicom.stacks import Stack, find_stacks
from sam3dnet.dicom.volumes import read_image
from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    import SimpleITK as sitk

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
FAST = 1  # level of compression, of files that are read once

Placed = tuple[Stack, "sitk.Image"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DicomCase:
    """The series of one study that are a model's channels, in their order."""

    name: str
    stacks: tuple[Stack, ...]

    @property
    def newest_ns(self) -> int:
        """When the newest of the files was changed."""
        return max(instance.file.stat().st_mtime_ns for stack in self.stacks for instance in stack.files)


def find_dicom_cases(
    found: Found, folder: Path, name: str, channels: Sequence[str], rules: Sequence[Rule]
) -> tuple[list[DicomCase], dict[str, str]]:
    """Make a case of each study.

    Args:
        found: The files.
        folder: That they lie below.
        name: Of the folder, or of the zip file that was unpacked into it.
        channels: Names of the model's channels.
        rules: Of the channels.

    Returns:
        The cases, and for studies without one why.

    Raises:
        DatasetError: If there is no image at all.
    """
    for file, why in found.damaged.items():
        logger.warning("Warning: %s begins as DICOM does and cannot be read (%s); it is left out", file, why)
    stacks = find_stacks(found.instances)
    if not stacks:
        raise DatasetError(
            f"{folder}: {len(found.instances)} DICOM files and no image with a place in space; give the folder of a "
            "CT, MR or the like"
        )
    cases, failed = [], {}
    for study_name, of_study in _named(by_study(stacks), folder, name).items():
        try:
            cases.append(DicomCase(study_name, tuple(choose_stacks(of_study, channels, rules))))
        except DatasetError as problem:
            failed[study_name] = str(problem)
    return cases, failed


def _named(studies: Mapping[str, list[Stack]], folder: Path, name: str) -> dict[str, list[Stack]]:
    """Name each study by the folders that it alone lies in, below the one that was given; else by a number."""
    if len(studies) == 1:
        return {name: next(iter(studies.values()))}
    folders = {study: _common_folder(stacks) for study, stacks in studies.items()}
    names = {
        study: "_".join(place.relative_to(folder).parts) if place.is_relative_to(folder) else ""
        for study, place in folders.items()
    }
    if len({*names.values()} - {""}) < len(studies):
        names = {study: f"{name}_{number}" for number, study in enumerate(studies, 1)}
    return {names[study]: stacks for study, stacks in studies.items()}


def _common_folder(stacks: Sequence[Stack]) -> Path:
    return Path(os.path.commonpath([instance.file.parent for stack in stacks for instance in stack.files]))


def write_images(case: DicomCase, folder: Path, file_ending: str) -> None:
    """Write the channels as nnU-Net names them, on the grid of the first; as old as the newest of their files.

    Raises:
        DatasetError: If a series is no volume, or lies elsewhere than the first.
    """
    import SimpleITK as sitk

    first = None
    for number, stack in enumerate(case.stacks):
        image = read_image(stack)
        first = first or (stack, image)
        file = folder / f"{case.name}_{number:04d}{file_ending}"
        moved = image if number == 0 else on_grid((stack, image), first)
        sitk.WriteImage(moved, str(file), useCompression=file_ending == ".nii.gz", compressionLevel=FAST)
        os.utime(file, ns=(case.newest_ns, case.newest_ns))


def on_grid(moved: "Placed", fixed: "Placed") -> "sitk.Image":
    """Bring an image onto another one's grid, by linear interpolation; outside of itself it is its smallest value.

    Raises:
        DatasetError: If the positions of the two do not refer to the same, or they have no place in common.
    """
    import SimpleITK as sitk

    (stack, image), (of_stack, of_image) = moved, fixed
    both = f"{stack.in_words()} and {of_stack.in_words()}"
    frames, is_same_grid = {stack.frame_of_reference, of_stack.frame_of_reference}, _is_same_grid(image, of_image)
    if len(frames - {""}) > 1 or ("" in frames and not is_same_grid):  # equal numbers of different frames say nothing
        raise DatasetError(
            f"{both}: their positions do not refer to the same (frame of reference), so that nothing says how they lie "
            "to each other; register them first"
        )
    if is_same_grid:
        return image
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    mask.CopyInformation(image)
    inside = sitk.Resample(mask, of_image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    if not sitk.GetArrayViewFromImage(inside).any():
        raise DatasetError(f"{both} have no place in common; choose others")
    empty = float(sitk.GetArrayViewFromImage(image).min())
    return sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), of_image, sitk.Transform(), sitk.sitkLinear, empty)


def _is_same_grid(one: "sitk.Image", other: "sitk.Image") -> bool:
    def place(image: "sitk.Image") -> list[float]:
        return [*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()]

    return one.GetSize() == other.GetSize() and np.allclose(place(one), place(other), rtol=0, atol=1e-4)
