"""Label maps that others have made: whether they can be read, fit their dataset, and lie where their image does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.geometry import DRIFT_VOXELS, same_place
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.problems import shorten
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


def fitting_labels(
    labels_ZYX: npt.NDArray[Any], image: Case, dataset_json: Mapping[str, Any], reader: DatasetReader
) -> npt.NDArray[np.uint16]:
    """Give a label map with the type that is written, after it was seen to fit its image and its dataset.

    Args:
        labels_ZYX: The label map.
        image: That it is of.
        dataset_json: Of the dataset.
        reader: Of the dataset.

    Raises:
        DatasetError: If it has another shape than the image, or values that dataset.json does not name.
    """
    grid, problems = reader.read_grid(image.name, image.files[0])
    if grid is None:
        raise DatasetError("; ".join(problem.message for problem in problems))
    place, shape = f"the label map of {image.name}", tuple(grid.shape)
    if labels_ZYX.shape != shape:
        raise DatasetError(f"{place} has shape {labels_ZYX.shape}; expected that of the image, {shape} (z, y, x)")
    if labels_ZYX.dtype.kind not in "biuf":
        raise DatasetError(f"{place} is an array of {labels_ZYX.dtype}; expected numbers, (z, y, x)")
    named = [(0, dataset_json["labels"].get("ignore", 0)), *foreground_classes(dataset_json).values()]
    known = sorted({int(value) for values in named for value in values})
    foreign = sorted(set(np.unique(labels_ZYX).tolist()) - set(known))
    if foreign:
        came, expected = (shorten([f"{value:g}" for value in values]) for values in (foreign, known))
        raise DatasetError(f"{place} has the labels {came}; dataset.json names {expected}")
    return labels_ZYX.astype(np.uint16)


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
