"""The best of a dataset's models and ensembles by cross-validation, and post-processing, by nnU-Net's functions."""

import logging
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.evaluation.crossvalidation import CrossValidation, Scored, faults_of, lacks_probabilities
from sam3dnet.evaluation.inference_instructions import inference_information, instructions, is_ours_to_predict
from sam3dnet.inference.postprocessing import Postprocessing, choose_min_volumes, write_postprocessing
from sam3dnet.inference.small_objects import MinVolume, measure_objects
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.cores import cores_of_job
from sam3dnet.preprocessing.folders import LABELS_FOLDER, Folders, find_dataset_name, parse_fold, write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.splits import OF_PLANNING, Split, read_splits, require_fold, splits_file
from sam3dnet.settings.find_best import OUR_TRAINER, FindBestSettings
from sam3dnet.training.validation import BYTES_A_SCORED_VOXEL, SUMMARY, scoring_processes

INFORMATION, INSTRUCTIONS = "inference_information.json", "inference_instructions.txt"  # nnU-Net's names
FOREGROUND = "foreground_mean"
BYTES_A_PROBABILITY = 12  # of the mean, of what is added, and of a copy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        best: The best model or ensemble.
        scored: All, models first.
        postprocessing: What improves the best one.
        text: Scores, and how to predict.
    """

    best: Scored
    scored: tuple[Scored, ...]
    postprocessing: Postprocessing
    text: str


def find_best(settings: FindBestSettings, folders: Folders) -> Found:
    """Find the best model or ensemble of two, choose post-processing, and say how to predict.

    Writes what nnU-Net writes: crossval_results folders below the models, "ensembles" beside them, both with
    postprocessing.json, inference_information.json and inference_instructions.txt. Post-processing of every model is
    stored beside it too, for `sam3d_predict`.

    Args:
        settings: What is asked for.
        folders: nnU-Net's three folders.

    Raises:
        DatasetError: If there is no model with all folds, or no truth.
        PlanError: If a fold is asked for that there is not, or a model's plan is damaged.
    """
    name = find_dataset_name(settings.dataset, folders)
    splits = _splits(name, folders, settings.folds)
    truth = _truth(name, folders)
    models = _whole_models(settings, folders.results / name, splits, truth)
    scored = [_score(model, settings.num_processes) for model in models]
    if not settings.no_ensembling:
        scored += [_score_ensemble(pair, truth, settings.num_processes) for pair in _pairs(models)]
    best = max(scored, key=lambda one: -1.0 if math.isnan(one.dice) else one.dice)  # of equal ones the first
    decided = {
        one.name: _decide(one, truth, settings.num_processes, one is best) for one in scored if _counts(one, best)
    }
    return _tell(settings, folders.results / name, best, scored, decided)


def _splits(name: str, folders: Folders, asked: Sequence[str | int] | None) -> Mapping[int, Split]:
    splits = read_splits(splits_file(name, folders), PlanError, OF_PLANNING)
    folds = list(range(len(splits))) if asked is None else sorted({_number(fold) for fold in asked})
    for fold in folds:
        require_fold(splits, fold)
    return {fold: splits[fold] for fold in folds}


def _number(fold: str | int) -> int:
    parsed = parse_fold(fold)
    if parsed == "all":
        raise PlanError('fold "all" validates on cases that it has seen; choose numbered folds with -f')
    return parsed


def _truth(name: str, folders: Folders) -> Path:
    """Find the true label maps, where nnU-Net looks for them."""
    places = folders.preprocessed / name / LABELS_FOLDER, folders.raw / name / "labelsTr"
    for place in places:
        if place.is_dir():
            return place
    raise DatasetError(f"{' and '.join(map(str, places))} are not there; expected the true label maps; put them back")


def _whole_models(
    settings: FindBestSettings, results: Path, splits: Mapping[int, Split], truth: Path
) -> list[CrossValidation]:
    """List the models that were validated on all folds; say what the others lack."""
    whole, lacking = [], []
    for model in _models(settings, results, splits):
        faults = faults_of(model, truth)
        lacking += [f"{model.folder.name}: {fault}" for fault in faults]
        if not faults:
            whole.append(model)
    if not whole:
        folds = " ".join(map(str, splits))
        lines = "\n".join(f"    {fault}" for fault in lacking)
        raise DatasetError(
            f"no model of {results.name} was validated on all of the folds {folds}; type what is missing, or choose "
            f"fewer folds with -f\n{lines}"
        )
    for fault in lacking:
        logger.warning("Warning: left out %s", fault)
    return whole


def _models(settings: FindBestSettings, results: Path, splits: Mapping[int, Split]) -> list[CrossValidation]:
    """List the models that are asked for."""
    found = sorted(file.parent for file in results.glob("*__*__*/plans.json") if file.parent.name.count("__") == 2)
    root = None if settings.root is None else str(settings.root)
    models = [CrossValidation(folder, splits, root) for folder in found]
    chosen = [
        one
        for one in models
        if one.trainer in (settings.trainers or [OUR_TRAINER])
        and (not settings.plans or one.plans_name in settings.plans)
        and (not settings.configurations or one.configuration in settings.configurations)
    ]
    if not chosen:
        there = f"there are {', '.join(one.folder.name for one in models)}" if models else "there is none"
        raise DatasetError(
            f"{results}: expected trained models, TRAINER__PLANS__CONFIGURATION; {there}; train first, or choose with "
            "-tr, -p and -c"
        )
    return chosen


def _pairs(models: Sequence[CrossValidation]) -> Iterator[tuple[CrossValidation, CrossValidation]]:
    """Yield the pairs whose probabilities can be averaged; say what is lacking for others."""
    lacking = {model.folder: lacks_probabilities(model) for model in models} if len(models) > 1 else {}
    for model in models:
        if lacking.get(model.folder):
            line = model.lines(lacking[model.folder], validate=True, probabilities=True)
            logger.warning("Warning: no ensembles with %s, it lacks probabilities; type: %s", model.folder.name, line)
    for pair in combinations(models, 2):
        if any(lacking[model.folder] for model in pair):
            continue
        if pair[0].classes == pair[1].classes:
            yield pair
        else:
            names = " and ".join(model.folder.name for model in pair)
            logger.warning("Warning: no ensemble of %s: they have other classes or files than each other", names)


def _score(model: CrossValidation, num_processes: int | None) -> Scored:
    from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
    from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

    merged = model.folder / f"crossval_results_folds_{folds_tuple_to_string(model.folds)}"
    accumulate_cv_results(str(model.folder), str(merged), model.folds, _processes(model, num_processes))
    return Scored(model.folder.name, (model,), merged, _dice(merged))


def _score_ensemble(pair: tuple[CrossValidation, CrossValidation], truth: Path, num_processes: int | None) -> Scored:
    from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.utilities.file_path_utilities import get_ensemble_name

    first, (one, other) = pair[0], [str(model.folder) for model in pair]
    name = get_ensemble_name(one, other, first.folds)
    merged = first.folder.parent / "ensembles" / name
    shutil.rmtree(merged, ignore_errors=True)  # of cases that are no longer there, too
    channels = first.label_manager.num_segmentation_heads
    ensemble_crossvalidations([one, other], str(merged), first.folds, _processes(first, num_processes, channels))
    labels = first.label_manager
    compute_metrics_on_folder(
        str(truth),
        str(merged),
        str(merged / SUMMARY),
        first.reader.nnunet,
        first.dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        _processes(first, num_processes),
    )
    return Scored(name, pair, merged, _dice(merged))


def _processes(model: CrossValidation, asked: int | None, channels: int = 0) -> int:
    """Choose processes for scoring, or for averaging probabilities of so many channels: each takes seconds to start."""
    if asked is not None:
        return max(1, asked)
    label_maps = list(model.all_label_maps())
    bytes_a_voxel = max(BYTES_A_SCORED_VOXEL, BYTES_A_PROBABILITY * channels)
    return min(cores_of_job(), len(label_maps), scoring_processes(label_maps, model.reader, bytes_a_voxel))


def _dice(folder: Path) -> float:
    summary = read_json(folder / SUMMARY, DatasetError, "run the command again")
    return float(summary[FOREGROUND]["Dice"])


def _counts(one: Scored, best: Scored) -> bool:
    """Tell whether post-processing is chosen: for each model, and for the best ensemble alone."""
    return len(one.members) == 1 or one is best


def _decide(one: Scored, truth: Path, num_processes: int | None, keep_files: bool) -> Postprocessing:
    """Have nnU-Net choose post-processing, and store it beside a model."""
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    first = one.members[0]
    logger.info("post-processing of %s:", one.name)
    functions, arguments = determine_postprocessing(
        str(one.folder),
        str(truth),
        first.plans,
        first.dataset_json,
        _processes(first, num_processes),
        keep_postprocessed_files=keep_files,
    )
    kept = tuple(map(_step, functions, arguments))
    decided = Postprocessing(kept, _small_objects(one, truth, kept))
    if len(one.members) == 1:
        before, after = (None if math.isnan(dice) else dice for dice in (one.dice, dice_after(one.folder)))
        why = {"folds": list(first.folds), "dice_before": before, "dice_after": after}
        write_postprocessing(first.folder, decided, first.dataset_json, why)
    return decided


def _small_objects(one: Scored, truth: Path, kept: Collection[tuple[int, ...]]) -> tuple[MinVolume, ...]:
    """Choose up to which volume objects of further classes go, of a model that `sam3d_predict` predicts with."""
    first, ending = one.members[0], one.members[0].dataset_json["file_ending"]
    if len(one.members) > 1 or not is_ours_to_predict(first):
        return ()
    pairs = [(file, truth / file.name) for file in sorted(one.folder.glob(f"*{ending}"))]
    classes = foreground_classes(first.dataset_json)
    return choose_min_volumes(measure_objects(pairs, classes, kept, first.reader, first.label_manager.ignore_label))


def _step(function: Any, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Read the labels of one step of nnU-Net's: of one class, of a region, or of several of these."""
    assert function.__name__ == "remove_all_but_largest_component_from_segmentation", "a step that sam3dnet knows not"
    given = arguments["labels_or_regions"]
    found: list[int] = []
    for one in given if isinstance(given, list) else [given]:
        found += [int(label) for label in one] if isinstance(one, tuple) else [int(one)]
    return tuple(found)


