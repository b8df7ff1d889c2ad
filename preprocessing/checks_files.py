"""Check by their names that a dataset has the files that it should have, and pair images with labels."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import (
    CHANNEL_SUFFIX_LENGTH,
    TrainingCase,
    channel_of,
    image_files,
    list_training_cases,
)
from sam3dnet.preprocessing.checks_description import SUPPORTED_ENDINGS, Description
from sam3dnet.preprocessing.names import SIDECAR_ENDINGS, entries, faulty_cases, has_ending_in_other_case
from sam3dnet.preprocessing.problems import DATASET, Problem, error, shorten, warning
from sam3dnet.preprocessing.world import is_nifti


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case that are there; the label is None where there is none."""

    name: str
    images: tuple[Path, ...]
    label: Path | None
    is_test: bool = False


def check_files(dataset_folder: Path, description: Description) -> tuple[list[CaseFiles], list[Problem]]:
    """Check the file names of a dataset.

    Returns:
        The cases with whatever files they have, training cases first, and the problems.
    """
    ending = description.file_ending or guess_ending(dataset_folder)
    if description.listed is not None:
        cases, problems = _check_listed(dataset_folder, ending, description)
    else:
        cases, problems = _check_training(dataset_folder, ending, description)
    problems += _check_count(cases, dataset_folder, ending, description)
    problems += check_names([case.name for case in cases], ending)
    test_cases, more = _check_channels_of_folder(dataset_folder / "imagesTs", ending, description.num_channels)
    tests = [CaseFiles(name, tuple(images), None, True) for name, images in test_cases.items()]
    return cases + tests, problems + [warning(p.case, p.check, p.message) for p in more]


def guess_ending(dataset_folder: Path) -> str:
    """Give the most frequent image ending of a dataset whose dataset.json says none."""
    endings = Counter(
        ending
        for path in image_files(dataset_folder / "imagesTr", "")
        if (ending := next((e for e in SUPPORTED_ENDINGS if path.name.endswith(e)), None))
    )
    return endings.most_common(1)[0][0] if endings else SUPPORTED_ENDINGS[0]


def _check_training(
    dataset_folder: Path, ending: str, description: Description
) -> tuple[list[CaseFiles], list[Problem]]:
    problems = [
        error(DATASET, "missing folder", f"{dataset_folder / part}: not found; put the {what} there")
        for part, what in (("imagesTr", "training images"), ("labelsTr", "labels"))
        if not (dataset_folder / part).is_dir()
    ]
    images, more = _check_channels_of_folder(dataset_folder / "imagesTr", ending, description.num_channels)
    problems += more
    labels = {file.name.removesuffix(ending): file for file in image_files(dataset_folder / "labelsTr", ending)}
    for name in sorted(set(images) - set(labels)):
        file = dataset_folder / "labelsTr" / f"{name}{ending}"
        problems.append(
            error(name, "missing label", f"{file}: not found; add the label, or take the case's images out of imagesTr")
        )
    for name in sorted(set(labels) - set(images)):
        problems.append(error(name, "label without image", _without_image(labels[name], dataset_folder, ending)))
    problems += _check_other_endings(dataset_folder, ending)
    return [CaseFiles(name, tuple(files), labels.get(name)) for name, files in images.items()], problems


def _without_image(label: Path, dataset_folder: Path, ending: str) -> str:
    expected = dataset_folder / "imagesTr" / f"{label.name.removesuffix(ending)}_0000{ending}"
    return f"{label}: expected an image {expected}, there is none; add the image, or remove the label"


def _check_channels_of_folder(
    folder: Path, ending: str, num_channels: int | None
) -> tuple[dict[str, list[Path]], list[Problem]]:
    """Group a folder's images by case, and check the channel numbers of each."""
    files_of_case: dict[str, dict[int, Path]] = defaultdict(dict)
    problems = []
    for file in image_files(folder, ending):
        channel = channel_of(file, ending)
        if channel is None:
            problems.append(
                error(
                    file.name.removesuffix(ending),
                    "file name",
                    f"{file}: has no channel number; expected {file.name.removesuffix(ending)}_0000{ending} (0000 for "
                    "the first channel); rename it",
                )
            )
        else:
            files_of_case[file.name[: -len(ending) - CHANNEL_SUFFIX_LENGTH]][channel] = file
    if num_channels is None:
        num_channels = max((max(files) + 1 for files in files_of_case.values()), default=1)
    for name, files in sorted(files_of_case.items()):
        problems += _check_channels(name, files, folder, ending, num_channels)
    return {name: [files[i] for i in sorted(files)] for name, files in sorted(files_of_case.items())}, problems


