"""What a training is asked for: the plan, the fold and its cases, and whether they belong together."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from sam3dnet.devices import choose_device
from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.planning.asked import line_to_preprocess
from sam3dnet.planning.plan import load_plan
from sam3dnet.preprocessing.cases import image_files, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.cores import augmentation_processes, cores_of_job
from sam3dnet.preprocessing.folders import LABELS_FOLDER, Folders, find_dataset_name, is_plain_name, parse_fold
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.records import NNUNET, RECORDS_FOLDER, made_otherwise, maker_of_cases
from sam3dnet.preprocessing.splits import (
    REMEDY,
    Split,
    are_there,
    fold_of,
    make_splits,
    read_splits,
    require_fold,
    splits_file,
    take_given_splits,
    update_splits,
)
from sam3dnet.settings.common import OfPlan
from sam3dnet.settings.training import TrainingSettings

TRAINER = "nnUNetTrainerSAM3D"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What settings lead to.

    Attributes:
        fold: Number of the fold, or "all".
        plans: Content of the plan.
        dataset_json: Of the preprocessed dataset.
        device: To compute on.
        model_folder: Of all folds; it may not be there yet.
    """

    fold: int | Literal["all"]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    device: torch.device
    model_folder: Path

    @classmethod
    def of(cls, settings: TrainingSettings, folders: Folders) -> "Asked":
        device = choose_device(settings.device)
        name, fold = find_dataset_name(settings.dataset, folders), parse_fold(settings.fold)
        plans, dataset_json = read_plan(name, folders, settings.plans)
        _check_configuration(plans, settings.configuration, name, folders)
        if fold != "all":
            _splits_with(fold, name, folders, stored_in(plans, settings.configuration), dataset_json)
        share_cores(device.type, settings.num_processes)
        model = f"{TRAINER}__{plans['plans_name']}__{settings.configuration}"
        return cls(fold, plans, dataset_json, device, folders.results / name / model)


