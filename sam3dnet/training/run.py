"""Train one fold from Python, with the names of the command line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from sam3dnet.devices import choose_device
from sam3dnet.errors import DatasetError, PlanError, Sam3dError
from sam3dnet.preprocessing.folders import Folders, is_plain_name, remove_partial_files
from sam3dnet.preprocessing.json_files import read_json

VALIDATION_SHARE = 25  # one validation patch batch for so many training batches

logger = logging.getLogger(__name__)


def train_fold(
    dataset_name: str,
    fold: int | Literal["all"],
    folders: Folders,
    *,
    configuration: str = "3d_fullres",
    plans_name: str = "SAM3DPlans",
    epochs: int | None = None,
    minutes: float | None = None,
    iterations_per_epoch: int | None = None,
    continue_training: bool = False,
    device: str | None = None,
    sam_checkpoint: str | Path | None = None,
    from_scratch: bool = False,
    validate: bool = True,
    num_processes: int | None = None,
    tensorboard: bool = False,
    wandb: bool = False,
) -> Path:
    """Train a fold of a planned and preprocessed dataset, then validate it with sliding windows.

    Started by torchrun, all of its processes share the plan's batch.

    Args:
        dataset_name: Full name, such as Dataset501_Hippocampus.
        fold: Number of the fold, or "all" to train on every case.
        folders: nnU-Net's three folders.
        configuration: Configuration of the plan.
        plans_name: Name of the plan.
        epochs: Epochs to train; None: the trainer's default.
        minutes: Wall-clock minutes to train instead; the schedule follows the clock.
        iterations_per_epoch: Iterations in an epoch; None: nnU-Net's 250.
        continue_training: Go on from the newest whole checkpoint.
        device: "cpu", "cuda" or "mps"; None: the best there is.
        sam_checkpoint: SAM's weights: "sam", "medsam", or a file; None: those that the plan was made for.
        from_scratch: Train without SAM's weights, whatever the plan says.
        validate: Whether to predict the validation cases at the end.
        num_processes: Processes that load and augment; 0: none; None: by the number of cores and the device.
        tensorboard: Write event files for TensorBoard into the folder of the fold.
        wandb: Log to Weights & Biases with nnU-Net's logger.

    Returns:
        The folder of the fold.

    Raises:
        PlanError: If the plan, configuration or fold does not exist.
        DatasetError: If the preprocessed cases are missing.
        CheckpointError: If SAM's weights or a checkpoint to continue from are missing or damaged.
    """
    chosen = choose_device(device)
    plans, dataset_json = _read_plan(dataset_name, folders, plans_name)
    _check_configuration(plans, configuration, dataset_name, folders)
    _check_fold(fold, dataset_name, folders)
    if from_scratch:
        plans = without_pretrained_weights(plans)
    if not continue_training:
        _check_weights(plans, configuration, sam_checkpoint)
    _share_cores(chosen.type, num_processes)
    torch.backends.cudnn.benchmark = True  # as nnU-Net's own command: all crops are of one size

    from sam3dnet.training.checkpoint import continue_from_newest
    from sam3dnet.training.distributed import is_first_process, joined_processes
    from sam3dnet.training.first_step import as_fitted_before
    from sam3dnet.training.loggers import TENSORBOARD_FOLDER, TensorBoardLogger, enable_wandb
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D

    model = f"{nnUNetTrainerSAM3D.__name__}__{plans_name}__{configuration}"
    plans = as_fitted_before(plans, configuration, folders.results / dataset_name / model / "plans.json")
    plans["continue_training"] = continue_training
    with joined_processes(chosen) as place, _lost_processes_told():
        if wandb and is_first_process():
            enable_wandb()
        trainer = nnUNetTrainerSAM3D(plans, configuration, fold, dataset_json, place)
        trainer.num_epochs = epochs or trainer.num_epochs
        trainer.minutes = minutes
        trainer.num_iterations_per_epoch = iterations_per_epoch or trainer.num_iterations_per_epoch
        trainer.num_val_iterations_per_epoch = min(50, max(1, trainer.num_iterations_per_epoch // VALIDATION_SHARE))
        trainer.sam_checkpoint = sam_checkpoint
        output = Path(trainer.output_folder)
        if is_first_process():
            remove_partial_files(output)
        if continue_training:
            continue_from_newest(output, trainer.load_checkpoint)
        if tensorboard and is_first_process():
            board = TensorBoardLogger(output / TENSORBOARD_FOLDER, trainer.current_epoch)
            board.update_config({"plans": plans, "configuration": configuration, "fold": fold})
            trainer.logger.loggers.append(board)
        trainer.run_training()
        if validate:
            trainer.perform_actual_validation()
    return output


def validate_fold(
    dataset_name: str,
    fold: int | Literal["all"],
    folders: Folders,
    *,
    configuration: str = "3d_fullres",
    plans_name: str = "SAM3DPlans",
    checkpoint: str | None = None,
    device: str | None = None,
    num_processes: int | None = None,
) -> Path:
    """Validate a trained fold as at the end of its training: predict its validation cases and score them.

    Nothing is trained and no checkpoint is written. Started by torchrun, all of its processes share the cases.

    Args:
        dataset_name: Full name, such as Dataset501_Hippocampus.
        fold: Number of the fold, or "all", whose cases are those that it was trained on.
        folders: nnU-Net's three folders.
        configuration: Configuration of the plan.
        plans_name: Name of the plan.
        checkpoint: "final", "best", "latest" or the name of a file; None for the first of these that there is.
        device: "cpu", "cuda" or "mps"; None: the best there is.
        num_processes: Processes that score; None: by the number of cores.

    Returns:
        The folder of the fold.

    Raises:
        PlanError, DatasetError: As of `train_fold`; PlanError also if the cases were preprocessed by another plan, or
            nnU-Net's own command has to validate this configuration.
        CheckpointError: If the fold has not been trained, or the checkpoint is not there or damaged.
        FailedCasesError: If some cases could not be predicted; the others are scored.
    """
    chosen = choose_device(device)
    plans, dataset_json = _read_plan(dataset_name, folders, plans_name)
    _check_configuration(plans, configuration, dataset_name, folders)
    _check_fold(fold, dataset_name, folders)
    _share_cores(chosen.type, num_processes)

    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from sam3dnet.training.distributed import joined_processes
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D
    from sam3dnet.training.validation import load_trained, validate

    name = f"{nnUNetTrainerSAM3D.__name__}__{plans['plans_name']}__{configuration}"
    with joined_processes(chosen) as place, _lost_processes_told():
        preprocessed_by = PlansManager(plans), configuration, dataset_json
        model = load_trained(folders.results / dataset_name / name, fold, checkpoint, place, preprocessed_by)
        plans["continue_training"] = True  # the record of the training at Weights & Biases goes on
        trainer = nnUNetTrainerSAM3D(plans, configuration, fold, dataset_json, place)
        trainer.print_to_log_file(f"validating {model.checkpoint_files[0]}")
        validate(trainer, model)
    return Path(trainer.output_folder)


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
    plans, dataset_json = (
        read_json(folder / name, PlanError, "delete it and plan again", missing=missing)
        for name in (f"{plans_name}.json", "dataset.json")
    )
    names = [plans.get("plans_name"), *(c.get("data_identifier", "-") for c in plans["configurations"].values())]
    if plans.get("dataset_name") != dataset_name or not all(map(is_plain_name, names)):
        raise PlanError(
            f"{folder / f'{plans_name}.json'}: expected a plan of {dataset_name} whose names lead to no other folder; "
            f"it is of {plans.get('dataset_name')} and has {', '.join(map(str, names))}; plan again"
        )
    return plans, dataset_json


def _check_configuration(plans: dict[str, Any], configuration: str, dataset_name: str, folders: Folders) -> None:
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise PlanError(f"configuration {configuration!r}: the plan of {dataset_name} has {known}; choose one of these")
    identifier = plans["configurations"][configuration].get("data_identifier")
    if identifier and not any((folders.preprocessed / dataset_name / identifier).glob("*.pkl")):
        raise DatasetError(
            f"{folders.preprocessed / dataset_name / identifier} holds no preprocessed case; "
            f"run sam3d_plan_and_preprocess -d {dataset_name} first"
        )


def _check_weights(plans: dict[str, Any], configuration: str, sam_checkpoint: str | Path | None) -> None:
    """Check a file of weights that the user named before anything is built for it."""
    content = plans["configurations"][configuration]
    parent = plans["configurations"].get(content.get("inherits_from"), {})
    arch_kwargs = content.get("architecture", parent.get("architecture", {})).get("arch_kwargs", {})
    if arch_kwargs.get("pretrained") and sam_checkpoint is not None:
        from sam3dnet.network.weights_file import check_named_file

        check_named_file(arch_kwargs["encoder"], sam_checkpoint)


def _check_fold(fold: int | Literal["all"], dataset_name: str, folders: Folders) -> None:
    if fold == "all":
        return
    splits_file = folders.preprocessed / dataset_name / "splits_final.json"
    remedy = "correct it, or delete the file"
    splits = read_json(splits_file, PlanError, remedy, holds=list) if splits_file.is_file() else [{}] * 5
    outside = [case for split in splits for cases in split.values() for case in cases if not is_plain_name(case)]
    if outside:
        raise PlanError(f"{splits_file}: {outside[0]!r} is not the name of a case; {remedy}")
    number_of_folds = len(splits)
    if not (isinstance(fold, int) and 0 <= fold < number_of_folds):
        raise PlanError(
            f'fold {fold}: {dataset_name} has the folds 0 to {number_of_folds - 1}, or "all" to train on every case'
        )


def _share_cores(device: str, num_processes: int | None) -> None:
    """Keep loaders, export and torch from asking for more cores than there are.

    A number asked for wins over the variables that nnU-Net reads, and these over ours.
    """
    if num_processes is not None:
        os.environ.update(nnUNet_n_proc_DA=str(num_processes), nnUNet_def_n_proc=str(max(1, num_processes)))
    cores = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's, of this machine
    # On two cores a loader of its own takes from torch what it gives: 0.31 s a step, 0.26 s with the loader in turn.
    loaders = 0 if device == "cpu" and cores <= 2 else min(12, max(1, cores - 1))
    os.environ.setdefault("nnUNet_n_proc_DA", str(loaders))
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, cores)))
