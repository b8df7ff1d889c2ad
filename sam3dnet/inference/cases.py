"""The images to predict: which files belong to which case, and whether a file is whole."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import CHANNEL_SUFFIX_LENGTH, channel_of
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.checks_case import read_grid
from sam3dnet.preprocessing.checks_description import ACCEPT_KEY
from sam3dnet.preprocessing.checks_geometry import compare_grids

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".dcm", ".tif", ".tiff", ".png", ".bmp")


@dataclass(frozen=True)
class Case:
    """One image, a file a channel, in the order of the channels."""

    name: str
    files: tuple[Path, ...]


def find_cases(folder: Path, file_ending: str, num_channels: int) -> tuple[list[Case], dict[str, str]]:
    """Group the files of a folder into cases, named CASE_0000, CASE_0001 and so on before the ending.

    Args:
        folder: Folder with the images.
        file_ending: The ending that the model's dataset has, such as ".nii.gz".
        num_channels: Files that a case must have.

    Returns:
        The complete cases by name, and for every other one the reason why it cannot be predicted.

    Raises:
        DatasetError: If the folder does not exist or holds no file with this ending.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"input folder {folder} does not exist; give a folder with images named CASE_0000{file_ending}"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    wanted = [path for path in files if path.name.endswith(file_ending)]
    foreign = sorted({_ending(path) for path in files if path not in wanted and _ending(path)})
    if not wanted:
        found = f"it holds files ending in {', '.join(foreign)}" if foreign else "it holds no image"
        raise DatasetError(
            f"input folder {folder}: the model wants images ending in {file_ending}, {found}; "
            f"convert the images and name them CASE_0000{file_ending}"
        )
    if foreign:
        logger.warning(
            "%s: files ending in %s are left out, the model wants %s", folder, ", ".join(foreign), file_ending
        )
    return _group(wanted, file_ending, num_channels)


def _group(files: Sequence[Path], file_ending: str, num_channels: int) -> tuple[list[Case], dict[str, str]]:
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    failed = {}
    for path in files:
        channel = channel_of(path, file_ending)
        name = path.name.removesuffix(file_ending)
        if channel is None:
            failed[name] = f"{path.name} has no channel number; name it {name}_0000{file_ending}"
        else:
            channels[name[:-CHANNEL_SUFFIX_LENGTH]][channel] = path
    cases = []
    for name, found in sorted(channels.items()):
        if sorted(found) == list(range(num_channels)):
            cases.append(Case(name, tuple(found[channel] for channel in range(num_channels))))
        else:
            failed[name] = (
                f"the model wants {num_channels} channel(s), files {name}_{_numbers(range(num_channels))}{file_ending};"
                f" there are {_numbers(sorted(found))}"
            )
    return cases, failed


def _numbers(channels: Iterable[int]) -> str:
    return f"{{{','.join(f'{channel:04d}' for channel in channels)}}}"


def _ending(path: Path) -> str:
    return next((ending for ending in IMAGE_ENDINGS if path.name.lower().endswith(ending)), "")


def require_whole(case: Case, accepted: Collection[str] = ()) -> None:
    """Check the files of a case as a dataset is verified before training: whole, finite numbers, on one grid.

    Args:
        case: What to check.
        accepted: Names of checks that the model's dataset accepts (`accepted_checks`).

    Raises:
        DatasetError: With all that is wrong.
    """
    problems = [problem for file in case.files for problem in check_bytes(case.name, file)]
    grids = [(file.name, grid) for file in case.files if (grid := read_grid(case.name, file)[0]) is not None]
    for other in grids[1:]:
        problems += compare_grids(case.name, grids[0], other, is_label=False)
    errors = [problem.message for problem in problems if problem.severity == "error" and problem.check not in accepted]
    if errors:
        raise DatasetError("; ".join(errors))


def accepted_checks(dataset_json: Mapping[str, Any]) -> Collection[str]:
    """Give the names of the checks whose errors the dataset of a model accepts."""
    return frozenset(dataset_json.get(ACCEPT_KEY, ()))


def is_damaged(path: Path) -> bool:
    """Tell whether a file is truncated or its bytes are not what was written."""
    return any(problem.severity == "error" for problem in check_bytes(path.name, path))
