"""splits_final.json: which cases train and which validate, in each fold."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StrictStr

from sam3dnet.errors import Sam3dError
from sam3dnet.preprocessing.folders import Folders, is_plain_name
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked

FILE = "splits_final.json"


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("the name of a case")
    return name


CaseName = Annotated[StrictStr, AfterValidator(_plain)]


class Split(Part):
    """The cases of one fold."""

    train: tuple[CaseName, ...]
    val: tuple[CaseName, ...]


class Splits(Part):
    """The whole file, which is an array of these."""

    folds: tuple[Split, ...]


def splits_file(dataset_name: str, folders: Folders) -> Path:
    """Say where the splits of a dataset are, or are going to be."""
    return folders.preprocessed / dataset_name / FILE


def read_splits(file: Path, error: type[Sam3dError], remedy: str) -> tuple[Split, ...]:
    """Read the splits, fold by fold.

    Raises:
        Sam3dError: `error`, with the remedy, if they are missing, damaged, or a case's name leads elsewhere.
    """
    return checked(Splits, {"folds": read_json(file, error, remedy, holds=list)}, file, error, remedy).folds
