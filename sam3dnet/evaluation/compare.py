"""Two results on the same truth: the paired difference of every metric, and whether it is more than chance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation.folder import Evaluation, evaluate_folder, find_dataset_json
from sam3dnet.evaluation.metrics import METRICS, Metric
from sam3dnet.evaluation.results import as_json, format_interval, format_number, format_table, write_csv
from sam3dnet.evaluation.statistics import PairedEstimate, estimate_difference
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.settings.evaluation import ScoringSettings

JSON_FILE, CSV_FILE = "comparison.json", "comparison.csv"
# Below this, Wilcoxon's test cannot reach 0.05 whatever the differences are.
FEWEST_CASES_FOR_A_TEST = 6


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, the cases in both, and those in one alone."""

    first: Evaluation
    second: Evaluation
    cases: tuple[str, ...]
    left_out: dict[str, str]

    def values(self, evaluation: Evaluation, class_name: str, metric: Metric) -> list[float]:
        """Give a metric of the common cases; of a signed error its size, for a smaller error is a better one."""
        values = [float(getattr(evaluation.cases[case].scores[class_name], metric.key)) for case in self.cases]
        return [abs(value) for value in values] if metric.best == "zero" else values

    def difference(self, class_name: str, metric: Metric) -> PairedEstimate:
        """Summarise second minus first over the common cases."""
        pair = (self.values(evaluation, class_name, metric) for evaluation in (self.first, self.second))
        return estimate_difference(*pair)


def compare_folders(first: Path, second: Path, labels: Path, settings: ScoringSettings, **options: Any) -> Comparison:
    """Score two folders of predictions in the same way and compare them.

    Args:
        first: Folder with label maps named as the true ones.
        second: The other result.
        labels: Folder with the true labels.
        settings: How to score; what is not said there is taken from what lies beside `first`, for both.
        **options: Of `evaluate_folder`.

    Raises:
        DatasetError: As `evaluate_folder`, or if no case could be scored in both.
    """
    settings = replace(settings, dataset_json=find_dataset_json(first, labels, settings.dataset_json))
    evaluation = evaluate_folder(first, labels, settings, **options)
    settings = replace(settings, tolerance=evaluation.tolerance.mm)
    return compare(evaluation, evaluate_folder(second, labels, settings, **options))


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two results that were scored in the same way, over the cases in both.

    Raises:
        DatasetError: If they have no case in common.
    """
    common = tuple(name for name in first.cases if name in second.cases)
    if not common:
        raise DatasetError(f"{first.predictions} and {second.predictions} have no evaluated case in common")
    left_out = {
        name: f"{evaluation.predictions}: {reason}"
        for evaluation in (first, second)
        for name, reason in evaluation.failed.items()
    }
    return Comparison(first, second, common, left_out)


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write comparison.json, which holds both evaluations too, and comparison.csv, a row a case, class and metric.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = comparison.first.scoring.classes
    content = {
        "first": as_json(comparison.first),
        "second": as_json(comparison.second),
        "cases_in_both": list(comparison.cases),
        "left_out": comparison.left_out,
        "difference": "second minus first; of volume errors without their sign",
        "summary": {name: {m.key: asdict(comparison.difference(name, m)) for m in METRICS} for name in classes},
    }
    write_json(folder / JSON_FILE, content)
    write_csv(
        folder / CSV_FILE, [row for name in classes for metric in METRICS for row in _rows(comparison, name, metric)]
    )
    return folder / JSON_FILE, folder / CSV_FILE


def format_comparison(comparison: Comparison) -> str:
    """Format the paired differences as text, a row a class and metric."""
    header = ("class", "metric", "A", "B", "B - A", "95 % interval", "p", "cases")
    rows = [
        (name, *_cells(comparison, name, metric)) for name in comparison.first.scoring.classes for metric in METRICS
    ]
    notes = [
        f"A: {comparison.first.predictions}",
        f"B: {comparison.second.predictions}",
        f"Means over the {len(comparison.cases)} cases in both; volume errors without their sign. Intervals: paired "
        "bootstrap; p: Wilcoxon signed-rank, two-sided, not corrected for the number of rows.",
    ]
    if comparison.left_out:
        notes.append(f"Left out: {shorten(sorted(comparison.left_out))}")
    return "\n".join([format_table(header, rows), "", *notes])


def _cells(comparison: Comparison, class_name: str, metric: Metric) -> tuple[str, ...]:
    difference = comparison.difference(class_name, metric)
    first, second = _paired_means(comparison, class_name, metric)
    p_value = "-" if difference.count < FEWEST_CASES_FOR_A_TEST else f"{difference.p_value:.3g}"
    figures = (first, second, difference.mean)
    title = f"size of {metric.title}" if metric.best == "zero" else metric.title
    return (title, *map(format_number, figures), format_interval(difference), p_value, str(difference.count))


def _paired_means(comparison: Comparison, class_name: str, metric: Metric) -> tuple[float, float]:
    """Average both results over the cases in which both have a value, so that the means differ by the difference."""
    values = [comparison.values(e, class_name, metric) for e in (comparison.first, comparison.second)]
    defined = [(a, b) for a, b in zip(*values, strict=True) if a == a and b == b]
    return _mean([a for a, _ in defined]), _mean([b for _, b in defined])


def _rows(comparison: Comparison, class_name: str, metric: Metric) -> list[dict[str, Any]]:
    columns = (comparison.values(e, class_name, metric) for e in (comparison.first, comparison.second))
    return [
        {"case": case, "class": class_name, "metric": metric.key, "first": a, "second": b, "difference": b - a}
        for case, a, b in zip(comparison.cases, *columns, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
