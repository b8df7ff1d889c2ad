"""Preprocess a dataset as nnU-Net does, each case whole or not at all, and only what is missing or stale."""

import filecmp
import gzip
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.preprocessing.cases import TrainingCase, image_files, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.folders import LABELS_FOLDER, Folders, is_plain_name, whole_or_nothing
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.reading import DatasetReader, reader_named
from sam3dnet.preprocessing.records import (
    FILE_SUFFIXES,
    RECORDS_FOLDER,
    configuration_of_cases,
    differing_settings,
    is_current,
    list_stored_names,
    make_record,
    maker_of_cases,
    read_record,
    remove_case,
    settings_digest,
    store_record,
)
from sam3dnet.preprocessing.splits import FILE as SPLITS_FILE
from sam3dnet.preprocessing.splits import REMEDY, are_there, read_splits, take_given_splits, update_splits
from sam3dnet.preprocessing.workers import Outcome, Workers, default_num_processes, map_cases

logger = logging.getLogger(__name__)

# A subfolder, so that nnU-Net never takes a file in the making for a case.
_PARTIAL_FOLDER = ".partial"


@dataclass(frozen=True)
class Recipe:
    """How the cases of one configuration are made, and where they go."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    settings: str
    output_folder: Path
    source: str = "the raw dataset"

    @property
    def reader(self) -> DatasetReader:
        """Reads the cases."""
        return reader_named(str(self.plans["image_reader_writer"]), self.dataset_json)


def preprocess_dataset(
    dataset_name: str,
    folders: Folders,
    plans_name: str = "SAM3DPlans",
    configurations: Sequence[str] | None = None,
    num_processes: int | None = None,
    progress: bool = True,
    cluster: Workers | None = None,
) -> None:
    """Preprocess all training cases of a dataset that are missing or stale; the arrays are those of stock nnU-Net.

    Also copies dataset.json and the labels (gt_segmentations), which nnU-Net reads at validation, and removes cases
    that the raw dataset no longer has.

    Args:
        dataset_name: Such as "Dataset501_Hippocampus".
        folders: From `activate_folders`.
        plans_name: Of the plan in the preprocessed folder, without .json.
        configurations: Of the plan; None takes all.
        num_processes: Cases at the same time; 0 works in this process, None takes one a core, 8 at most.
        progress: Show a progress bar.
        cluster: Does the work in place of processes of this machine.

    Raises:
        PlanError: If there is no such plan or configuration.
        DatasetError: If the dataset is missing, a case cannot be preprocessed, or a process was killed. All other
            cases are written then, and a further run goes on with what is missing.
    """
    raw_folder, preprocessed_folder = folders.raw / dataset_name, folders.preprocessed / dataset_name
    plans = _read_plans(preprocessed_folder / f"{plans_name}.json")
    dataset_json = read_dataset_json(raw_folder)
    cases = list_training_cases(raw_folder, dataset_json)
    if not cases:
        raise DatasetError(f"{raw_folder}: no training case with ending {dataset_json['file_ending']!r} in imagesTr")
    recipes = _make_recipes(plans, configurations, dataset_json, preprocessed_folder)
    workers = cluster or (default_num_processes() if num_processes is None else num_processes)
    _copy_if_changed(raw_folder / "dataset.json", preprocessed_folder / "dataset.json")
    take_given_splits(raw_folder, preprocessed_folder / SPLITS_FILE)
    if are_there(preprocessed_folder / SPLITS_FILE):
        read_splits(preprocessed_folder / SPLITS_FILE, DatasetError, REMEDY)  # a damaged one is told before the work
    for recipe in recipes:
        _require_success(_run_recipe(recipe, cases, workers, progress))
    ending, truth = dataset_json["file_ending"], preprocessed_folder / LABELS_FOLDER
    names = [case.name for case in cases]
    known = [file.name.removesuffix(ending) for file in image_files(truth, ending)]
    update_splits(preprocessed_folder / SPLITS_FILE, names, known or names)
    keep_labels(cases, truth, ending, recipes[0].reader)


def preprocess_cases(
    cases: Sequence[TrainingCase],
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    folder: Path,
    num_processes: int | None = None,
) -> dict[str, str]:
    """Preprocess cases that are none of the dataset's as those of one of its configurations; a bad one fails alone.

    Args:
        cases: At least one.
        plans: Content of the plan.
        configuration: Of the plan.
        dataset_json: Of the dataset.
        folder: For the folder of the cases, named as the configuration's; what that holds of others is removed.
        num_processes: As of `preprocess_dataset`.

    Returns:
        Those that could not be preprocessed, by name, and why.

    Raises:
        PlanError: If the plan is damaged.
    """
    (recipe,) = _make_recipes(plans, [configuration], dataset_json, folder)
    workers = default_num_processes() if num_processes is None else num_processes
    outcomes = _run_recipe(replace(recipe, source="the images"), cases, workers, progress=True)
    return {o.item.name: f"{type(o.error).__name__}: {o.error}" for o in outcomes if o.error is not None}


def keep_labels(cases: Sequence[TrainingCase], folder: Path, ending: str, reader: DatasetReader) -> None:
    """Make a folder hold the labels of these cases, and of no others, each with the files that belong to it.

    Args:
        cases: Whose labels are copied, under the cases' names.
        folder: Such as gt_segmentations.
        ending: Of the labels' names.
        reader: Of the dataset.
    """
    for case in cases:
        _keep_label(case.label, folder / f"{case.name}{ending}")
        for companion in reader.format.companions(case.label, is_label=True):
            _copy_if_changed(companion, folder / f"{case.name}{companion.suffix}")
    names = {f"{case.name}{ending}" for case in cases}
    for file in image_files(folder, ending):
        if file.name not in names:
            for lost in (*reader.format.companions(file, is_label=True), file):
                lost.unlink()


def _read_plans(path: Path) -> dict[str, Any]:
    remedy, missing = "delete it and plan again", "make the plan first, with sam3d_plan_and_preprocess"
    plans: dict[str, Any] = read_json(path, PlanError, remedy, missing=missing, nnunet_reads_it=True)
    if not isinstance(plans.get("configurations"), dict):
        raise PlanError(f"{path}: holds no configurations; {remedy}")
    return plans


def _make_recipes(
    plans: dict[str, Any],
    names: Sequence[str] | None,
    dataset_json: dict[str, Any],
    preprocessed_folder: Path,
) -> list[Recipe]:
    """Make one recipe a folder of cases; configurations that share a folder, as in a cascade, share the recipe."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    there_are = list(plans["configurations"])
    unknown = [name for name in names or () if name not in there_are]
    if unknown:
        raise PlanError(
            f"{plans.get('plans_name', 'the plan')}: has no configuration {', '.join(unknown)}; "
            f"it has {', '.join(there_are)}"
        )
    manager = PlansManager(plans)
    recipes: dict[str, Recipe] = {}
    for name in names or there_are:
        configuration = manager.get_configuration(name)
        folder = configuration.data_identifier
        if not is_plain_name(folder):
            raise PlanError(f'configuration {name}: "data_identifier" is {folder!r}, not a folder\'s name; plan again')
        if folder not in recipes:
            maker = maker_of_cases(plans, folder) or name
            settings = settings_digest(plans, configuration_of_cases(plans, maker), dataset_json)
            recipes[folder] = Recipe(plans, maker, dataset_json, settings, preprocessed_folder / folder)
        _require_same_cases(plans, name, recipes[folder].configuration)
    return list(recipes.values())


