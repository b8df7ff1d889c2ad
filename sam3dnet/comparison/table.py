"""The table of a comparison, in the literature's form: a row a method; what was prompted has columns of its own."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

AUTOMATIC = "automatic"
NOTE = "Dice / NSD in percent, of label maps as the networks give them: no method's post-processing is in the figures."
Scores = dict[str, dict[str, float]]


@dataclass
class Row:
    """What was measured of one method.

    Attributes:
        method: As asked for.
        automatic: Dice and NSD of each class without prompts; None for a method that needs them.
        prompted: The same by kind of prompt, such as "1 click".
        tuned_parameters: That are trained.
        parameters: In all.
        peak_mib: Of training: processes and their children.
        seconds_per_case: Of prediction.
        iterations: Training steps.
        note: What else is to be known.
    """

    method: str
    automatic: Scores | None = None
    prompted: dict[str, Scores] = field(default_factory=dict)
    tuned_parameters: int | None = None
    parameters: int | None = None
    peak_mib: float | None = None
    seconds_per_case: float | None = None
    iterations: int | None = None
    note: str = ""


def columns(rows: Sequence[Row]) -> list[str]:
    """Name the columns: the scores by class, automatic ones first, each kind of prompt apart, then the costs."""
    classes = _classes(rows)
    kinds = [AUTOMATIC, *_prompt_kinds(rows)]
    scores = [f"{name}, {kind}" for kind in kinds for name in [*classes, *(["mean"] if len(classes) > 1 else [])]]
    return ["method", *scores, "tuned", "parameters", "peak MiB", "s/case", "iterations", "note"]


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Give the cells of a row: "Dice / NSD" in percent, as the literature prints them; a dash where there is none."""
    classes = _classes(rows)
    kinds: list[Scores | None] = [row.automatic, *(row.prompted.get(kind) for kind in _prompt_kinds(rows))]
    found = [row.method]
    for scores in kinds:
        found += [_pair(scores.get(name) if scores else None) for name in classes]
        found += [_pair(mean_of_classes(scores) if scores else None)] if len(classes) > 1 else []
    numbers = (row.tuned_parameters, row.parameters, None if row.peak_mib is None else round(row.peak_mib))
    found += ["-" if number is None else f"{number:,}" for number in numbers]
    found.append("-" if row.seconds_per_case is None else f"{row.seconds_per_case:.2f}")
    return [*found, "-" if row.iterations is None else str(row.iterations), row.note]


def mean_of_classes(scores: Scores) -> dict[str, float]:
    """Average each metric over the classes; NaN where a class has none."""
    metrics = next(iter(scores.values()))
    return {metric: sum(own[metric] for own in scores.values()) / len(scores) for metric in metrics}


def as_markdown(rows: Sequence[Row]) -> str:
    """Format the table as Markdown, and say of what label maps it is."""
    header = columns(rows)
    lines = [header, ["---"] * len(header), *(cells(row, rows) for row in rows)]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", NOTE])


def as_csv(rows: Sequence[Row]) -> str:
    """Format the scores and costs as comma-separated values, one number a cell."""
    classes, kinds = _classes(rows), [AUTOMATIC, *_prompt_kinds(rows)]
    header = [f"{metric} {name} {kind}" for kind in kinds for name in classes for metric in ("dice", "nsd")]
    costs = ("tuned_parameters", "parameters", "peak_mib", "seconds_per_case", "iterations", "note")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *header, *costs])
    for row in rows:
        by_kind = {AUTOMATIC: row.automatic, **row.prompted}
        scores = [
            ((by_kind.get(kind) or {}).get(name) or {}).get(metric)
            for kind in kinds
            for name in classes
            for metric in ("dice", "nsd")
        ]
        writer.writerow([row.method, *scores, *(getattr(row, cost) for cost in costs)])
    return text.getvalue()


def as_values(row: Row) -> dict[str, Any]:
    """Give a row as plain values."""
    return dict(vars(row))


def _classes(rows: Sequence[Row]) -> list[str]:
    every = [scores for row in rows for scores in (row.automatic, *row.prompted.values()) if scores]
    return list(dict.fromkeys(name for scores in every for name in scores))


def _prompt_kinds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(kind for row in rows for kind in row.prompted))


def _pair(score: dict[str, float] | None) -> str:
    return f"{100 * score['dice']:.2f} / {100 * score['nsd']:.2f}" if score else "-"
