"""One case: read truth and prediction, see that they lie on one grid, and score every class."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation.metrics import NOWHERE, MaskScore, WholeImage, score_masks
from sam3dnet.planning.objects import LabelBoxes, union
from sam3dnet.preprocessing.cases import foreground_classes, has_regions, image_files
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.checks_geometry import Grid, compare_grids
from sam3dnet.preprocessing.problems import Problem
from sam3dnet.preprocessing.reading import DatasetReader


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how.

    Attributes:
        classes: Label values of each class or region, in the order of dataset.json, without the background.
        label_keys: nnU-Net's name of each class in its summary.json: "2", or "(1, 2)" of a region.
        ignore: Value of voxels in the truth that nobody has annotated.
        tolerance_mm: Of the NSD.
        lesion_iou: Intersection over union from which on two components match.
    """

    classes: dict[str, tuple[int, ...]]
    label_keys: dict[str, str]
    ignore: int | None
    tolerance_mm: float
    lesion_iou: float


@dataclass(frozen=True)
class LabelPair:
    """The two files of a case; no prediction stands for an empty one."""

    name: str
    truth: Path
    prediction: Path | None


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case by class, and what should be looked at."""

    files: LabelPair
    scores: dict[str, MaskScore]
    warnings: list[str] = field(default_factory=list)


def make_scoring(dataset_json: Mapping[str, Any], tolerance_mm: float, lesion_iou: float) -> Scoring:
    """Take classes, regions and the ignore label from dataset.json."""
    labels: Mapping[str, Any] = dataset_json["labels"]
    classes = foreground_classes(dataset_json)
    regions = has_regions(dataset_json)
    keys = {
        name: str(values if regions and isinstance(labels[name], list | tuple) else values[0])
        for name, values in classes.items()
    }
    ignore = labels.get("ignore")
    return Scoring(classes, keys, None if ignore is None else int(ignore), tolerance_mm, lesion_iou)


def pair_files(predictions: Path, labels: Path, file_ending: str) -> tuple[list[LabelPair], list[str]]:
    """Pair every label file with the prediction of its name.

    Args:
        predictions: Folder of the predictions.
        labels: Folder of the truth.
        file_ending: Of both, such as ".nii.gz".

    Returns:
        A pair for every label file, sorted by name, and the names of the predictions that have no truth.

    Raises:
        DatasetError: If a folder is missing, or there is no truth.
    """
    for folder, what in ((predictions, "predictions"), (labels, "true labels")):
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; expected the folder of the {what}")
    truths = {path.name.removesuffix(file_ending): path for path in image_files(labels, file_ending)}
    predicted = {path.name.removesuffix(file_ending): path for path in image_files(predictions, file_ending)}
    if not truths:
        raise DatasetError(
            f"{labels}: holds no file ending in {file_ending}; give the folder of the true labels with -g"
        )
    pairs = [LabelPair(name, truth, predicted.get(name)) for name, truth in truths.items()]
    return pairs, sorted(predicted.keys() - truths.keys())


def evaluate_case(pair: LabelPair, scoring: Scoring, reader: DatasetReader) -> CaseResult:
    """Score one case, whose files are of one dataset.

    Raises:
        DatasetError: If a file is damaged, holds no labels, or the two do not lie on one grid.
    """
    truth, grid = read_labels(pair.name, pair.truth, reader)
    prediction = np.zeros_like(truth)
    if pair.prediction is not None:
        prediction, predicted_grid = read_labels(pair.name, pair.prediction, reader)
        grid = grid if grid.is_spaced else replace(grid, spacing_mm=predicted_grid.spacing_mm)
        named = ("truth", grid), ("prediction", predicted_grid)
        _require_none(compare_grids(pair.name, *named, is_label=True), pair.prediction)
    ignored = None if scoring.ignore is None else truth == scoring.ignore
    image = WholeImage.of(truth.shape, ignored)
    boxes = LabelBoxes(prediction), LabelBoxes(truth)
    scores = {}
    for name, values in scoring.classes.items():
        box = union(found.of(values) for found in boxes) or NOWHERE
        scores[name] = score_masks(
            mask_of(prediction[box], values),
            mask_of(truth[box], values),
            grid.spacing_mm,
            tolerance_mm=scoring.tolerance_mm,
            lesion_iou=scoring.lesion_iou,
            ignored_ZYX=None if ignored is None else ignored[box],
            image=image,
        )
    return CaseResult(pair, scores, _unknown_values(pair, scoring, truth=truth, prediction=prediction))


def read_labels(case: str, file: Path, reader: DatasetReader) -> tuple[np.ndarray, Grid]:
    """Read a label map that is whole and holds whole numbers.

    Returns:
        Labels (Z, Y, X) as integers, axes as of the reader's `read_grid`, and where they lie.

    Raises:
        DatasetError: If that is not so.
    """
    _require_none(check_bytes(case, file), file)
    grid, problems = reader.read_grid(case, file, is_label=True)
    _require_none(problems, file)
    labels, problems = reader.read_voxels(case, file)
    _require_none(problems, file)
    assert grid is not None and labels is not None
    if np.issubdtype(labels.dtype, np.integer):
        return labels, grid
    if not np.array_equal(labels, np.round(labels)):
        raise DatasetError(f"{file}: holds fractions or NaN, expected whole numbers as labels; export the labels again")
    return labels.astype(np.int64), grid


def mask_of(labels_ZYX: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """Mark the voxels that have one of the values."""
    mask = labels_ZYX == values[0]
    for value in values[1:]:
        mask |= labels_ZYX == value
    return mask


def _require_none(problems: list[Problem], file: Path) -> None:
    errors = [problem.message for problem in problems if problem.severity == "error"]
    if errors:
        raise DatasetError(f"{file}: {'; '.join(errors)}")


def _unknown_values(pair: LabelPair, scoring: Scoring, **labels: np.ndarray) -> list[str]:
    """Tell of values that are no class: they count as background."""
    known = {0, *(value for values in scoring.classes.values() for value in values), scoring.ignore}
    found = {what: sorted(set(np.unique(array).tolist()) - known) for what, array in labels.items()}
    return [
        f"{pair.name}: the {what} holds {', '.join(map(str, values))}, which dataset.json does not name; "
        "counted as background"
        for what, values in found.items()
        if values
    ]
