"""nnU-Net's three folders, the datasets in them, and files that are written whole or not at all."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from sam3dnet.errors import DatasetError, did_you_mean

LABELS_FOLDER = "gt_segmentations"  # of a preprocessed dataset: what validation is scored against
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_PARTIAL = ".partial-"
_DATASET_NAME = re.compile(r"Dataset(\d{3,})_.+")


@dataclass(frozen=True)
class Folders:
    """Where nnU-Net reads datasets, and writes plans, preprocessed cases and models."""

    raw: Path
    preprocessed: Path
    results: Path


def activate_folders(root: Path | str | None) -> Folders:
    """Choose the three folders and write them into the environment, where nnU-Net and its processes look for them.

    Args:
        root: Folder of nnUNet_raw, nnUNet_preprocessed and nnUNet_results, of which the last two are made where they
            are missing; None takes the three variables of these names.

    Returns:
        The three folders, absolute.

    Raises:
        DatasetError: If root is None and a variable is not set, or a folder cannot be made.
    """
    folders = _folders_of_environment() if root is None else _folders_below(root)
    for variable, folder in zip(VARIABLES, astuple(folders), strict=True):
        os.environ[variable] = str(folder)
    return folders


def find_dataset_name(identifier: int | str, folders: Folders) -> str:
    """Find the full name of a dataset by its number or name, among raw, preprocessed and trained ones.

    Args:
        identifier: 501, "501" or "Dataset501_Hippocampus".
        folders: Where to look.

    Returns:
        The name, such as "Dataset501_Hippocampus".

    Raises:
        DatasetError: If there is no such dataset, or more than one; lists what there is.
    """
    names = list_dataset_names(folders)
    text = str(identifier).strip()
    if text in names:
        return text
    found = [name for name in names if text.isdecimal() and dataset_number(name) == int(text)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found or names) or "none"
    if found:
        raise DatasetError(
            f"dataset {text}: {len(found)} datasets have this number: {listed}; "
            "give the full name, or renumber all but one"
        )
    places = ", ".join(str(folder) for folder in astuple(folders))
    spellings = {name.partition("_")[2]: name for name in names} | {name: name for name in names}
    raise DatasetError(
        f"dataset {text!r}: not found in {places}{did_you_mean(text, spellings)}; there are: {listed}; "
        f"give a number or a full name, and put new datasets into {folders.raw}/DatasetXXX_Name"
    )


def parse_fold(text: str | int) -> int | Literal["all"]:
    """Read a fold from "fold0", "fold_0", "0" or "all"."""
    number = re.fullmatch(r"(?:fold_?)?(\d+)", str(text))
    if number:
        return int(number[1])
    if text in ("all", "fold_all"):
        return "all"
    raise DatasetError(f"fold {text!r} is unknown; expected fold0 to fold4, 0 to 4, or all")


def list_dataset_names(folders: Folders) -> list[str]:
    """List the names of all raw, preprocessed and trained datasets, sorted."""
    present = (Path(folder) for folder in astuple(folders) if Path(folder).is_dir())
    names = {child.name for folder in present for child in folder.iterdir() if child.is_dir()}
    return sorted(name for name in names if _DATASET_NAME.fullmatch(name))


def dataset_number(name: str) -> int:
    """Give the number in a dataset's name; -1 of other names."""
    match = _DATASET_NAME.fullmatch(name)
    return int(match.group(1)) if match else -1


def is_plain_name(name: object) -> bool:
    """Tell whether text from a JSON file names something in a folder, and leads nowhere else."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\:\0]+", name) is not None and name not in (".", "..")


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Offer a temporary name beside `path`, with the same ending; it takes the place of `path` if the block succeeds.

    A block that fails leaves the file that was there before, or none.
    """
    descriptor, name = tempfile.mkstemp(prefix=_PARTIAL, suffix=f"-{path.name}", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that were killed inside of `whole_or_nothing` left in a folder."""
    for path in folder.glob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, obj: Any) -> None:
    """Write JSON, whole or not at all; the folder is made where it is missing.

    Raises:
        TypeError: If the object holds something that JSON cannot; nothing is written then.
    """
    text = json.dumps(obj, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _folders_below(root: Path | str) -> Folders:
    base = Path(root).expanduser().absolute()
    folders = Folders(*(base / variable for variable in VARIABLES))
    for folder in (folders.preprocessed, folders.results):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DatasetError(
                f"{folder} cannot be made ({reason}); choose another --root, or make it writable"
            ) from error
    return folders


def _folders_of_environment() -> Folders:
    missing = [variable for variable in VARIABLES if not os.environ.get(variable)]
    if missing:
        lines = "\n".join(f"    export {variable}=/path/to/{variable}" for variable in VARIABLES)
        raise DatasetError(
            f"{', '.join(missing)}: not set, so it is not known where the data are. Type these three lines, with your "
            f"own folders\n{lines}\nor give --root DIR, a folder that holds these three."
        )
    return Folders(*(Path(os.environ[variable]).expanduser().absolute() for variable in VARIABLES))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
