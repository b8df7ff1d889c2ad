"""Compare methods at equal time on the same split: plan, train, measure and click each, one table at the end."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam3dnet.comparison.competitors import SAM_POINTS, Competitor, Settings, find_competitor, planning_options
from sam3dnet.comparison.stages import StageError, Stages, call, machine
from sam3dnet.comparison.table import Row, as_csv, as_markdown, as_values
from sam3dnet.errors import CheckpointError, DatasetError, Sam3dError
from sam3dnet.preprocessing.cases import list_training_cases, read_dataset_json
from sam3dnet.preprocessing.cores import cores_of_job
from sam3dnet.preprocessing.folders import whole_or_nothing, write_json
from sam3dnet.preprocessing.splits import FILE, update_splits

HERE = Path(__file__).resolve().parent
CLOCK_FOLDER = HERE / "clock_trainer"  # nnU-Net imports whatever lies there
NAME = "comparison"

logger = logging.getLogger(__name__)


def compare_methods(
    names: Sequence[str],
    settings: Settings,
    raw_dataset: Path,
    *,
    folds: Sequence[int] = (0,),
    network: str | None = None,
    show: Callable[[str], None] = logger.info,
) -> list[Row]:
    """Run all stages of all methods, those that are finished excepted; the table is written after each method.

    Args:
        names: Methods, see `find_competitor`, and "sam-points".
        settings: What, on what, and for how long; its fold is replaced by each of `folds`.
        raw_dataset: Folder of the dataset in nnU-Net's raw format; it is only read.
        folds: Folds; figures are means over their validation cases.
        network: package.module:Class, for the method "network".
        show: Is given the table after each method.

    Returns:
        A row a method, in the order asked for; one that failed says so in its note.

    Raises:
        PlanError: If there is no such method.
    """
    competitors = {name: None if name == SAM_POINTS else find_competitor(name, network) for name in names}
    stages = Stages(settings.work / "stages", _environment(settings))
    _link_raw_dataset(settings, raw_dataset)
    _write_splits(settings)
    rows: list[Row] = []
    for name, competitor in competitors.items():
        rows.append(_row_of(name, competitor, [replace(settings, fold=fold) for fold in folds], stages))
        _save(rows, settings, folds)
        show(as_markdown(rows))
    return rows


def _row_of(name: str, competitor: Competitor | None, folds: Sequence[Settings], stages: Stages) -> Row:
    try:
        if competitor is None:
            return merge([_points_row(settings, stages) for settings in folds])
        return merge([_trained_row(competitor, settings, stages) for settings in folds])
    except (StageError, CheckpointError) as error:
        logger.error("%s failed: %s", name, error)
        return Row(name, note=f"failed: {str(error).splitlines()[0]}")


def _trained_row(competitor: Competitor, settings: Settings, stages: Stages) -> Row:
    """Plan, train, measure and click one method on one fold."""
    label = competitor.name.replace(":", "_")
    planned = {"dataset": settings.dataset, **_what_is_planned(competitor, settings)}
    stages.run(f"{label}-prepare", planned, competitor.prepare_command(settings))
    label = f"{label}-fold{settings.fold}"
    keys = {**planned, "minutes": settings.minutes, "fold": settings.fold, "device": settings.device}
    fold_folder = competitor.model_folder(settings) / f"fold_{settings.fold}"
    if stages.finished(f"{label}-train", keys) is None and fold_folder.exists():
        shutil.rmtree(fold_folder)  # what an interrupted training left: its time is not known
    trained = stages.run(
        f"{label}-train",
        keys,
        competitor.train_command(settings),
        fold_folder / "checkpoint_final.pth",
        competitor.variables(settings),
    )
    since = {"trained": trained["keys"], "trained_on": trained["machine"]["date"]}
    measured = _measure(competitor, settings, stages, label, since)
    return Row(
        competitor.name,
        automatic=measured["scores"],
        prompted=_click(competitor, settings, stages, label, since),
        tuned_parameters=measured["tuned_parameters"],
        parameters=measured["parameters"],
        peak_mib=(trained["load"]["until_mark"] or trained["load"])["peak_mib"],
        seconds_per_case=measured["seconds_per_case"],
        iterations=measured["iterations"],
        note=f"patch {'x'.join(map(str, measured['patch_size']))}, batch {measured['batch_size']}",
    )


def _what_is_planned(competitor: Competitor, settings: Settings) -> dict[str, Any]:
    """Give all that a method's plan depends on besides the dataset."""
    if competitor.choice is None:
        return {"options": []}
    options = [*planning_options(competitor.choice), *settings.plan_options]
    return {"options": options, "planned_for": settings.device}


def _measure(
    competitor: Competitor, settings: Settings, stages: Stages, label: str, since: Mapping[str, Any]
) -> dict[str, Any]:
    output = stages.folder / f"{label}-measured.json"
    command = call(
        "sam3dnet.comparison.measure:main",
        *map(str, (competitor.model_folder(settings), settings.preprocessed, settings.raw / "labelsTr", output)),
        *("--fold", str(settings.fold), "--device", settings.device, "--timed-cases", str(settings.timed_cases)),
    )
    stages.run(f"{label}-measure", {**since, "cases": settings.timed_cases}, command)
    return json.loads(output.read_text())


