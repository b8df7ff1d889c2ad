"""The result of an evaluation as JSON with the fields of nnU-Net's summary.json, as CSV, and as a table of text."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.evaluation.cases import CaseResult
from sam3dnet.evaluation.detection import BY_SIZE_AT, HEADER, detection_rows
from sam3dnet.evaluation.folder import Evaluation
from sam3dnet.evaluation.lesions import CONNECTIVITY
from sam3dnet.evaluation.metrics import METRICS, MaskScore, Metric, surface_implementation
from sam3dnet.evaluation.statistics import RESAMPLES, SEED, Estimate
from sam3dnet.preprocessing.folders import whole_or_nothing, write_json
from sam3dnet.preprocessing.problems import shorten

JSON_FILE, CSV_FILE = "results.json", "results.csv"
SUMMARY_HEADER = ("class", "metric", "mean", "95 % interval", "median", "cases")
EMPTY_CONVENTION = (
    "truth and prediction empty: Dice 1, NSD 1, HD95 0; one of them empty: Dice 0, NSD 0, HD95 the image's diagonal; "
    "lesions are pooled over the cases; metric_per_case, mean and foreground_mean follow nnU-Net, "
    "which leaves a case out of the mean of Dice and IoU (NaN) where both are empty"
)


def write_results(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write results.json and results.csv.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON_FILE, as_json(evaluation))
    rows = [score_row(name, case, score) for name, case, score in _scores(evaluation)]
    write_csv(folder / CSV_FILE, rows)
    return folder / JSON_FILE, folder / CSV_FILE


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Give all of an evaluation as JSON values; NaN stands for what is undefined, as in nnU-Net's files."""
    return {
        **nnunet_summary(evaluation),
        "settings": settings(evaluation),
        "summary": {
            name: {**{key: asdict(value) for key, value in estimates.items()}, "empty": evaluation.empty_counts(name)}
            for name, estimates in evaluation.estimates().items()
        },
        **({"detection": found} if (found := evaluation.detection()) else {}),
        "cases": [score_row(name, case, score) for name, case, score in _scores(evaluation)],
        "failed": evaluation.failed,
        "predictions_without_truth": evaluation.surplus,
    }


def settings(evaluation: Evaluation) -> dict[str, Any]:
    """Say how the figures were made."""
    return {
        "predictions": str(evaluation.predictions),
        "labels": str(evaluation.labels),
        "surfaces": surface_implementation(),
        "tolerance_mm": evaluation.tolerance.mm,
        "tolerance_source": evaluation.tolerance.source,
        "lesions": lesion_criterion(evaluation),
        "ignore_label": evaluation.scoring.ignore,
        "empty_masks": EMPTY_CONVENTION,
        "missing_predictions": "counted as empty"
        if evaluation.missing_as_empty
        else "left out and listed under failed",
        "interval": f"95 %, percentiles of {RESAMPLES} bootstrap samples of the cases, seed {SEED}",
    }


def lesion_criterion(evaluation: Evaluation) -> str:
    """Say what a lesion is, and when two match."""
    least = evaluation.scoring.lesion_iou
    match = f"IoU of at least {least:g}" if least else "any common voxel"
    return f"components of {CONNECTIVITY} neighbours, matched by {match}"


def score_row(class_name: str, case: CaseResult, score: MaskScore) -> dict[str, Any]:
    """Give the score of a class in a case as one flat row."""
    return {"case": case.files.name, "class": class_name, **asdict(score), "empty": score.empty}


def nnunet_summary(evaluation: Evaluation) -> dict[str, Any]:
    """Give the fields of nnU-Net's summary.json, with nnU-Net's values."""
    keys = evaluation.scoring.label_keys
    per_case: list[dict[str, Any]] = [
        {
            "reference_file": str(case.files.truth),
            "prediction_file": str(case.files.prediction or ""),
            "metrics": {keys[name]: _nnunet_metrics(score) for name, score in case.scores.items()},
        }
        for case in evaluation.cases.values()
    ]
    mean = {key: _column_means([case["metrics"][key] for case in per_case], skip_nan=True) for key in keys.values()}
    return {
        "foreground_mean": _column_means(list(mean.values()), skip_nan=False),
        "mean": mean,
        "metric_per_case": per_case,
    }


