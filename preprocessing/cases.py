"""Which training cases a raw dataset has, and the files of each."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.preprocessing.checks_description import DATASET_JSON, load_dataset_json, require_usable
from sam3dnet.preprocessing.folders import is_plain_name
from sam3dnet.preprocessing.names import entries, faulty_cases

CHANNEL_SUFFIX_LENGTH = len("_0000")


@dataclass(frozen=True)
class TrainingCase:
    """One image, in as many files as it has channels, and its label."""

    name: str
    images: tuple[Path, ...]
    label: Path


def read_dataset_json(folder: Path, error: type[Sam3dError] = DatasetError, missing: str = "") -> dict[str, Any]:
    """Read the dataset.json of a dataset or model, which all that asks for its classes and channels relies upon.

    Args:
        folder: That it is in.
        error: Raised if it is of no use.
        missing: What to do where there is none.

    Raises:
        Sam3dError: `error`, if it is missing, cannot be read, or does not say what it must.
    """
    content = load_dataset_json(folder / DATASET_JSON, error, missing)
    require_usable(content, folder / DATASET_JSON, error)
    return content


def channel_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Give the channels' names by number, under the present key or nnU-Net's older one."""
    return dict(dataset_json.get("channel_names", dataset_json.get("modality", {})))


def foreground_classes(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give the label values of each class or region by name, without background and ignore label."""
    values = {
        name: tuple(int(value) for value in (given if isinstance(given, list | tuple) else (given,)))
        for name, given in dataset_json["labels"].items()
    }
    return {name: found for name, found in values.items() if name != "ignore" and found != (0,)}


def output_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Name the network's outputs in their order: background and the classes by label, or the regions."""
    classes = foreground_classes(dataset_json)
    if has_regions(dataset_json):
        return list(classes)
    return ["background", *sorted(classes, key=lambda name: classes[name])]


def output_channels(dataset_json: Mapping[str, Any]) -> int:
    """Count the network's outputs: a channel a class and one for background, or a channel a region."""
    return len(output_names(dataset_json))


def has_regions(dataset_json: Mapping[str, Any]) -> bool:
    """Tell whether the outputs are regions that may overlap, and not classes."""
    return any(isinstance(v, (list, tuple)) and len(v) > 1 for v in dataset_json["labels"].values())


def list_training_cases(dataset_folder: Path, dataset_json: Mapping[str, Any]) -> list[TrainingCase]:
    """List the training cases that nnU-Net sees, sorted by name; nothing is said about whether the files are there.

    The cases are those of imagesTr, or those of the key "dataset" of dataset.json where it has one.

    Raises:
        DatasetError: If dataset.json names a file or an ending that leads elsewhere, or a case has a name that it
            cannot have.
    """
    ending = str(dataset_json["file_ending"])
    if not is_plain_name(ending):
        raise DatasetError(f'{dataset_folder / DATASET_JSON}: "file_ending" is {ending!r}; expected such as ".nii.gz"')
    if "dataset" in dataset_json:
        cases = _listed_in_json(dataset_folder, dataset_json["dataset"])
    else:
        cases = _found_in_folders(dataset_folder, ending)
    for name, fault in faulty_cases((case.name for case in cases), ending).items():
        raise DatasetError(f'{dataset_folder}: case "{name}": {fault}')
    return sorted(cases, key=lambda case: case.name)


def _found_in_folders(dataset_folder: Path, ending: str) -> list[TrainingCase]:
    channels_of_case: dict[str, list[Path]] = {}
    for file in image_files(dataset_folder / "imagesTr", ending):
        name = file.name[: -len(ending) - CHANNEL_SUFFIX_LENGTH]
        channels_of_case.setdefault(name, [])
        if channel_of(file, ending) is not None:
            channels_of_case[name].append(file)
    labels = dataset_folder / "labelsTr"
    return [TrainingCase(name, tuple(images), labels / f"{name}{ending}") for name, images in channels_of_case.items()]


def image_files(folder: Path, ending: str) -> list[Path]:
    """List the files of a folder with this ending, sorted by name, and what is none under such a name."""
    return [path for path in entries(folder) if path.name.endswith(ending)]


def channel_of(file: Path, ending: str) -> int | None:
    """Read the channel number from a name such as liver_07_0001.nii.gz; None if it has none."""
    match = re.fullmatch(r".+_(\d{4})", file.name.removesuffix(ending))
    return int(match.group(1)) if match else None


def _listed_in_json(dataset_folder: Path, listed: Mapping[str, Any]) -> list[TrainingCase]:
    folder = Path(os.path.normpath(dataset_folder.absolute()))

    def resolve(case: str, path: str) -> Path:
        found = Path(os.path.normpath(folder / os.path.expandvars(path)))
        if not is_plain_name(case) or not found.is_relative_to(folder):
            raise DatasetError(
                f'{dataset_folder / "dataset.json"}: "dataset": {case}: {path} lies outside of the dataset; expected '
                "a file in its folder and a name without folders; copy or link the file into the dataset"
            )
        return found

    return [
        TrainingCase(name, tuple(resolve(name, image) for image in files["images"]), resolve(name, files["label"]))
        for name, files in listed.items()
    ]
