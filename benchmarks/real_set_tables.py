"""The tables and the plot of `real_sets.py`: how its trainings are averaged over cases and runs, and told."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from measuring import as_markdown

from sam3dnet.evaluation.detection import HEADER, detection_rows
from sam3dnet.evaluation.statistics import estimate_difference

OURS = "sam3d"
METRICS = ("dice", "nsd", "hd95_mm")
ALL_FOUND = "1.000"
WORST_FIRST = {"hd95_mm"}  # where less is better
Row = dict[str, Any]


def key(row: Row) -> tuple[str, str, float, int]:
    """Give what tells a training from another."""
    return row["dataset"], row["method"], length_of(row), row["run"]


def length_of(row: Row) -> float:
    """Give how long a training was, in minutes or steps."""
    return float(row["steps"] if "steps" in row else row["minutes"])


def first_columns(rows: Sequence[Row]) -> list[str]:
    """Name the columns of set and length."""
    return ["set", "steps" if any("steps" in row for row in rows) else "minutes"]


def case_means(runs: Sequence[Row], metric: str) -> np.ndarray:
    """Average a metric over the classes and runs, for each case in the order of names."""
    by_case: dict[str, list[float]] = {}
    for row in runs:
        for scored in row["cases"]:
            by_case.setdefault(scored["case"], []).append(scored[metric])
    return np.array([np.nanmean(by_case[name]) for name in sorted(by_case)])


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, float, dict[str, list[Row]]]]:
    """Yield set and length with the runs of each method."""
    ordered = sorted(rows, key=lambda row: (length_of(row), row["dataset"], row["method"], row["run"]))
    for (length, dataset), group in groupby(ordered, key=lambda row: (length_of(row), row["dataset"])):
        by_method: dict[str, list[Row]] = {}
        for row in group:
            by_method.setdefault(row["method"], []).append(row)
        yield dataset, length, by_method


def results_table(rows: Sequence[Row]) -> str:
    """Format a line for each method on each set: means over cases, classes and runs, and what the runs have."""
    head = ["method", "Dice", "NSD", "HD95 mm", "iterations", "crop, batch", "MiB", "runs"]
    lines = [[*first_columns(rows), *head]]
    for dataset, length, by_method in groups(rows):
        for method, runs in by_method.items():
            values = {metric: case_means(runs, metric).mean() for metric in METRICS}
            shown = [f"{values[m]:.3f}" if m not in WORST_FIRST else f"{values[m]:.1f}" for m in METRICS]
            if len(runs) > 1:
                each = [f"{case_means([row], 'dice').mean():.3f}" for row in runs]
                shown[0] += f" ({', '.join(each)})"
            crop = "x".join(map(str, runs[0]["patch_size"])) + f", {runs[0]['batch_size']}"
            iterations = "-".join(str(n) for n in _range([row["iterations"] for row in runs]))
            memory = f"{max(row['peak_mib'] for row in runs):,.0f}"
            lines.append([dataset, f"{length:g}", method, *shown, iterations, crop, memory, str(len(runs))])
    return as_markdown(lines)


def _range(values: Sequence[int]) -> list[int]:
    return sorted({min(values), max(values)})


def best_other(by_method: Mapping[str, list[Row]], metric: str = "dice") -> str | None:
    """Name the best method that is neither ours nor a variant of it."""
    others = [method for method in by_method if method != OURS and not method.startswith(f"{OURS}-")]
    return max(others, key=lambda method: case_means(by_method[method], metric).mean(), default=None)


def differences_table(rows: Sequence[Row]) -> str:
    """Format the paired difference, ours minus the best other method's, of each set and metric."""
    head = ["against", "metric", "difference", "95 % interval", "better / worse", "cases"]
    lines = [[*first_columns(rows), *head]]
    for dataset, length, by_method in groups(rows):
        other = best_other(by_method)
        if OURS not in by_method or other is None:
            continue
        for metric in METRICS:
            pair = [case_means(by_method[method], metric) for method in (other, OURS)]
            estimate, gains = estimate_difference(*pair), np.sign(pair[1] - pair[0])
            better, worse = int((gains > 0).sum()), int((gains < 0).sum())
            if metric in WORST_FIRST:
                better, worse = worse, better
            digits = 1 if metric in WORST_FIRST else 3
            interval = f"{estimate.low:+.{digits}f} to {estimate.high:+.{digits}f}"
            shown = [f"{estimate.mean:+.{digits}f}", "-" if math.isnan(estimate.low) else interval]
            lines.append([dataset, f"{length:g}", other, metric, *shown, f"{better} / {worse}", str(len(pair[0]))])
    return as_markdown(lines)