def _nnunet_metrics(score: MaskScore) -> dict[str, float]:
    tp, fp, fn, tn = score.true_positive, score.false_positive, score.false_negative, score.true_negative
    union = tp + fp + fn
    return {
        "Dice": 2 * tp / (union + tp) if union else math.nan,
        "FN": fn,
        "FP": fp,
        "IoU": tp / union if union else math.nan,
        "TN": tn,
        "TP": tp,
        "n_pred": fp + tp,
        "n_ref": fn + tp,
    }


def _column_means(rows: Sequence[Mapping[str, float]], *, skip_nan: bool) -> dict[str, float]:
    columns = {key: np.array([row[key] for row in rows], dtype=float) for key in rows[0]}
    if skip_nan:
        columns = {key: column[~np.isnan(column)] for key, column in columns.items()}
    return {key: float(column.mean()) if len(column) else math.nan for key, column in columns.items()}


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys, whole or not at all; what is undefined is left empty."""
    with whole_or_nothing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if _is_nan(value) else value for key, value in row.items()})


def format_evaluation(evaluation: Evaluation) -> str:
    """Format the summary as text: a row a class and metric, then what was left out or is empty."""
    table = format_table(SUMMARY_HEADER, evaluation_rows(evaluation))
    return "\n".join([table, "", *detection_lines(evaluation), *notes(evaluation)])


def detection_lines(evaluation: Evaluation) -> list[str]:
    """Format the detection of lesions as text, where predictions say how sure they are of each object."""
    rows = detection_rows(evaluation.detection())
    if not rows:
        return []
    told = f"Lesions found at so many false objects a case, by confidence; by size at {BY_SIZE_AT:g}:"
    return [told, "", format_table(HEADER, rows, num_left=1), ""]


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Give the cells of the summary: class, metric, mean, interval, median, cases."""
    return [
        (name, *_estimate_cells(metric, evaluation.estimate(name, metric)))
        for name in evaluation.scoring.classes
        for metric in METRICS
    ]


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], num_left: int = 2) -> str:
    """Align the columns of a table: the first `num_left` to the left, figures to the right."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i < num_left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(lines[0]), "-" * (sum(widths) + 2 * len(widths) - 2), *map(aligned, lines[1:])])


SMALLEST_SHOWN = 0.0005  # by three decimals


def format_number(value: float) -> str:
    """Format a figure: three decimals, fewer where it is large, three digits where it is tiny, a dash for none."""
    if math.isnan(value):
        return "-"
    if 0 < abs(value) < SMALLEST_SHOWN:
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_interval(estimate: Estimate) -> str:
    """Format a bootstrap interval."""
    if math.isnan(estimate.low):
        return "-"
    return f"{format_number(estimate.low)} to {format_number(estimate.high)}"


def _estimate_cells(metric: Metric, estimate: Estimate) -> tuple[str, ...]:
    return (
        metric.title,
        format_number(estimate.mean),
        format_interval(estimate),
        format_number(estimate.median),
        str(estimate.count),
    )


def notes(evaluation: Evaluation) -> list[str]:
    """Say how surfaces and lesions were measured, what is empty, and what was left out."""
    lines = [
        f"NSD at {evaluation.tolerance.mm:g} mm ({evaluation.tolerance.source}). {surface_implementation()}.",
        f"Lesions: {lesion_criterion(evaluation)}; recall and precision pooled over the cases.",
    ]
    for name in evaluation.scoring.classes:
        counts = evaluation.empty_counts(name)
        if any(counts.values()):
            told = ", ".join(
                f"{kind if kind == 'both' else f'only the {kind}'}: {n}" for kind, n in counts.items() if n
            )
            lines.append(f"{name}: empty in {told} (of {len(evaluation.cases)} cases, all of them counted)")
    if names := evaluation.without_confidences():
        lines.append(f"Lesions are not counted by confidence, which is missing or damaged of {shorten(names)}")
    if evaluation.surplus:
        lines.append(f"Without truth, left out: {shorten(evaluation.surplus)}")
    return lines


def _scores(evaluation: Evaluation) -> Iterable[tuple[str, CaseResult, MaskScore]]:
    for case in evaluation.cases.values():
        for name, score in case.scores.items():
            yield name, case, score


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
