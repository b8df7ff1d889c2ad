"""One case: read truth and prediction, see that they lie on one grid, and score every class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation.detection import Detections, Object, detect, read_objects
from sam3dnet.evaluation.metrics import NOWHERE, MaskScore, WholeImage, score_masks
from sam3dnet.planning.objects import LabelBoxes, mask_of, union
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
    detections: dict[str, Detections] = field(default_factory=dict)  # where the prediction has confidences


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
    prediction, predicted_voxel_ml = np.zeros_like(truth), None
    if pair.prediction is not None:
        prediction, predicted_grid = read_labels(pair.name, pair.prediction, reader)
        predicted_voxel_ml = prod(predicted_grid.spacing_mm) / 1000 if predicted_grid.is_spaced else None
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
    sizes_ml = prod(grid.spacing_mm) / 1000, predicted_voxel_ml
    detections, warnings = _detections(pair, scoring, reader, truth, prediction, sizes_ml)
    warnings += _unknown_values(pair, scoring, truth=truth, prediction=prediction)
    return CaseResult(pair, scores, warnings, detections)


def _detections(
    pair: LabelPair,
    scoring: Scoring,
    reader: DatasetReader,
    truth_ZYX: np.ndarray,
    prediction_ZYX: np.ndarray,
    sizes_ml: tuple[float, float | None],
) -> tuple[dict[str, Detections], list[str]]:
    """Match objects with lesions by class, where the prediction says how sure it is of each; and what is wrong."""
    try:  # nothing is sure of an empty label map in the place of a missing one, and nothing is false
        objects = {} if pair.prediction is None else read_objects(pair.prediction, pair.name)
    except DatasetError as error:
        return {}, [f"{pair.name}: its lesions are not counted by confidence: {error}"]
    if objects is None:
        return {}, []
    ignored_ZYX = None if scoring.ignore is None else truth_ZYX == scoring.ignore
    found: dict[str, Detections] = {}
    unlike = []
    for name, values in scoring.classes.items():
        of_class = objects.get(name, [])
        marks_ZYX = _marks(of_class, prediction_ZYX.shape, reader, pair.prediction)
        detections = marks_ZYX is not None and detect(
            mask_of(prediction_ZYX, values),
            mask_of(truth_ZYX, values),
            marks_ZYX,
            of_class,
            voxel_ml=sizes_ml[0],
            predicted_voxel_ml=sizes_ml[1],
            min_iou=scoring.lesion_iou,
            ignored_ZYX=ignored_ZYX,
        )
        if detections:
            found[name] = detections
        else:
            unlike.append(name)
    told = f"{pair.name}: its confidences of {', '.join(unlike)} are those of another label map; predict it again"
    return found, [told] if unlike else []


def _marks(
    objects: Sequence[Object], shape_ZYX: tuple[int, ...], reader: DatasetReader, file: Path | None
) -> np.ndarray | None:
    """Mark a voxel of each object by its number, axes as of the reader's `read_grid`; None where one lies outside."""
    if file is None:
        return np.zeros(shape_ZYX, np.int32)
    stored = reader.format.grid(file, True).shape if reader.reorients else shape_ZYX
    marks_ZYX = np.zeros(stored, np.int32)
    for number, one in enumerate(objects, start=1):
        place = one.at[::-1]
        if not all(0 <= index < size for index, size in zip(place, stored, strict=True)):
            return None
        marks_ZYX[place] = number
    return reader.in_read_axes(marks_ZYX, file)


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
