"""Train one fold from Python, with the names of the command line."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sam3dnet.errors import Sam3dError
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.folders import Folders, remove_partial_files
from sam3dnet.preprocessing.splits import Split
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training.asked import (
    Asked,
    check_makers,
    check_previous_stage,
    model_to_start_from,
    require_one_stage,
    split_of,
)

if TYPE_CHECKING:
    from sam3dnet.training.starting import StartingPoint
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D

VALIDATION_SHARE = 25  # one validation patch batch for so many training batches


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
    asked = Asked.of(settings, folders)
    split = split_of(asked, settings.configuration, folders)
    check_makers(asked, settings.configuration, folders)
    check_previous_stage(asked, settings, folders)
    if settings.unlabelled or pseudo_labelled:
        require_one_stage(asked.plans, settings.configuration)
    plans = without_pretrained_weights(asked.plans) if settings.from_scratch else asked.plans
    if not settings.continue_training:
        _check_weights(plans, settings.configuration, settings.sam_checkpoint)
    torch.backends.cudnn.benchmark = True  # as nnU-Net's own command: all crops are of one size

    from sam3dnet.training.checkpoint import continue_from_newest
    from sam3dnet.training.distributed import is_first_process, joined_processes
    from sam3dnet.training.first_step import as_fitted_before
    from sam3dnet.training.loggers import TENSORBOARD_FOLDER, TensorBoardLogger, enable_wandb
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D
    from sam3dnet.training.unlabelled import as_it_began, pseudo_labelled_by, pseudo_labels_of

    starting_point = _starting_point(asked, settings, folders, split)
    plans = as_fitted_before(plans, settings.configuration, asked.model_folder / "plans.json")
    plans["continue_training"] = settings.continue_training
    labels = pseudo_labels_of(asked, settings, folders)
    with (
        joined_processes(asked.device) as place,
        _lost_processes_told(),
        pseudo_labelled_by(labels, asked, settings, folders, starting_point, pseudo_labelled, split) as further,
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
                until_the_end.enter_context(as_it_began(labels, trainer.pseudo_labelled))
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
    asked = Asked.of(settings, folders)
    split = split_of(asked, settings.configuration, folders, to_train=False)
    check_previous_stage(asked, settings, folders)

    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from sam3dnet.training.distributed import joined_processes
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D
    from sam3dnet.training.validation import load_trained, validate

    plans, dataset_json = asked.plans, asked.dataset_json
    with joined_processes(asked.device) as place, _lost_processes_told():
        preprocessed_by = PlansManager(plans), settings.configuration, dataset_json
        model = load_trained(asked.model_folder, asked.fold, settings.checkpoint, place, preprocessed_by)
        check_makers(asked, settings.configuration, folders, None if split is None else split.val, to_train=False)
        plans["continue_training"] = True  # the record of the training at Weights & Biases goes on
        trainer = nnUNetTrainerSAM3D(plans, settings.configuration, asked.fold, dataset_json, place)
        trainer.print_to_log_file(f"validating {model.checkpoint_files[0]}")
        validate(trainer, model, settings.save_probabilities)
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


def _starting_point(
    asked: Asked, settings: TrainingSettings, folders: Folders, split: Split | None
) -> "StartingPoint | None":
    """Read the model to start from."""
    if settings.from_model is None:
        return None
    from sam3dnet.training.starting import read_starting_point

    validating = set() if split is None else set(split.val) - split.in_both
    with model_to_start_from(asked, settings, folders) as folder:
        own = asked.model_folder / f"fold_{asked.fold}"
        point = read_starting_point(folder, asked.fold, asked.plans["dataset_name"], validating, own)
        return replace(point, source=str(settings.from_model))


def _check_weights(plans: dict[str, Any], configuration: str, sam_checkpoint: str | Path | None) -> None:
    """Check a file of weights that the user named before anything is built for it."""
    content = plans["configurations"][configuration]
    parent = plans["configurations"].get(content.get("inherits_from"), {})
    arch_kwargs = content.get("architecture", parent.get("architecture", {})).get("arch_kwargs", {})
    if arch_kwargs.get("pretrained") and sam_checkpoint is not None:
        from sam3dnet.network.weights_file import check_named_file

        check_named_file(arch_kwargs["encoder"], sam_checkpoint)
