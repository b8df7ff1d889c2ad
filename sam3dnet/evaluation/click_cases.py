"""The cases of a click study: the validation cases of a fold, or a folder of images with their labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case, find_cases, require_whole
from sam3dnet.planning.objects import bounding_box
from sam3dnet.preprocessing.cases import channel_names, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.checks_description import accepted_checks
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.splits import OF_PLANNING, read_splits, splits_file


@dataclass(frozen=True)
class ClickCase:
    """An image, a file a channel, and its true labels."""

    image: Case
    label: Path


@dataclass(frozen=True, eq=False)
class ClickVolume:
    """A case in memory, as the model's reader gives it.

    Attributes:
        image_CZYX: All channels.
        labels_ZYX: The truth.
        spacing_mm: (Z, Y, X).
    """

    image_CZYX: npt.NDArray[np.float32]
    labels_ZYX: npt.NDArray[np.integer]
    spacing_mm: tuple[float, float, float]

    def crop(self, box: tuple[slice, slice, slice]) -> "ClickVolume":
        """Cut out a box."""
        return ClickVolume(self.image_CZYX[(slice(None), *box)], self.labels_ZYX[box], self.spacing_mm)


def validation_cases(dataset_name: str, folders: Folders, fold: int | str) -> list[ClickCase]:
    """List the validation cases of a fold, by splits_final.json and the raw dataset.

    Raises:
        DatasetError: If the splits, the fold or a case are not there.
    """
    file = splits_file(dataset_name, folders)
    splits = read_splits(file, DatasetError, OF_PLANNING)
    if not isinstance(fold, int) or fold >= len(splits):
        raise DatasetError(
            f"fold {fold} has no validation cases, {file} has the folds 0 to {len(splits) - 1}; "
            "choose one with -f, or give images and labels with -i and -g"
        )
    raw = folders.raw / dataset_name
    known = {case.name: case for case in list_training_cases(raw, read_dataset_json(raw))}
    names = sorted(splits[fold].val)
    missing = [name for name in names if name not in known]
    if missing:
        raise DatasetError(f"{raw}: {', '.join(missing)} of {file} are not there; put their files back")
    return [ClickCase(Case(name, known[name].images), known[name].label) for name in names]


def cases_of_folders(
    images: Path, labels: Path, dataset_json: dict[str, Any]
) -> tuple[list[ClickCase], dict[str, str]]:
    """List the images of a folder that have labels in another.

    Args:
        images: Folder with images named CASE_0000.nii.gz.
        labels: Folder with labels named CASE.nii.gz.
        dataset_json: Of the model.

    Returns:
        The cases, and for every image without labels or a channel the reason why it is left out.

    Raises:
        DatasetError: If the folder is not there or holds no image.
    """
    ending = str(dataset_json["file_ending"])
    found, failed = find_cases(images, ending, len(channel_names(dataset_json)))
    cases = [ClickCase(case, labels / f"{case.name}{ending}") for case in found]
    whole = []
    for case in cases:
        if case.label.is_file():
            whole.append(case)
        else:
            failed[case.image.name] = f"{case.label}: no such file; add it, or leave the image out"
    return whole, failed


def read_volume(case: ClickCase, reader: DatasetReader, dataset_json: dict[str, Any]) -> ClickVolume:
    """Read a case as the model's reader gives it to prediction.

    Args:
        case: What to read.
        reader: Of the model's dataset.
        dataset_json: Of the model.

    Raises:
        DatasetError: If a file is damaged, or the label is not on the image's grid.
    """
    require_whole(case.image, reader, accepted_checks(dataset_json), case.label)
    image, properties = reader.read_images(case.image.files)
    labels = reader.read_seg(case.label)[0][0]
    if labels.shape != image.shape[1:]:
        raise DatasetError(f"{case.label}: has shape {labels.shape}, the image {image.shape[1:]}; export it again")
    z, y, x = (float(mm) for mm in properties["spacing"])
    return ClickVolume(np.asarray(image, dtype=np.float32), np.rint(labels).astype(np.int64), (z, y, x))


def crop_around(mask_ZYX: npt.NDArray[np.bool_], least_shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """Find the box around an object: centred on it, at least so large and holding all of it, within the image.

    Args:
        mask_ZYX: The object, not empty.
        least_shape: (Z, Y, X).
    """
    box = bounding_box(mask_ZYX)
    if box is None:
        raise ValueError("the mask is empty; expected at least one voxel")
    sides = []
    for part, least, length in zip(box, least_shape, mask_ZYX.shape, strict=True):
        size = min(max(part.stop - part.start, least), length)
        start = min(max((part.start + part.stop - size) // 2, 0), length - size)
        sides.append(slice(start, start + size))
    z, y, x = sides
    return z, y, x
