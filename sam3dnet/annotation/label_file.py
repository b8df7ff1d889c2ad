"""Label maps that other programs have written: whether they can be read, and lie where their image does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.geometry import DRIFT_VOXELS, same_place
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.reading import DatasetReader, unreadable


def read_label_map(file: Path, case: str, reader: DatasetReader) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Read a label map.

    Args:
        file: Its file.
        case: For messages.
        reader: Of the dataset.

    Returns:
        (Z, Y, X), and where it lies.

    Raises:
        DatasetError: If it is not there, damaged, or of a format that the reader does not open.
    """
    if (what := not_a_file(file)) is not None:
        raise DatasetError(f"{file}: is {what}; expected the file of a label map")
    problems = [*check_bytes(case, file), *reader.read_grid(case, file, is_label=True)[1]]
    errors = [problem.message for problem in problems if problem.severity == "error"]
    if errors:
        raise DatasetError("; ".join(errors))
    try:
        labels_1ZYX, properties = reader.read_seg(file)
    except Exception as problem:  # each library raises its own
        raise DatasetError(unreadable(case, file, problem).message) from problem
    return labels_1ZYX[0], properties


def require_same_place(
    file: Path, labels_ZYX: npt.NDArray[Any], properties: Mapping[str, Any], of_image: Mapping[str, Any]
) -> None:
    """See that a label map lies where its image does.

    Args:
        file: Of the label map, for the message.
        labels_ZYX: Of the image's shape.
        properties: That the reader gave of the label map.
        of_image: That the reader gave of the image.

    Raises:
        DatasetError: If it lies elsewhere.
    """
    z, y, x = labels_ZYX.shape
    if not same_place(of_image, properties, (z, y, x), DRIFT_VOXELS):
        raise DatasetError(
            f"{file}: has the image's shape, but another origin, spacing or direction; export it on the image's grid"
        )