def dice_after(folder: Path) -> float:
    """Read the mean Dice after post-processing from what nnU-Net wrote."""
    content = read_json(folder / "postprocessing.json", DatasetError, "run the command again")
    return float(content["postprocessed"][FOREGROUND]["Dice"])


def _tell(
    settings: FindBestSettings,
    results: Path,
    best: Scored,
    scored: Sequence[Scored],
    decided: Mapping[str, Postprocessing],
) -> Found:
    """Write nnU-Net's two files, and the text to print."""
    after = dice_after(best.folder)
    write_json(results / INFORMATION, inference_information(scored, best, after, not settings.no_ensembling))
    what = decided[best.name].in_words(best.members[0].dataset_json)
    lines = instructions(best, what)
    (results / INSTRUCTIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = [f"  {one.dice:.4f}  {one.name}" for one in sorted(scored, key=lambda one: one is not best)]
    kept = Postprocessing(decided[best.name].keep_largest).in_words(best.members[0].dataset_json)
    small = Postprocessing(min_volumes=decided[best.name].min_volumes).in_words(best.members[0].dataset_json)
    effects = [f"{kept}: mean Dice {best.dice:.4f} -> {after:.4f}"] if kept else []
    effect = ", then ".join([*effects, *([small] if small else [])]) or "none: taking out components did not help"
    head = [
        f"Mean Dice in cross-validation on folds {' '.join(map(str, best.members[0].folds))}, the best first:",
        *table,
    ]
    text = "\n".join([*head, f"Post-processing of the best: {effect}", "", *lines])
    return Found(best, tuple(scored), decided[best.name], text)
