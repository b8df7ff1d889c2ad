"""A folder of predictions against a folder of true labels; a case that cannot be scored costs itself alone."""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.evaluation.cases import CaseResult, LabelPair, Scoring, evaluate_case, make_scoring, pair_files
from sam3dnet.evaluation.detection import summarise
from sam3dnet.evaluation.metrics import METRICS, Metric
from sam3dnet.evaluation.statistics import Estimate, estimate_mean, estimate_ratio
from sam3dnet.evaluation.tolerance import Tolerance, choose_tolerance, dataset_names
from sam3dnet.preprocessing.checks_description import require_labels
from sam3dnet.preprocessing.json_files import read_json, read_json_if_whole
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.reading import DatasetReader, dataset_reader, reader_named
from sam3dnet.preprocessing.workers import Workers, default_num_processes, map_cases
from sam3dnet.settings.evaluation import ScoringSettings

logger = logging.getLogger(__name__)

EMPTY_KINDS = ("truth", "prediction", "both")


@dataclass(frozen=True)
class Evaluation:
    """The scores of all cases.

    Attributes:
        predictions: Folder of the predictions.
        labels: Folder of the truth.
        scoring: What was scored, and how.
        tolerance: Of the NSD, with the reason of its choice.
        cases: By name, sorted.
        failed: Cases that have no score, and why; a missing prediction is one.
        surplus: Predictions without truth.
        missing_as_empty: Whether a missing prediction counts as an empty one.
    """

    predictions: Path
    labels: Path
    scoring: Scoring
    tolerance: Tolerance
    cases: dict[str, CaseResult]
    failed: dict[str, str]
    surplus: list[str]
    missing_as_empty: bool

    def values(self, class_name: str, field: str) -> list[float]:
        """Give a field of the scores of a class, one value a case, in the order of the cases."""
        return [float(getattr(case.scores[class_name], field)) for case in self.cases.values()]

    def estimate(self, class_name: str, metric: Metric) -> Estimate:
        """Summarise a metric of a class over the cases."""
        if metric.pooled is None:
            return estimate_mean(self.values(class_name, metric.key))
        part, whole = metric.pooled
        return estimate_ratio(self.values(class_name, part), self.values(class_name, whole))

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Summarise every metric of every class: by class, then by the metric's key."""
        return {name: {m.key: self.estimate(name, m) for m in METRICS} for name in self.scoring.classes}

    def detection(self) -> dict[str, dict[str, Any]]:
        """Summarise the detection of lesions, of the classes of which all predictions have confidences."""
        cases = [case.detections for case in self.cases.values()]
        if not self._any_confidences:
            return {}
        known = [name for name in self.scoring.classes if all(name in of_case for of_case in cases)]
        found = {name: summarise([of_case[name] for of_case in cases]) for name in known}
        return {name: one for name, one in found.items() if one is not None}

    def without_confidences(self) -> list[str]:
        """Name the cases that say of no object how sure it is, where others do: they take the lesions' table away."""
        return [name for name, case in self.cases.items() if not case.detections and self._any_confidences]

    @property
    def _any_confidences(self) -> bool:
        return any(case.detections for case in self.cases.values() if case.files.prediction is not None)

    def empty_counts(self, class_name: str) -> dict[str, int]:
        """Count the cases in which truth, prediction or both have no voxel of a class."""
        found: list[str] = [case.scores[class_name].empty for case in self.cases.values()]
        return {kind: found.count(kind) for kind in EMPTY_KINDS}


def evaluate_folder(
    predictions: Path,
    labels: Path,
    settings: ScoringSettings,
    *,
    only: Collection[str] | None = None,
    progress: bool = True,
    cluster: Workers | None = None,
) -> Evaluation:
    """Score every case of a folder of true labels.

    Args:
        predictions: Folder with label maps named as the true ones.
        labels: Folder with the true labels, such as labelsTs.
        settings: How to score.
        only: Names of the cases to score; None for all that have a true label.
        progress: Whether to show a bar.
        cluster: Scores in place of processes of this machine.

    Returns:
        The scores, and by name what could not be scored.

    Raises:
        DatasetError: If a folder or dataset.json is missing, an option is out of range, or no case could be scored.
    """
    _check_options(settings.tolerance, settings.lesion_iou)
    missing_as_empty, num_processes = settings.missing_as_empty, settings.num_processes
    dataset_json_file = find_dataset_json(predictions, labels, settings.dataset_json)
    description = read_description(dataset_json_file)
    pairs, surplus = pair_files(predictions.absolute(), labels.absolute(), str(description["file_ending"]))
    wanted = None if only is None else set(only)
    pairs = [pair for pair in pairs if wanted is None or pair.name in wanted]
    reader = find_reader(predictions, description, pairs)
    names = dataset_names(labels, dataset_json_file, description)
    tolerance = choose_tolerance(names, settings.tolerance, _spacing_of(pairs, reader))
    scoring = make_scoring(description, tolerance.mm, settings.lesion_iou)
    reasons = {pair.name: _what_is_missing(pair, predictions, missing_as_empty) for pair in pairs}
    failed = {name: reason for name, reason in reasons.items() if reason is not None}
    to_score = [pair for pair in pairs if pair.name not in failed]
    processes = min(default_num_processes() if num_processes is None else num_processes, len(to_score))
    score = partial(evaluate_case, scoring=scoring, reader=reader)
    cases = _evaluate(to_score, score, failed, cluster or processes, progress)
    if not cases:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        raise DatasetError(f"{predictions}: none of {len(failed)} cases can be evaluated: {first}")
    return Evaluation(
        predictions, labels, scoring, tolerance, cases, dict(sorted(failed.items())), surplus, missing_as_empty
    )


