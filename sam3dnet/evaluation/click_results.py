"""The result of a click study as JSON, CSV, a table of text, and a plot."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sam3dnet.evaluation.click_study import CROP, PROTOCOLS, ClickStudy
from sam3dnet.evaluation.click_users import User
from sam3dnet.evaluation.clicks import FEWEST_VOXELS, MOST_FALSE_POSITIVES, MOST_LEFT, Removal
from sam3dnet.evaluation.metrics import surface_implementation
from sam3dnet.evaluation.results import format_number, format_table, write_csv
from sam3dnet.evaluation.statistics import Estimate, estimate_mean
from sam3dnet.preprocessing.folders import whole_or_nothing, write_json

JSON_FILE, CSV_FILE, PLOT_FILE = "clicks.json", "clicks.csv", "clicks.png"
METRIC_TITLES = {"dice": "Dice", "nsd": "NSD"}
UNIT = "share from 0 to 1"
PLACING_NOTES = {
    "random": "Random clicks: voxels drawn uniformly from the class, all positive, the same for every model.",
    "centre": "Centre clicks: the innermost voxel of each component of the class, the largest component first, then "
    "the voxel farthest from all outside of the class and from the clicks before; all positive.",
}
GIVEN_NOTES = {
    "one-by-one": "Given one-by-one: each click is added to those before in one session.",
    "at-once": "Given at-once: the first k clicks together in a fresh session, for each k.",
}


def write_study(study: ClickStudy, folder: Path) -> tuple[Path, ...]:
    """Write clicks.json, clicks.csv (a row a case, class, protocol, user and number of clicks) and clicks.png.

    Returns:
        The three files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(folder / name for name in (JSON_FILE, CSV_FILE, PLOT_FILE))
    write_json(files[0], as_json(study))
    units = {"unit": UNIT, "nsd_tolerance_mm": study.tolerance.mm}
    write_csv(files[1], [asdict(row) | units for row in study.rows])
    save_plot(study, files[2])
    return files


def default_folder(study: ClickStudy) -> Path:
    """Give the place of the results where the user says none: in the folder of the fold."""
    names = [
        study.first_click if user.placing == "corrective" else f"{user.placing}-{user.given}" for user in study.users
    ]
    return study.model / f"fold_{study.folds[0]}" / "_".join(["clicks", *names])


def as_json(study: ClickStudy) -> dict[str, Any]:
    """Give all of a study as JSON values."""
    return {
        "model": str(study.model),
        "folds": list(study.folds),
        "clicks": list(study.clicks),
        "first_click": study.first_click,
        "tolerance_mm": study.tolerance.mm,
        "tolerance_source": study.tolerance.source,
        "surfaces": surface_implementation(),
        "summary": [
            {
                **_series_key(one),
                "clicks": clicks,
                "metric": metric,
                "unit": UNIT,
                **asdict(_estimate(study, one, clicks, metric)),
            }
            for one in _series(study)
            for metric in METRIC_TITLES
            for clicks in study.clicks
        ],
        "negative_clicks": {name: [asdict(removal) for removal in found] for name, found in study.removals.items()},
        "cases_without_the_class": study.absent,
        "median_seconds": {
            "first_click": _median(study.first_seconds),
            "further_click": _median(study.further_seconds),
        },
        "rows": [asdict(row) for row in study.rows],
        "failed": study.failed,
    }


def format_study(study: ClickStudy) -> str:
    """Format the study as text: two rows, mean and median, a class, protocol, user and metric; a column a number of
    clicks."""
    header = (
        "class", "protocol", "placing", "given", "metric", "of cases",
        *(f"{n} click{'' if n == 1 else 's'}" for n in study.clicks), "cases",
    )  # fmt: skip
    rows = []
    for one in _series(study):
        for metric, title in METRIC_TITLES.items():
            found = [_estimate(study, one, clicks, metric) for clicks in study.clicks]
            for statistic in ("mean", "median"):
                cells = [format_number(getattr(estimate, statistic)) for estimate in found]
                rows.append((*_series_key(one).values(), title, statistic, *cells, str(found[0].count)))
    return "\n".join([format_table(header, rows, num_left=6), "", *_notes(study)])


