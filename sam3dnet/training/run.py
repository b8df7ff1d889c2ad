"""Train one fold from Python, with the names of the command line."""

import gc
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sam3dnet.devices import choose_device
from sam3dnet.errors import DatasetError, PlanError, Sam3dError
from sam3dnet.planning.asked import line_to_preprocess
from sam3dnet.planning.plan import load_plan
from sam3dnet.preprocessing.cases import TrainingCase, image_files, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.cores import augmentation_processes, cores_of_job
from sam3dnet.preprocessing.folders import (
    LABELS_FOLDER,
    Folders,
    find_dataset_name,
    is_plain_name,
    parse_fold,
    remove_partial_files,
)
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.records import (
    NNUNET,
    RECORDS_FOLDER,
    made_otherwise,
    maker_of_cases,
)
from sam3dnet.preprocessing.splits import (
    REMEDY,
    Split,
    fold_of,
    make_splits,
    read_splits,
    require_fold,
    splits_file,
    update_splits,
)
from sam3dnet.settings.common import OfPlan
from sam3dnet.settings.prediction import PredictionSettings
from sam3dnet.settings.training import TrainingSettings

if TYPE_CHECKING:
    from sam3dnet.training.pseudo_labels import PseudoLabels
    from sam3dnet.training.starting import StartingPoint
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D

TRAINER = "nnUNetTrainerSAM3D"
VALIDATION_SHARE = 25  # one validation patch batch for so many training batches

logger = logging.getLogger(__name__)


def train_fold(
    settings: TrainingSettings,
    folders: Folders,
    validate: bool = True,
    pseudo_labelled: Sequence[TrainingCase] = (),
) -> Path:
    """Train a fold of a planned and preprocessed dataset, then validate it with sliding windows.

    Args:
        settings: What is asked for.
        folders: nnU-Net's three folders.
        validate: Whether to predict the validation cases at the end.
        pseudo_labelled: Images that the dataset does not have, with what a model has found in them, to train on too.

    Returns:
        The folder of the fold.

    Raises:
        PlanError: If the plan, configuration or fold does not exist, or cannot be trained on images without labels.
        DatasetError: If the dataset or its preprocessed cases are missing, or images without labels are of no use.
        CheckpointError: If SAM's weights or a checkpoint to continue from are missing or damaged, or that has been
            trained on cases that validate now.
    """
    asked = _Asked.of(settings, folders)
    split = _split_of(asked, settings.configuration, folders)
    _check_makers(asked, settings.configuration, folders)
    _check_previous_stage(asked, settings, folders)
    if settings.unlabelled or pseudo_labelled:
        _require_one_stage(asked.plans, settings.configuration)
    plans = without_pretrained_weights(asked.plans) if settings.from_scratch else asked.plans
    if not settings.continue_training:
        _check_weights(plans, settings.configuration, settings.sam_checkpoint)
    torch.backends.cudnn.benchmark = True  # as nnU-Net's own command: all crops are of one size

    from sam3dnet.training.checkpoint import continue_from_newest
    from sam3dnet.training.distributed import is_first_process, joined_processes
    from sam3dnet.training.first_step import as_fitted_before
    from sam3dnet.training.loggers import TENSORBOARD_FOLDER, TensorBoardLogger, enable_wandb
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D

    starting_point = _starting_point(asked, settings, folders, split)
    plans = as_fitted_before(plans, settings.configuration, asked.model_folder / "plans.json")
    plans["continue_training"] = settings.continue_training
    labels = _pseudo_labels(asked, settings, folders)
    with (
        joined_processes(asked.device) as place,
        _lost_processes_told(),
        _pseudo_labelled(labels, asked, settings, folders, starting_point, pseudo_labelled, split) as further,
        ExitStack() as until_the_end,
    ):
        if settings.wandb and is_first_process():
            enable_wandb()
        trainer = nnUNetTrainerSAM3D(plans, settings.configuration, asked.fold, asked.dataset_json, place)
        _set_length(trainer, settings)
        trainer.sam_checkpoint = settings.sam_checkpoint
        trainer.starting_point = starting_point
        trainer.pseudo_labelled = further
        output = Path(trainer.output_folder)
        if is_first_process():
            remove_partial_files(output)
        if settings.continue_training:
            continue_from_newest(output, trainer.load_checkpoint)
            if not trainer.had_ended():
                until_the_end.enter_context(_as_it_began(labels, trainer.pseudo_labelled))
        if settings.tensorboard and is_first_process():
            board = TensorBoardLogger(output / TENSORBOARD_FOLDER, trainer.current_epoch)
            board.update_config({"plans": plans, "configuration": settings.configuration, "fold": asked.fold})
            trainer.logger.loggers.append(board)
        trainer.run_training()
        if validate:
            trainer.perform_actual_validation(settings.save_probabilities)
    return output


