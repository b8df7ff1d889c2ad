"""The result of a challenge's protocol as JSON, CSV, and tables of text; every figure with its unit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam3dnet.evaluation.challenges import ALL_CLASSES, ChallengeStudy
from sam3dnet.evaluation.metrics import surface_implementation
from sam3dnet.evaluation.results import format_interval, format_number, format_table, write_csv
from sam3dnet.evaluation.statistics import Estimate, estimate_mean
from sam3dnet.preprocessing.folders import write_json

JSON_FILE, CSV_FILE = "clicks.json", "clicks.csv"


def write_challenge(study: ChallengeStudy, folder: Path) -> tuple[Path, Path]:
    """Write clicks.json and clicks.csv (a row a case, class and figure).

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON_FILE, as_json(study))
    write_csv(folder / CSV_FILE, _rows(study))
    return folder / JSON_FILE, folder / CSV_FILE


def challenge_folder(study: ChallengeStudy) -> Path:
    """Give the place of the results where the user says none: in the folder of the fold."""
    return study.model / f"fold_{study.fold}" / f"clicks_{study.challenge.name}"


def as_json(study: ChallengeStudy) -> dict[str, Any]:
    """Give all of a study as JSON values; NaN stands for what is undefined."""
    return {
        "model": str(study.model),
        "folds": [study.fold],
        "protocol": study.challenge.name,
        "rule": study.challenge.rule,
        "steps": list(study.challenge.steps),
        "units": study.challenge.figure_units(),
        **({"surfaces": surface_implementation()} if "nsd" in study.challenge.units else {}),
        "summary": [
            {**_key(study, name, step, metric), **asdict(estimate_mean(study.values(name, metric, step)))}
            for name in study.classes
            for step, metric in _figures(study)
        ],
        "cases_without_the_class": study.absent,
        "too_late": study.late,
        "rows": _rows(study),
        "failed": study.failed,
    }


def format_challenge(study: ChallengeStudy) -> str:
    """Format the study as text: what sums up all steps, then each metric step by step, then how it was measured."""
    units = study.challenge.figure_units()
    header = ("class", "protocol", "figure", "unit", "mean", "95 % interval", "median", "cases")
    rows = []
    for name in study.classes:
        for step, metric in _figures(study):
            if step is None:
                key = (name, study.challenge.name, metric, units[metric])
                rows.append((*key, *_cells(estimate_mean(study.values(name, metric)))))
    summary = format_table(header, rows, num_left=4)
    return "\n".join([summary, "", _format_steps(study), "", *_notes(study)])


def _format_steps(study: ChallengeStudy) -> str:
    challenge = study.challenge
    header = ("class", "placing", "given", "metric", "unit", "of cases", *challenge.steps, "cases")
    rows = []
    for name in study.classes:
        for metric, unit in challenge.units.items():
            found = [estimate_mean(study.values(name, metric, step)) for step in range(len(challenge.steps))]
            for statistic in ("mean", "median"):
                cells = [format_number(getattr(estimate, statistic)) for estimate in found]
                key = (name, challenge.placing, challenge.given, metric, unit, statistic)
                rows.append((*key, *cells, str(found[0].count)))
    return format_table(header, rows, num_left=6)


def _cells(estimate: Estimate) -> tuple[str, ...]:
    median, count = format_number(estimate.median), str(estimate.count)
    return format_number(estimate.mean), format_interval(estimate), median, count


def _figures(study: ChallengeStudy) -> list[tuple[int | None, str]]:
    """List all figures of a class: their step and metric."""
    return list(dict.fromkeys((figure.step, figure.metric) for figure in study.figures))


def _key(study: ChallengeStudy, class_name: str, step: int | None, metric: str) -> dict[str, Any]:
    challenge = study.challenge
    return {
        "class": class_name,
        "protocol": challenge.name,
        "placing": challenge.placing,
        "given": challenge.given,
        "step": "all" if step is None else challenge.steps[step],
        "metric": metric,
        "unit": challenge.figure_units()[metric],
    }


def _rows(study: ChallengeStudy) -> list[dict[str, Any]]:
    return [
        {"case": one.case, **_key(study, one.class_name, one.step, one.metric), "value": one.value}
        for one in study.figures
    ]


def _notes(study: ChallengeStudy) -> list[str]:
    challenge = study.challenge
    notes = [f"{challenge.name}: {challenge.rule}"]
    if ALL_CLASSES in study.classes:
        notes.append(f"{ALL_CLASSES}: the challenge's figures, of each case the mean over the classes of its truth.")
    if "nsd" in challenge.units:
        notes.append(f"{surface_implementation()}.")
    notes += [f"{name}: not in {count} case(s)." for name, count in study.absent.items()]
    if study.late:
        notes.append(f"Too late, counted as 0: {'; '.join(study.late)}.")
    return notes