def save_plot(study: ClickStudy, file: Path) -> None:
    """Draw the means against the number of clicks with their intervals: a column a class, a row a metric."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(study.classes), 6), layout="constrained")
    panels = figure.subplots(len(METRIC_TITLES), len(study.classes), squeeze=False, sharex=True)
    for row, (metric, title) in zip(panels, METRIC_TITLES.items(), strict=True):
        for axes, name in zip(row, study.classes, strict=True):
            for one in _series(study):
                if one.class_name == name:
                    found = [_estimate(study, one, clicks, metric) for clicks in study.clicks]
                    axes.plot(study.clicks, [e.mean for e in found], marker="o", label=_label(study, one))
                    axes.fill_between(study.clicks, [e.low for e in found], [e.high for e in found], alpha=0.15)
            axes.set_title(f"{name} ({_count(study, name)} cases)" if metric == "dice" else "")
            axes.set_ylabel(title)
            axes.set_ylim(0, 1.02)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("clicks")
    panels[0][0].legend(loc="lower right")
    with whole_or_nothing(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


@dataclass(frozen=True)
class _Series:
    """Whose scores are summarised together."""

    class_name: str
    protocol: str
    user: User


def _series(study: ClickStudy) -> list[_Series]:
    return [_Series(*one) for one in product(study.classes, PROTOCOLS, study.users)]


def _series_key(series: _Series) -> dict[str, str]:
    return {"class": series.class_name, "protocol": series.protocol, **asdict(series.user)}


def _label(study: ClickStudy, series: _Series) -> str:
    user = series.user
    return series.protocol + (f", {user.placing}, {user.given}" if len(study.users) > 1 else "")


def _estimate(study: ClickStudy, series: _Series, clicks: int, metric: str) -> Estimate:
    return estimate_mean(study.values(series.class_name, series.protocol, clicks, metric, series.user))


def _count(study: ClickStudy, name: str) -> int:
    return len(study.values(name, PROTOCOLS[0], study.clicks[0], "dice"))


def _notes(study: ClickStudy) -> list[str]:
    notes = [
        *dict.fromkeys(_placing_note(study, user) for user in study.users),
        *dict.fromkeys(GIVEN_NOTES[user.given] for user in study.users if user.placing != "corrective"),
        f'"{CROP}": as in the literature, the model is given a crop around the true object, and only that is scored.',
        f"Dice and NSD: {UNIT}.",
        f"NSD at {study.tolerance.mm:g} mm ({study.tolerance.source}). {surface_implementation()}.",
        *(_removal_note(name, found) for name, found in study.removals.items()),
    ]
    if study.first_seconds:
        further = f", a further one {_median(study.further_seconds):.2f} s" if study.further_seconds else ""
        notes.append(f"Median time of a first click {_median(study.first_seconds):.2f} s{further} (whole volume).")
    notes += [f"{name}: not in {count} case(s), which cannot be clicked." for name, count in study.absent.items()]
    return notes


def _placing_note(study: ClickStudy, user: User) -> str:
    if user.placing != "corrective":
        return PLACING_NOTES[user.placing]
    place = "innermost voxel of the object" if study.first_click == "centre" else "a voxel near the object's margin"
    return f"First corrective click: {place}; each further one: innermost voxel of the largest error."


def _removal_note(name: str, removals: Sequence[Removal]) -> str:
    if not removals:
        return f"{name}: no false positive of at least {FEWEST_VOXELS} voxels to remove by a negative click."
    gone = sum(removal.removed for removal in removals)
    return (
        f"{name}: one negative click removed {gone} of {len(removals)} false positives ({gone / len(removals):.0%}); "
        f"removed: at most {MOST_LEFT:.0%} left; of each case the largest {MOST_FALSE_POSITIVES} of at least "
        f"{FEWEST_VOXELS} voxels."
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