def _set_length(trainer: "nnUNetTrainerSAM3D", settings: TrainingSettings) -> None:
    if settings.epochs is not None:
        trainer.num_epochs = settings.epochs
    trainer.minutes = settings.minutes
    if settings.iterations_per_epoch is not None:
        trainer.num_iterations_per_epoch = settings.iterations_per_epoch
    trainer.num_val_iterations_per_epoch = min(50, max(1, trainer.num_iterations_per_epoch // VALIDATION_SHARE))


def validate_fold(settings: TrainingSettings, folders: Folders) -> Path:
    """Validate a trained fold as at the end of its training: predict its validation cases and score them.

    Nothing is trained and no checkpoint is written. Started by torchrun, all of its processes share the cases.

    Args:
        settings: What is asked for.
        folders: nnU-Net's three folders.

    Returns:
        The folder of the fold.

    Raises:
        PlanError, DatasetError: As of `train_fold`; PlanError also if the cases were preprocessed by another plan, or
            nnU-Net's own command has to validate this configuration.
        CheckpointError: If the fold has not been trained, or was trained on cases that it validates on now, or the
            checkpoint is not there or damaged.
        FailedCasesError: If some cases could not be predicted; the others are scored.
    """
    asked = _Asked.of(settings, folders)
    split = _split_of(asked, settings.configuration, folders, to_train=False)
    _check_previous_stage(asked, settings, folders)

    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from sam3dnet.training.distributed import joined_processes
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D
    from sam3dnet.training.validation import load_trained, validate

    plans, dataset_json = asked.plans, asked.dataset_json
    with joined_processes(asked.device) as place, _lost_processes_told():
        preprocessed_by = PlansManager(plans), settings.configuration, dataset_json
        model = load_trained(asked.model_folder, asked.fold, settings.checkpoint, place, preprocessed_by)
        _check_makers(asked, settings.configuration, folders, None if split is None else split.val, to_train=False)
        plans["continue_training"] = True  # the record of the training at Weights & Biases goes on
        trainer = nnUNetTrainerSAM3D(plans, settings.configuration, asked.fold, dataset_json, place)
        trainer.print_to_log_file(f"validating {model.checkpoint_files[0]}")
        validate(trainer, model, settings.save_probabilities)
    return Path(trainer.output_folder)


@dataclass(frozen=True)
class _Asked:
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
    def of(cls, settings: TrainingSettings, folders: Folders) -> "_Asked":
        device = choose_device(settings.device)
        name, fold = find_dataset_name(settings.dataset, folders), parse_fold(settings.fold)
        plans, dataset_json = _read_plan(name, folders, settings.plans)
        _check_configuration(plans, settings.configuration, name, folders)
        if fold != "all":
            _splits_with(fold, name, folders, _stored_in(plans, settings.configuration), dataset_json)
        _share_cores(device.type, settings.num_processes)
        model = f"{TRAINER}__{plans['plans_name']}__{settings.configuration}"
        return cls(fold, plans, dataset_json, device, folders.results / name / model)


@contextmanager
def _lost_processes_told() -> Iterator[None]:
    """Say what it means where nnU-Net says no more than that its background workers are no longer alive."""
    try:
        yield
    except RuntimeError as error:
        if "background workers" not in str(error):
            raise
        raise Sam3dError(
            "a process that loads or exports images has ended: by an error that stands above, or killed by the system, "
            "most often because memory ran out; go on with --continue, if need be with fewer processes (--workers 1)"
        ) from error


def without_pretrained_weights(plans: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a plan whose networks start at random and are trained whole."""
    changed = {**plans, "configurations": {}}
    for name, configuration in plans["configurations"].items():
        copy = dict(configuration)
        if "architecture" in copy:
            arch_kwargs = {**copy["architecture"]["arch_kwargs"], "pretrained": False}
            copy["architecture"] = {**copy["architecture"], "arch_kwargs": arch_kwargs}
        changed["configurations"][name] = copy
    return changed


def _read_plan(dataset_name: str, folders: Folders, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
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
    stored = folders.preprocessed / dataset_name / _stored_in(plans, configuration)
    if not any(stored.glob("*.pkl")):
        raise DatasetError(f"{stored} holds no preprocessed case; run {_line(plans, configuration)} first")


def _line(plans: dict[str, Any], configuration: str) -> str:
    """Say what to type for the cases of a configuration."""
    return line_to_preprocess(plans, maker_of_cases(plans, _stored_in(plans, configuration)) or configuration)


def _split_of(asked: _Asked, configuration: str, folders: Folders, to_train: bool = True) -> Split | None:
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
    stored = folders.preprocessed / dataset_name / _stored_in(plans, configuration)
    cases, known = _stored_cases(stored), _cases_of_dataset(dataset_name, folders, asked.dataset_json)
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
        return fold_of(splits, asked.fold, cases, file)
    # What it was trained on need not be there, nor be named.
    return fold_of(splits, asked.fold, {*cases, *split.train}, file) if split.train else split


def _cases_of_dataset(dataset_name: str, folders: Folders, dataset_json: dict[str, Any]) -> set[str]:
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


def _check_makers(
    asked: _Asked,
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
    stored = folders.preprocessed / plans["dataset_name"] / _stored_in(plans, configuration)
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


def _check_previous_stage(asked: _Asked, settings: TrainingSettings, folders: Folders) -> None:
    """See that the cases of a cascade's second stage have the label maps of the first."""
    plans, name = asked.plans, asked.plans["dataset_name"]
    stage = plans["configurations"][settings.configuration].get("previous_stage")
    if stage is None:
        return
    from sam3dnet.training.next_stage import FOLDER
    from sam3dnet.training.previous_stage import LabelMaps

    file = splits_file(name, folders)
    splits = read_splits(file, PlanError, REMEDY) if file.is_file() else ()
    stored = folders.preprocessed / name / _stored_in(plans, settings.configuration)
    names: Collection[str] = _stored_cases(stored)
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


def _stored_cases(stored: Path) -> list[str]:
    return [path.stem for path in stored.glob("*.pkl")]


def _stored_in(plans: dict[str, Any], configuration: str) -> str:
    """Name the folder of a configuration's preprocessed cases."""
    content = plans["configurations"][configuration]
    parent = plans["configurations"].get(content.get("inherits_from"), {})
    return str(content.get("data_identifier", parent.get("data_identifier", f"{plans['plans_name']}_{configuration}")))


@contextmanager
def _model_to_start_from(asked: _Asked, settings: TrainingSettings, folders: Folders) -> Iterator[Path]:
    """Give the folder of the model that is named; what is unpacked or fetched for it goes when the block ends."""
    from sam3dnet.inference.models import find_model_to_start_from
    from sam3dnet.portable.hub import is_on_hub
    from sam3dnet.portable.sources import model_folder

    source: str | Path = str(settings.from_model)
    if not is_on_hub(source) and not Path(source).expanduser().exists():
        plans_name = asked.plans["plans_name"]
        source = find_model_to_start_from(folders.results, str(source), settings.configuration, plans_name)
    with model_folder(source, settings.root, settings.configuration) as folder:
        yield folder


def _require_one_stage(plans: dict[str, Any], configuration: str) -> None:
    if plans["configurations"][configuration].get("previous_stage") is not None:
        raise PlanError(
            f"--unlabelled: {configuration} is the second stage of a cascade, which trains on the dataset's cases "
            "alone; give it to the training of the first stage, or leave it out"
        )


def _pseudo_labels(asked: _Asked, settings: TrainingSettings, folders: Folders) -> "PseudoLabels":
    from sam3dnet.training.pseudo_labels import PseudoLabels

    folder = folders.preprocessed / asked.plans["dataset_name"]
    return PseudoLabels(asked.plans, settings.configuration, asked.dataset_json, folder, asked.fold)


@contextmanager
def _pseudo_labelled(
    labels: "PseudoLabels",
    asked: _Asked,
    settings: TrainingSettings,
    folders: Folders,
    start: "StartingPoint | None",
    given: Sequence[TrainingCase],
    split: Split | None,
) -> Iterator[dict[str, str]]:
    """Preprocess what is trained on beside the dataset's cases, labelled first where it is not yet.

    Until the block ends no other training changes it.

    Yields:
        Of each case by what it is known again.
    """
    if not settings.unlabelled and not given:
        yield {}
        return
    from sam3dnet.inference.economy import release_cached
    from sam3dnet.training.distributed import is_first_process, unhurried_meetings

    with unhurried_meetings() as meet, labels.alone(meet):
        if start is not None and settings.unlabelled:
            given = _labelled_by(start, labels, asked, settings, folders, split, meet)
        stored: dict[str, str] = meet(labels.store(given, settings.num_processes) if is_first_process() else {})[0]
        gc.collect()  # what labelled them is in a circle
        release_cached(asked.device)
        if settings.unlabelled and not stored:
            raise DatasetError(f"--unlabelled: no image of {settings.unlabelled} could be preprocessed; see above")
        yield stored


def _labelled_by(
    start: "StartingPoint",
    labels: "PseudoLabels",
    asked: _Asked,
    settings: TrainingSettings,
    folders: Folders,
    split: Split | None,
    meet: Callable[[Any], list[Any]],
) -> list[TrainingCase]:
    """Have the model that the training starts from label the images."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from sam3dnet.training.starting import kind_of_network

    start.require_kin(kind_of_network(PlansManager(asked.plans).get_configuration(settings.configuration)))
    name = asked.plans["dataset_name"]
    known = {
        *_cases_of_dataset(name, folders, asked.dataset_json),
        *_stored_cases(folders.preprocessed / name / _stored_in(asked.plans, settings.configuration)),
        *(() if split is None else (*split.train, *split.val)),
    }
    with _model_to_start_from(asked, settings, folders) as model:
        labelling = PredictionSettings(
            input_folder=Path(str(settings.unlabelled)).expanduser(),
            output_folder=labels.folder,
            model_folder=model,
            folds=[start.fold],
            checkpoint=start.file.name,
            device=settings.device,
        )
        return labels.label(labelling, name, known, () if split is None else split.val, meet)


@contextmanager
def _as_it_began(labels: "PseudoLabels", pseudo_labelled: Mapping[str, str]) -> Iterator[None]:
    """See that a training goes on with the same cases, and let no other one change them until the block ends."""
    if not pseudo_labelled:
        yield
        return
    from sam3dnet.training.distributed import unhurried_meetings

    with unhurried_meetings() as meet, labels.alone(meet):
        labels.require(pseudo_labelled)
        yield


def _starting_point(
    asked: _Asked, settings: TrainingSettings, folders: Folders, split: Split | None
) -> "StartingPoint | None":
    """Read the model to start from."""
    if settings.from_model is None:
        return None
    from sam3dnet.training.starting import read_starting_point

    validating = set() if split is None else set(split.val) - split.in_both
    with _model_to_start_from(asked, settings, folders) as folder:
        own = asked.model_folder / f"fold_{asked.fold}"
        return read_starting_point(folder, asked.fold, asked.plans["dataset_name"], validating, own)


def _check_weights(plans: dict[str, Any], configuration: str, sam_checkpoint: str | Path | None) -> None:
    """Check a file of weights that the user named before anything is built for it."""
    content = plans["configurations"][configuration]
    parent = plans["configurations"].get(content.get("inherits_from"), {})
    arch_kwargs = content.get("architecture", parent.get("architecture", {})).get("arch_kwargs", {})
    if arch_kwargs.get("pretrained") and sam_checkpoint is not None:
        from sam3dnet.network.weights_file import check_named_file

        check_named_file(arch_kwargs["encoder"], sam_checkpoint)


def _splits_with(
    fold: int, dataset_name: str, folders: Folders, stored_in: str, dataset_json: dict[str, Any]
) -> Sequence[Split]:
    """Read the splits, or make them of all of the dataset's cases, and see that a fold is among them."""
    file = splits_file(dataset_name, folders)
    cases = {*_stored_cases(file.parent / stored_in), *_cases_of_dataset(dataset_name, folders, dataset_json)}
    splits = read_splits(file, PlanError, REMEDY) if file.is_file() else make_splits(cases)
    require_fold(splits, fold)
    if not file.is_file():
        update_splits(file, cases, cases)
    return splits


def _share_cores(device: str, num_processes: int | None) -> None:
    """Keep loaders, export and torch from asking for more cores than there are.

    A number asked for wins over the variables that nnU-Net reads, and these over ours.
    """
    if num_processes is not None:
        os.environ.update(nnUNet_n_proc_DA=str(num_processes), nnUNet_def_n_proc=str(max(1, num_processes)))
    cores = max(1, cores_of_job() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's, of this machine
    os.environ.setdefault("nnUNet_n_proc_DA", str(augmentation_processes(device, cores)))
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, cores)))