def _check_channels(
    name: str, files: Mapping[int, Path], folder: Path, ending: str, num_channels: int
) -> list[Problem]:
    came = ", ".join(f"{channel:04d}" for channel in sorted(files))
    problems = []
    for channel in sorted(set(range(num_channels)) - set(files)):
        skipped = channel < max(files)
        problems.append(
            error(
                name,
                "skipped channel" if skipped else "missing channel",
                f"{folder / f'{name}_{channel:04d}{ending}'}: not found; expected {num_channels} channels, there are "
                f"{came}; add the file, or {'renumber the others' if skipped else 'leave the case out'}",
            )
        )
    extra = [files[channel].name for channel in sorted(files) if channel >= num_channels]
    if extra:
        problems.append(
            error(
                name,
                "extra channel",
                f"{shorten(extra)}: expected {num_channels} channels, numbered from 0000, as in channel_names of "
                "dataset.json; remove the file, or name the channel there",
            )
        )
    return problems


def _check_other_endings(dataset_folder: Path, ending: str) -> list[Problem]:
    known = set(_sidecars(dataset_folder, ending))
    problems = []
    for part in ("imagesTr", "labelsTr"):
        others = [
            path.name
            for path in entries(dataset_folder / part)
            if not path.name.endswith(ending) and not path.is_dir() and path not in known
        ]
        in_other_case = [name for name in others if has_ending_in_other_case(Path(name), ending)]
        problems += [
            error(name, "file name", f"{dataset_folder / part / name}: expected the ending {ending}; rename it")
            for name in in_other_case
        ]
        others = [name for name in others if name not in in_other_case]
        if others:
            message = (
                f"{dataset_folder / part}: {len(others)} files do not end with {ending} and are ignored: "
                f"{shorten(others)}; convert or remove them"
            )
            problems.append(warning(DATASET, "other files", message))
    return problems


def _sidecars(dataset_folder: Path, ending: str) -> Iterator[Path]:
    """Find the files in which the spacing of images stands that cannot say it themselves."""
    if ending.lower() in SIDECAR_ENDINGS:
        for part in ("imagesTr", "labelsTr"):
            yield from image_files(dataset_folder / part, ".json")


def _check_listed(dataset_folder: Path, ending: str, description: Description) -> tuple[list[CaseFiles], list[Problem]]:
    listed, problems = _without_outsiders(dataset_folder, ending, description.listed or {})
    cases = []
    for case in listed:
        expected = description.num_channels
        if expected is not None and len(case.images) != expected:
            message = f"dataset.json lists {len(case.images)} images; expected {expected}, one a channel"
            problems.append(
                error(case.name, "missing channel" if len(case.images) < expected else "extra channel", message)
            )
        for file, check in (*((image, "missing channel") for image in case.images), (case.label, "missing label")):
            if not file.is_file():
                problems.append(error(case.name, check, f"{file}: not found; add it, or correct dataset.json"))
        if not _is_kept_as(case.label, ending):
            message = f"{case.label}: expected the ending {ending}, that of the dataset; convert it"
            problems.append(error(case.name, "file name", message))
        images = tuple(image for image in case.images if image.is_file())
        cases.append(CaseFiles(case.name, images, case.label if case.label.is_file() else None))
    return cases, problems


def _is_kept_as(label: Path, ending: str) -> bool:
    """Tell whether a label can be kept under a name with the dataset's ending; NIfTI is packed or unpacked for it."""
    return label.name.endswith(ending) or (is_nifti(label) and ending in (".nii", ".nii.gz"))


def _without_outsiders(
    dataset_folder: Path, ending: str, listed: Mapping[str, Any]
) -> tuple[list[TrainingCase], list[Problem]]:
    """List the cases whose files lie in the dataset, and those problems that the others are."""
    cases, problems = [], []
    for name, files in listed.items():
        try:
            cases += list_training_cases(dataset_folder, {"dataset": {name: files}, "file_ending": ending})
        except DatasetError as problem:
            problems.append(error(name, "file outside", str(problem)))
    return sorted(cases, key=lambda case: case.name), problems


def _check_count(
    cases: Iterable[CaseFiles], dataset_folder: Path, ending: str, description: Description
) -> list[Problem]:
    count = len(list(cases))
    if count == 0:
        place = dataset_folder / "imagesTr"
        message = f"{place}: has no training case; expected images such as liver_07_0000{ending} there"
        return [error(DATASET, "no cases", message)]
    if description.num_training in (None, count):
        return []
    message = (
        f'dataset.json: "numTraining" is {description.num_training}, but there are {count} training cases; '
        "add the cases that are missing, or correct the number"
    )
    return [error(DATASET, "numTraining", message)]


def check_names(cases: Sequence[str], ending: str) -> list[Problem]:
    """Check what training cases are called: names that mean something else, and those that would be one file."""
    faults = faulty_cases(cases, ending)
    problems = [error(name, "case name", f"{name}: {fault}") for name, fault in faults.items()]
    return problems + _check_names_by_case(cases)


def _check_names_by_case(cases: Sequence[str]) -> list[Problem]:
    """Names that differ only in upper and lower case are one file on many computers."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in cases:
        alike[os.path.normcase(name).casefold()].append(name)
    return [
        error(
            names[0],
            "names differ only by case",
            f"{', '.join(names)} differ only in upper and lower case, and overwrite each other on Windows and macOS; "
            "rename all but one",
        )
        for names in alike.values()
        if len(names) > 1
    ]