def _require_same_cases(plans: dict[str, Any], name: str, maker: str) -> None:
    """See that a configuration can be trained on the cases of the one that it shares the folder with."""
    differing = differing_settings(configuration_of_cases(plans, name), configuration_of_cases(plans, maker))
    if differing:
        raise PlanError(
            f"{plans.get('plans_name', 'the plan')}: configuration {name} has another {', '.join(differing)} than "
            f'{maker}, whose cases it shares; give it a "data_identifier" of its own, such as '
            f'"{plans.get("plans_name", "plan")}_{name}"'
        )


def _run_recipe(
    recipe: Recipe, cases: Sequence[TrainingCase], workers: Workers | int, progress: bool
) -> list[Outcome[TrainingCase, bool]]:
    folder = recipe.output_folder
    shutil.rmtree(folder / _PARTIAL_FOLDER, ignore_errors=True)
    for name in (RECORDS_FOLDER, _PARTIAL_FOLDER):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in sorted(list_stored_names(folder) - {case.name for case in cases}):
        logger.info("%s: %s is no longer in %s, and removed", folder.name, name, recipe.source)
        remove_case(folder, name)
    description = f"preprocess {recipe.configuration}"
    try:
        # The folder of unfinished cases was made just now: a worker that sees it sees this very disk.
        folders = [cases[0].label.parent, folder / _PARTIAL_FOLDER]
        outcomes = map_cases(partial(preprocess_case, recipe), cases, workers, description, progress, folders=folders)
    finally:
        shutil.rmtree(folder / _PARTIAL_FOLDER, ignore_errors=True)
    written = sum(bool(outcome.result) for outcome in outcomes)
    if all(outcome.error is None for outcome in outcomes):
        logger.info("%s: %d cases preprocessed, %d kept", folder.name, written, len(outcomes) - written)
    return outcomes