def read_plan(dataset_name: str, folders: Folders, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = folders.preprocessed / dataset_name
    missing = f"{dataset_name} has not been planned; run sam3d_plan_and_preprocess -d {dataset_name} first"
    plans = read_json(folder / f"{plans_name}.json", PlanError, "delete it and plan again", missing=missing)
    dataset_json = read_dataset_json(folder, PlanError, missing)
    names = [plans.get("plans_name"), *(c.get("data_identifier", "-") for c in plans["configurations"].values())]
    if plans.get("dataset_name") != dataset_name or not all(map(is_plain_name, names)):
        raise PlanError(
            f"{folder / f'{plans_name}.json'}: expected a plan of {dataset_name} whose names lead to no other folder; "
            f"it is of {plans.get('dataset_name')} and has {', '.join(map(str, names))}; plan again"
        )
    if "sam3d" in plans:
        load_plan(folder / f"{plans_name}.json")  # what was changed by hand may not fit together
    return plans, dataset_json


def _check_configuration(plans: dict[str, Any], configuration: str, dataset_name: str, folders: Folders) -> None:
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise PlanError(f"configuration {configuration!r}: the plan of {dataset_name} has {known}; choose one of these")
    stored = folders.preprocessed / dataset_name / stored_in(plans, configuration)
    if not any(stored.glob("*.pkl")):
        raise DatasetError(f"{stored} holds no preprocessed case; run {_line(plans, configuration)} first")


def _line(plans: dict[str, Any], configuration: str) -> str:
    """Say what to type for the cases of a configuration."""
    return line_to_preprocess(plans, maker_of_cases(plans, stored_in(plans, configuration)) or configuration)


def split_of(asked: Asked, configuration: str, folders: Folders, to_train: bool = True) -> Split | None:
    """Give the split of a fold whose cases are all preprocessed; None for "all", which takes those that are.

    Args:
        asked: The fold and its plan.
        configuration: Whose cases count.
        folders: nnU-Net's three folders.
        to_train: Whether the fold is trained; else the cases that validate are asked for alone.

    Raises:
        PlanError, DatasetError: If the fold cannot be trained or validated; see `fold_of`.
    """
    plans, dataset_name = asked.plans, asked.plans["dataset_name"]
    stored = folders.preprocessed / dataset_name / stored_in(plans, configuration)
    cases, known = stored_cases(stored), cases_of_dataset(dataset_name, folders, asked.dataset_json)
    of_plan = f"for {configuration} of {plans['plans_name']}"
    if asked.fold == "all":
        lacking = sorted(known - {*cases})
        if lacking:
            logger.warning(
                "Warning: %d cases of the dataset are not preprocessed %s, and not used: %s; %s preprocesses them",
                *(len(lacking), of_plan, shorten(lacking), _line(plans, configuration)),
            )
        return None
    splits = _splits_with(asked.fold, dataset_name, folders, stored.name, asked.dataset_json)
    split = splits[asked.fold]
    wanted = {*split.train, *split.val} if to_train else {*split.val}
    lacking = sorted((wanted & known) - {*cases})
    file = splits_file(dataset_name, folders)
    if lacking:
        raise DatasetError(
            f"{file}: {len(lacking)} cases of fold {asked.fold} are in the dataset, but not preprocessed {of_plan}: "
            f"{shorten(lacking)}; run {_line(plans, configuration)}"
        )
    if to_train:
        _tell_changes(splits, {*cases}, known, dataset_name, _line(plans, configuration))
        return fold_of(splits, asked.fold, cases, file)
    # What it was trained on need not be there, nor be named.
    return fold_of(splits, asked.fold, {*cases, *split.train}, file) if split.train else split


def _tell_changes(
    splits: Sequence[Split], cases: Collection[str], known: Collection[str], dataset_name: str, line: str
) -> None:
    """Tell which cases came to a dataset or left it since it was planned.

    Args:
        splits: All folds.
        cases: That are preprocessed.
        known: Of the dataset now.
        dataset_name: Its name.
        line: What to type.
    """
    named = {name for fold in splits for name in (*fold.train, *fold.val)}
    for names, what in (
        (set(known) - set(cases) - named, "are in no fold and not preprocessed, and not used"),
        (named & set(cases) - set(known), "are no longer there, and used as they were"),
    ):
        if names:
            logger.warning(
                "Warning: %d cases of %s %s: %s; %s takes notice",
                *(len(names), dataset_name, what, shorten(sorted(names)), line),
            )


def cases_of_dataset(dataset_name: str, folders: Folders, dataset_json: dict[str, Any]) -> set[str]:
    """Name the cases of a dataset, whatever is preprocessed of them.

    Where the raw dataset cannot be read, these are the labels kept for validation; stock nnU-Net leaves those of cases
    that are gone there.
    """
    raw = _raw_cases(folders.raw / dataset_name)
    if raw:
        return raw
    ending = dataset_json["file_ending"]
    kept = image_files(folders.preprocessed / dataset_name / LABELS_FOLDER, ending)
    return {file.name.removesuffix(ending) for file in kept}


def _raw_cases(raw: Path) -> set[str]:
    """Name the cases of a raw dataset, as far as it is there and sound."""
    try:
        return {case.name for case in list_training_cases(raw, read_dataset_json(raw))}
    except (DatasetError, OSError):
        return set()


def check_makers(
    asked: Asked,
    configuration: str,
    folders: Folders,
    only: Collection[str] | None = None,
    to_train: bool = True,
) -> None:
    """See that the cases were made by this very plan, as far as that is recorded: nnU-Net does not.

    Args:
        asked: The plan.
        configuration: Whose cases they are.
        folders: nnU-Net's three folders.
        only: The cases that count; None for all.
        to_train: Whether they are trained on; else those made by another version of nnU-Net are told alone.

    Raises:
        DatasetError: If they were not.
    """
    plans = asked.plans
    stored = folders.preprocessed / plans["dataset_name"] / stored_in(plans, configuration)
    if not (stored / RECORDS_FOLDER).is_dir():
        return
    by_plan, by_version = (
        [name for name in names if only is None or name in only]
        for names in made_otherwise(stored, plans, configuration, asked.dataset_json)
    )
    if by_plan:
        raise DatasetError(
            f"{stored}: {len(by_plan)} cases were preprocessed by another plan, or for another dataset.json, than "
            f"there is now: {shorten(by_plan)}; run {_line(plans, configuration)}, which keeps what was changed by "
            "hand in the plan"
        )
    if by_version:
        message = (
            f"{stored}: {len(by_version)} cases were preprocessed by another version of nnU-Net than "
            f"{version(NNUNET)}, which is installed: {shorten(by_version)}"
        )
        remedy = f"run {_line(plans, configuration)}, which preprocesses them anew"
        if to_train:
            raise DatasetError(f"{message}; {remedy}")
        logger.warning("Warning: %s; if the scores differ from those of the training, %s", message, remedy)


def check_previous_stage(asked: Asked, settings: TrainingSettings, folders: Folders) -> None:
    """See that the cases of a cascade's second stage have the label maps of the first."""
    plans, name = asked.plans, asked.plans["dataset_name"]
    stage = plans["configurations"][settings.configuration].get("previous_stage")
    if stage is None:
        return
    from sam3dnet.training.next_stage import FOLDER
    from sam3dnet.training.previous_stage import LabelMaps

    file = splits_file(name, folders)
    splits = read_splits(file, PlanError, REMEDY) if are_there(file) else ()
    stored = folders.preprocessed / name / stored_in(plans, settings.configuration)
    names: Collection[str] = stored_cases(stored)
    if asked.fold != "all":
        validated = splits[asked.fold].val
        names = validated if settings.validate_only else (*splits[asked.fold].train, *validated)
    other_plan = "" if settings.plans == OfPlan.plans else f" -p {settings.plans}"
    model = f"{TRAINER}__{plans['plans_name']}__{stage}"
    LabelMaps(
        folders.results / name / model / FOLDER / settings.configuration,
        stored,
        f"sam3d_train {name} FOLD -c {stage}{other_plan}",
        splits,
    ).require(names)


def stored_cases(stored: Path) -> list[str]:
    return [path.stem for path in stored.glob("*.pkl")]


def stored_in(plans: dict[str, Any], configuration: str) -> str:
    """Name the folder of a configuration's preprocessed cases."""
    content = plans["configurations"][configuration]
    parent = plans["configurations"].get(content.get("inherits_from"), {})
    return str(content.get("data_identifier", parent.get("data_identifier", f"{plans['plans_name']}_{configuration}")))


def _splits_with(
    fold: int, dataset_name: str, folders: Folders, data_identifier: str, dataset_json: dict[str, Any]
) -> Sequence[Split]:
    """Read the splits, or make them of all of the dataset's cases, and see that a fold is among them."""
    file = splits_file(dataset_name, folders)
    cases = {*stored_cases(file.parent / data_identifier), *cases_of_dataset(dataset_name, folders, dataset_json)}
    take_given_splits(folders.raw / dataset_name, file)
    splits = read_splits(file, PlanError, REMEDY) if are_there(file) else make_splits(cases)
    require_fold(splits, fold)
    if not are_there(file):
        update_splits(file, cases, cases)
    return splits


def share_cores(device: str, num_processes: int | None) -> None:
    """Keep loaders, export and torch from asking for more cores than there are.

    A number asked for wins over the variables that nnU-Net reads, and these over ours.
    """
    if num_processes is not None:
        os.environ.update(nnUNet_n_proc_DA=str(num_processes), nnUNet_def_n_proc=str(max(1, num_processes)))
    cores = max(1, cores_of_job() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's, of this machine
    os.environ.setdefault("nnUNet_n_proc_DA", str(augmentation_processes(device, cores)))
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, cores)))


@contextmanager
def model_to_start_from(asked: Asked, settings: TrainingSettings, folders: Folders) -> Iterator[Path]:
    """Give the folder of the model that is named; what is unpacked or fetched for it goes when the block ends."""
    from sam3dnet.portable.sources import model_folder, source_to_start_from

    named, plans_name = str(settings.from_model), asked.plans["plans_name"]
    source = source_to_start_from(named, folders.results, settings.configuration, plans_name)
    with model_folder(source, settings.root, settings.configuration) as folder:
        yield folder


def require_one_stage(plans: dict[str, Any], configuration: str) -> None:
    """See that images without labels can be trained on: by all but the second stage of a cascade.

    Raises:
        PlanError: If they cannot.
    """
    if plans["configurations"][configuration].get("previous_stage") is not None:
        raise PlanError(
            f"--unlabelled: {configuration} is the second stage of a cascade, which trains on the dataset's cases "
            "alone; give it to the training of the first stage, or leave it out"
        )