def confidence_table(rows: Sequence[Row]) -> str:
    """Format how well confidences foretold Dice and objects, a line for each set and budget."""
    of_dice = ["values", "error of Dice", "calibrated", "rank correlation over all classes"]
    of_objects = ["objects, false ones", "area under the curve of certainty", "calibration error", "calibrated"]
    lines = [[*first_columns(rows), *of_dice, *of_objects]]
    for row in sorted(rows, key=key):
        found = row.get("confidence")
        if row["method"] != OURS or not found or not found["dice"] or not found["objects"]:
            continue
        dice, objects = found["dice"], found["objects"]
        both = ("uncalibrated", "calibrated")
        errors = [f"{dice[which]['mean_error']:.3f}" for which in both]
        of_dice = [str(dice["number"]), *errors, _or_dash(found["rank_correlation"], 2)]
        errors = [f"{objects[which]['calibration_error']:.3f}" for which in both]
        numbers = f"{objects['number']}, {found['false_objects']}"
        lines.append(
            [row["dataset"], f"{length_of(row):g}", *of_dice, numbers, _or_dash(found["area_under_curve"], 3), *errors]
        )
    return as_markdown(lines)


def lesions_table(rows: Sequence[Row]) -> str:
    """Format how many objects of each class were found at so many false ones, where some were not; "" for nowhere."""
    lines = [[*first_columns(rows), "method", *HEADER]]
    for row in sorted(rows, key=key):
        for cells in detection_rows(row.get("detection") or {}):
            if set(cells[2:]) - {"-"} != {ALL_FOUND}:
                lines.append([row["dataset"], f"{length_of(row):g}", row["method"], *cells])
    return as_markdown(lines) if len(lines) > 1 else ""


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def classes_table(rows: Sequence[Row]) -> str:
    """Format the Dice of each class, a line for each method on each set."""
    lines = [[*first_columns(rows), "method", "Dice by class"]]
    for dataset, length, by_method in groups(rows):
        for method, runs in by_method.items():
            by_class: dict[str, list[float]] = {}
            for row in runs:
                for scored in row["cases"]:
                    by_class.setdefault(scored["class"], []).append(scored["dice"])
            shown = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in by_class.items())
            lines.append([dataset, f"{length:g}", method, shown])
    return as_markdown(lines)


def table(rows: Sequence[Row]) -> str:
    """Format the tables; that of differences where there is another method than ours, of confidences where some are."""
    both = any(OURS in by_method and best_other(by_method) for _, _, by_method in groups(rows))
    compared = [differences_table(rows)] if both else []
    sure = [confidence_table(rows)] if any(row.get("confidence") for row in rows) else []
    found = [lesions] if (lesions := lesions_table(rows)) else []
    return "\n\n".join([results_table(rows), *compared, classes_table(rows), *sure, *found])


def draw(rows: Sequence[Row]) -> Any:
    """Draw the mean Dice of each method on each set: a point a training, a line a set and budget."""
    from matplotlib.figure import Figure

    found = list(groups(rows))
    unit = "steps" if "steps" in first_columns(rows) else "min"
    names = [f"{dataset.partition('_')[2]}, {length:g} {unit}" for dataset, length, _ in found]
    methods = list(dict.fromkeys(method for _, _, by_method in found for method in by_method))
    figure = Figure(figsize=(7, 0.4 * len(found) + 1.2))
    axes = figure.subplots()
    for number, method in enumerate(methods):
        points = [
            (case_means([run], "dice").mean(), line + 0.12 * (number - (len(methods) - 1) / 2))
            for line, (_, _, by_method) in enumerate(found)
            for run in by_method.get(method, ())
        ]
        axes.scatter(*zip(*points, strict=True), s=22, label=method)
    axes.set_yticks(range(len(found)), names)
    axes.invert_yaxis()
    axes.set_xlabel("mean Dice of the validation cases")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    return figure