def _click(
    competitor: Competitor, settings: Settings, stages: Stages, label: str, since: Mapping[str, Any]
) -> dict[str, Any]:
    """Score a method with clicks; nothing for one that answers none."""
    if not settings.clicks or competitor.choice is None or not competitor.choice.answers_prompts:
        return {}
    output = stages.folder / f"{label}-clicked.json"
    clicks = ",".join(map(str, settings.clicks))
    command = call(
        "sam3dnet.comparison.clicks:main",
        *(str(settings.work), settings.dataset, competitor.plans_name, str(output)),
        *("--clicks", clicks, "--fold", str(settings.fold), "--device", settings.device),
    )
    stages.run(f"{label}-click", {**since, "clicks": clicks}, command)
    return dict(json.loads(output.read_text())["prompted"])


def _points_row(settings: Settings, stages: Stages) -> Row:
    """Segment the validation cases of a fold by SAM with points on every slice."""
    from sam3dnet.comparison.points import ENCODER
    from sam3dnet.network.weights_file import require_sam_weights

    checkpoint = require_sam_weights(ENCODER, settings.sam_checkpoint)
    row = Row(SAM_POINTS, note="official 2D SAM, clicks from the truth in every slice that holds the class")
    for points in settings.clicks or (1,):
        label = f"{SAM_POINTS}-{points}-fold{settings.fold}"
        output = stages.folder / f"{label}.measured.json"
        keys = {"dataset": settings.dataset, "fold": settings.fold, "seed": settings.seed, "sam": str(checkpoint)}
        predictions = settings.work / SAM_POINTS / settings.dataset / f"{points}_points_fold_{settings.fold}"
        command = call(
            "sam3dnet.comparison.points:main",
            *map(str, (settings.raw, settings.preprocessed, predictions, checkpoint, output)),
            *("--points", str(points), "--seed", str(settings.seed)),
            *("--fold", str(settings.fold), "--device", settings.device),
        )
        record = stages.run(label, keys, command)
        measured = json.loads(output.read_text())
        row.prompted[f"{points} point{'' if points == 1 else 's'} a slice"] = measured["scores"]
        row.tuned_parameters, row.parameters = 0, measured["parameters"]
        row.seconds_per_case = measured["seconds_per_case"]
        row.peak_mib = record["load"]["peak_mib"]
    return row


def merge(rows: Sequence[Row]) -> Row:
    """Average the rows of several folds; parameters and note are those of the first."""
    first = rows[0]
    if len(rows) == 1:
        return first
    return replace(
        first,
        automatic=_mean_scores([row.automatic for row in rows]) if first.automatic else None,
        prompted={kind: _mean_scores([row.prompted[kind] for row in rows]) for kind in first.prompted},
        peak_mib=_mean([row.peak_mib for row in rows]),
        seconds_per_case=_mean([row.seconds_per_case for row in rows]),
        iterations=None if first.iterations is None else round(_mean([row.iterations for row in rows])),
    )


def _mean_scores(scores: Sequence[Any]) -> dict[str, dict[str, float]]:
    return {
        name: {metric: _mean([own[name][metric] for own in scores]) for metric in metrics}
        for name, metrics in scores[0].items()
    }


def _mean(values: Sequence[Any]) -> float:
    return sum(values) / len(values)


def _environment(settings: Settings) -> dict[str, str]:
    """Give the environment of all stages: nnU-Net's folders, the time, and as many processes as there are cores."""
    trainer_folders = [CLOCK_FOLDER, HERE.parent / "nnunet_ext"]
    folders = {f"nnUNet_{name}": str(settings.work / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
    return {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": os.pathsep.join(map(str, trainer_folders)),
        "nnUNet_clock_minutes": str(settings.minutes),
        "nnUNet_def_n_proc": str(cores_of_job()),
        "PYTHONUNBUFFERED": "1",
    }


def _link_raw_dataset(settings: Settings, raw_dataset: Path) -> None:
    """Make the raw dataset visible below the work folder."""
    for name in ("raw", "preprocessed", "results"):
        (settings.work / f"nnUNet_{name}").mkdir(parents=True, exist_ok=True)
    if settings.raw.exists() and settings.raw.resolve() != raw_dataset.resolve():
        raise Sam3dError(f"{settings.work} holds a comparison of {settings.raw.resolve()}; choose another --output")
    if not settings.raw.exists():
        settings.raw.symlink_to(raw_dataset.resolve(), target_is_directory=True)


def _write_splits(settings: Settings) -> None:
    """Write the split of all methods before any could write another: nnU-Net's own, of patients where they are known.

    Raises:
        DatasetError: If there are too few cases for folds.
    """
    file = settings.preprocessed / FILE
    if file.exists():
        return
    names = [case.name for case in list_training_cases(settings.raw, read_dataset_json(settings.raw))]
    update_splits(file, names, names)
    if not file.exists():
        raise DatasetError(f"{settings.raw}: has {len(names)} cases, too few for folds; label one more at least")


def _save(rows: Sequence[Row], settings: Settings, folds: Sequence[int]) -> None:
    """Write the table as Markdown, CSV and JSON, whole or not at all."""
    content = {
        "dataset": settings.dataset,
        "minutes": settings.minutes,
        "folds": list(folds),
        "device": settings.device,
        "seed": settings.seed,
        "machine": machine(),
        "methods": [as_values(row) for row in rows],
    }
    write_json(settings.work / f"{NAME}.json", content)
    for ending, text in (("md", as_markdown(rows) + "\n"), ("csv", as_csv(rows))):
        with whole_or_nothing(settings.work / f"{NAME}.{ending}") as temporary:
            temporary.write_text(text)