def preprocess_case(recipe: Recipe, case: TrainingCase) -> bool:
    """Preprocess one case, unless it lies there already and is made from the same files by the same plan.

    Returns:
        Whether it had to be made.
    """
    stored = read_record(recipe.output_folder, case.name)
    record = make_record(case, recipe.settings, recipe.reader, stored)
    if is_current(recipe.output_folder, case.name, record):
        if stored and stored.get("seen") != record["seen"]:
            store_record(recipe.output_folder, case.name, record)
        return False
    # A folder of its own: a cluster gives a case to another worker where it only believes that the first has died.
    with tempfile.TemporaryDirectory(dir=recipe.output_folder / _PARTIAL_FOLDER) as unfinished:
        _write_case(recipe, case, Path(unfinished))
        remove_case(recipe.output_folder, case.name)
        # The file by which nnU-Net finds a case comes last, so that a case is seen whole or not at all.
        for suffix in reversed(FILE_SUFFIXES):
            (Path(unfinished) / f"{case.name}{suffix}").replace(recipe.output_folder / f"{case.name}{suffix}")
        store_record(recipe.output_folder, case.name, record)
    return True


def _write_case(recipe: Recipe, case: TrainingCase, folder: Path) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    class Plans(PlansManager):
        """Has cases read by our reader, which is nnU-Net's and keeps what a dataset accepts."""

        def image_reader_writer_class(self) -> DatasetReader:  # called for a reader by nnU-Net's preprocessor
            return recipe.reader

    manager = Plans(recipe.plans)
    configuration = manager.get_configuration(recipe.configuration)
    configuration.preprocessor_class(verbose=False).run_case_save(
        str(folder / case.name),
        [str(image) for image in case.images],
        str(case.label),
        manager,
        configuration,
        recipe.dataset_json,
    )


def _require_success(outcomes: Sequence[Outcome[TrainingCase, bool]]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    lines = "\n".join(f"  case {o.item.name!r}: {type(o.error).__name__}: {o.error}" for o in failed)
    raise DatasetError(
        f"{len(failed)} of {len(outcomes)} cases could not be preprocessed:\n{lines}\n"
        "The others are written; correct these and run again."
    ) from failed[0].error


def _keep_label(source: Path, target: Path) -> None:
    """Copy a label; one of NIfTI is packed or unpacked where the two names say so."""
    packed = source.name.endswith(".gz")
    if packed == target.name.endswith(".gz"):
        _copy_if_changed(source, target)
        return
    with tempfile.TemporaryDirectory() as folder:
        repacked = Path(folder) / target.name
        content = source.read_bytes()
        repacked.write_bytes(gzip.decompress(content) if packed else gzip.compress(content, mtime=0))
        _copy_if_changed(repacked, target)


def _copy_if_changed(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all, unless the same bytes lie there."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(target) as temporary:
        shutil.copyfile(source, temporary)