def find_dataset_json(predictions: Path, labels: Path, given: Path | str | None = None) -> Path:
    """Find the dataset.json that names the classes: the one given, the predictions' own, or that of the labels.

    Raises:
        DatasetError: If there is none.
    """
    candidates = (
        [Path(given)] if given else [folder / "dataset.json" for folder in (predictions, labels.resolve().parent)]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = " nor ".join(str(candidate) for candidate in candidates)
    raise DatasetError(f"the classes are not known: there is no {places}; give the file with --dataset-json")


def read_description(dataset_json_file: Path) -> dict[str, Any]:
    """Read a dataset.json that may have any name.

    Raises:
        DatasetError: If it is no such file.
    """
    content: dict[str, Any] = read_json(dataset_json_file, DatasetError, "give nnU-Net's dataset.json")
    require_labels(content, dataset_json_file)
    return content


def find_reader(predictions: Path, description: Mapping[str, Any], pairs: Sequence[LabelPair]) -> DatasetReader:
    """Find what reads the label maps: the reader of the plan that lies with predictions, else that of the dataset."""
    plan = read_json_if_whole(predictions / "plans.json") or {}
    if isinstance(plan.get("image_reader_writer"), str):
        return reader_named(plan["image_reader_writer"], description)
    return dataset_reader(description, pairs[0].truth if pairs else None)


def _spacing_of(pairs: Sequence[LabelPair], reader: DatasetReader) -> Sequence[float] | None:
    """Give the spacing of the first label map that says one."""
    files = [file for pair in pairs for file in (pair.truth, pair.prediction) if file is not None]
    grids = (reader.read_grid(file.name, file, is_label=True)[0] for file in files)
    return next((grid.spacing_mm for grid in grids if grid is not None and grid.is_spaced), None)


def _evaluate(
    pairs: list[LabelPair],
    score: Callable[[LabelPair], CaseResult],
    failed: dict[str, str],
    workers: Workers | int,
    progress: bool,
) -> dict[str, CaseResult]:
    folders = sorted({file.parent for pair in pairs for file in (pair.truth, pair.prediction) if file})
    outcomes = map_cases(
        score,
        pairs,
        workers,
        "evaluating",
        progress,
        folders=folders,
    )
    cases = {}
    for outcome in outcomes:
        if outcome.result is not None:
            cases[outcome.item.name] = outcome.result
        else:
            failed[outcome.item.name] = _reason(outcome.error)
    for case in cases.values():
        for message in case.warnings:
            logger.warning("Warning: %s", message)
    return cases


def _check_options(tolerance_mm: float | None, lesion_iou: float) -> None:
    if tolerance_mm is not None and not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise DatasetError(f"tolerance {tolerance_mm} mm: expected a number from 0")
    if not 0 <= lesion_iou <= 1:
        raise DatasetError(f"lesion IoU {lesion_iou}: expected a share from 0 to 1")


def _what_is_missing(pair: LabelPair, predictions: Path, missing_as_empty: bool) -> str | None:
    """Say why a case cannot be scored, as far as its files' names tell."""
    for file in (pair.truth, pair.prediction):
        if file is not None and (what := not_a_file(file)) is not None:
            return f"{file}: is {what}; expected a label map"
    if pair.prediction is None and not missing_as_empty:
        return f"no prediction in {predictions}; predict it, or count it as empty with --missing-as-empty"
    return None


def _reason(error: Exception | None) -> str:
    return str(error) if isinstance(error, Sam3dError) else f"{type(error).__name__}: {error}"
