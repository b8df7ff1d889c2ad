"""The place of a dataset that is made: free, named as nnU-Net wants it, and there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.folders import Folders, dataset_number, is_plain_name, list_dataset_names
from sam3dnet.preprocessing.locking import only_one

HIGHEST_NUMBER = 999  # nnU-Net takes Dataset1000 for one of number 100, too
FIRST_OF_USERS = 500


def dataset_name(number: int, name: str) -> str:
    """Name a dataset.

    Raises:
        DatasetError: If nnU-Net would not take the number, or the name leads into folders.
    """
    if not 0 <= number <= HIGHEST_NUMBER:
        raise DatasetError(f"-d {number}: expected a number from 0 to {HIGHEST_NUMBER}")
    if not is_plain_name(name):
        raise DatasetError(f"--name {name}: expected a plain name, without folders")
    return f"Dataset{number:03d}_{name}"


def require_free(dataset: str, folders: Folders) -> None:
    """See that there is no dataset of this number.

    Raises:
        DatasetError: If there is.
    """
    numbers = {dataset_number(name): name for name in list_dataset_names(folders)}
    taken = numbers.get(dataset_number(dataset))
    if taken is None:
        return
    free = next((n for n in range(FIRST_OF_USERS, HIGHEST_NUMBER + 1) if n not in numbers), None)
    raise DatasetError(
        f"{dataset}: there is {taken} already, and nothing is overwritten; choose another number with -d"
        + (f", such as -d {free}" if free is not None else "")
    )


@contextmanager
def made_aside(dataset: str, folders: Folders) -> Iterator[Path]:
    """Offer a folder beside the place of the dataset, to which it is moved if the block succeeds."""
    aside = folders.raw / f".partial-Dataset{dataset_number(dataset):03d}"
    with only_one(aside):
        require_free(dataset, folders)  # another process may have made it while this one waited
        made = aside / dataset
        try:
            shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
            made.mkdir(parents=True)
            yield made
            made.rename(folders.raw / dataset)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
