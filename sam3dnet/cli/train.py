"""sam3d_train: train one fold of a planned dataset."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sam3dnet.cli.command import DeviceName, NumProcesses, parse_fold, run_command
from sam3dnet.errors import Sam3dError


def train(
    dataset: str,
    fold: str,
    *,
    root: Path | None = None,
    configuration: str = "3d_fullres",
    plans: Annotated[str, "-p"] = "SAM3DPlans",
    epochs: int | None = None,
    minutes: float | None = None,
    iterations_per_epoch: int | None = None,
    continue_training: Annotated[bool, "--continue"] = False,
    device: DeviceName | None = None,
    sam_checkpoint: str | None = None,
    from_scratch: bool = False,
    num_processes: NumProcesses = None,
    tensorboard: bool = False,
    wandb: bool = False,
    validate_only: bool = False,
    checkpoint: str | None = None,
) -> Path:
    """Train one fold of a planned and preprocessed dataset, then validate it.

    Args:
        dataset: Dataset by number or name, such as 501 or Dataset501_Hippocampus.
        fold: fold0 to fold4, also written 0 to 4, to validate on that fifth of the cases; all to train on every case.
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
        configuration: Configuration of the plan.
        plans: Name of the plan; those of --method have a name of their own.
        epochs: Number of epochs; without it the trainer's own.
        minutes: Time to train for, in place of a number of epochs; the schedule follows the clock.
        iterations_per_epoch: Training steps in an epoch; without it the trainer's own.
        continue_training: Go on from the last checkpoint.
        device: Device to train on: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.
        sam_checkpoint: SAM's weights to start from: sam, medsam, or a file in SAM's format; without it those that the
            plan was made for.
        from_scratch: Train the whole network without SAM's weights.
        num_processes: Processes that load and augment images; 0 does that in the command's own, without it by the
            number of cores.
        tensorboard: Write the training's curves for TensorBoard, into the folder "tensorboard" of the fold.
        wandb: Log to Weights & Biases, as nnU-Net does; nnUNet_wandb_project and nnUNet_wandb_mode are read.
        validate_only: Train nothing; predict and score the validation cases of a trained fold anew.
        checkpoint: What to validate with --validate-only: final, best or latest; without it the first of these that
            there is.

    Returns:
        The folder of the trained fold.

    Raises:
        Sam3dError: If dataset, fold, plan, device or weights are not there.
    """
    trained = {
        "--epochs": epochs,
        "--minutes": minutes,
        "--iterations-per-epoch": iterations_per_epoch,
        "--continue": continue_training,
        "--sam-checkpoint": sam_checkpoint,
        "--from-scratch": from_scratch,
        "--tensorboard": tensorboard,
        "--wandb": wandb,
    }
    _check_options(validate_only, checkpoint, [name for name, value in trained.items() if value])
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name

    folders = activate_folders(root)
    name = find_dataset_name(dataset, folders)
    fold_number = parse_fold(fold)

    from sam3dnet.training.run import train_fold, validate_fold

    if validate_only:
        return validate_fold(
            name,
            fold_number,
            folders,
            configuration=configuration,
            plans_name=plans,
            checkpoint=checkpoint,
            device=device,
            num_processes=num_processes,
        )
    return train_fold(
        name,
        fold_number,
        folders,
        configuration=configuration,
        plans_name=plans,
        epochs=epochs,
        minutes=minutes,
        iterations_per_epoch=iterations_per_epoch,
        continue_training=continue_training,
        device=device,
        sam_checkpoint=sam_checkpoint,
        from_scratch=from_scratch,
        num_processes=num_processes,
        tensorboard=tensorboard,
        wandb=wandb,
    )


def _check_options(validate_only: bool, checkpoint: str | None, of_training: Sequence[str]) -> None:
    if checkpoint is not None and not validate_only:
        raise Sam3dError("--checkpoint says what to validate; give it with --validate-only, or leave it out")
    if validate_only and of_training:
        raise Sam3dError(f"--validate-only trains nothing; leave out {', '.join(of_training)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(train, "sam3d_train", argv)


if __name__ == "__main__":
    sys.exit(main())
