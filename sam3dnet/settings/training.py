"""What can be asked of a training."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.errors import Sam3dError
from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses, OfPlan, OnDevice


@dataclass(frozen=True)
class TrainingSettings(InFolders, OnDevice, OfPlan):
    """Train one fold of a planned and preprocessed dataset, then validate it.

    Started by torchrun, all of its processes share the plan's batch.

    Attributes:
        dataset: Dataset by number or name, such as 501 or Dataset501_Hippocampus.
        fold: fold0 to fold4, also written 0 to 4, to validate on that fifth of the cases; all to train on every case.
        epochs: Number of epochs; without it the trainer's own. With --continue those from before count.
        minutes: Time to train for, in place of a number of epochs; the schedule follows the clock. With --continue the
            time before counts.
        iterations_per_epoch: Training steps in an epoch; without it the trainer's own.
        continue_training: Go on from the newest whole checkpoint; also after the end, with more --epochs or --minutes.
        sam_checkpoint: SAM's weights to start from: sam, medsam, or a file in SAM's format; without it those that the
            plan was made for.
        from_model: Start from a model that was trained before: a dataset by number or name, a model folder, or a zip
            file of nnU-Net's export. What means the same in both is taken over, classes and channels by their names;
            the log says what.
        unlabelled: Folder of images without labels, named as in imagesTr, to train on too: the model that the training
            starts --from labels them first; see docs/few_labels.md.
        from_scratch: Train the whole network without SAM's weights, whatever the plan says.
        num_processes: Processes that load and augment images; 0 does that in the command's own, without it by the
            number of cores.
        tensorboard: Write the training's curves for TensorBoard, into the folder "tensorboard" of the fold.
        wandb: Log to Weights & Biases, as nnU-Net does; nnUNet_wandb_project and nnUNet_wandb_mode are read.
        save_probabilities: Write the probabilities of the validation cases too, CASE.npz and CASE.pkl, which
            sam3d_find_best needs for ensembles.
        validate_only: Train nothing; predict and score the validation cases of a trained fold anew.
        checkpoint: What to validate with --validate-only: final, best or latest; without it the first of these that
            there is. Its results take the place of those that are there, in the folder "validation" that
            sam3d_find_best reads, as with nnU-Net's --val_best.

    Raises:
        Sam3dError: If options of training and of validation alone are mixed, or a length is none.
    """

    dataset: DatasetName
    fold: str | int
    _: KW_ONLY
    epochs: int | None = None
    minutes: float | None = None
    iterations_per_epoch: int | None = None
    continue_training: Annotated[bool, "--continue", "--c"] = False
    plans: Annotated[str, "-p"] = "SAM3DPlans"
    sam_checkpoint: str | None = None
    from_model: Annotated[str | None, "--from"] = None
    unlabelled: str | Path | None = None
    from_scratch: bool = False
    num_processes: NumProcesses = None
    tensorboard: bool = False
    wandb: bool = False
    save_probabilities: Annotated[bool, "--npz"] = False
    validate_only: Annotated[bool, "--val"] = False
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is not None and not self.validate_only:
            raise Sam3dError("--checkpoint says what to validate; give it with --validate-only, or leave it out")
        of_training = {
            "--epochs": self.epochs,
            "--minutes": self.minutes,
            "--iterations-per-epoch": self.iterations_per_epoch,
            "--continue": self.continue_training,
            "--sam-checkpoint": self.sam_checkpoint,
            "--from": self.from_model,
            "--unlabelled": self.unlabelled,
            "--from-scratch": self.from_scratch,
            "--tensorboard": self.tensorboard,
            "--wandb": self.wandb,
        }
        given = [name for name, value in of_training.items() if value is not None and value is not False]
        if self.validate_only and given:
            raise Sam3dError(f"--validate-only trains nothing; leave out {', '.join(given)}")
        if self.continue_training and self.from_model:
            raise Sam3dError("--continue goes on with this fold's own weights; leave out --from")
        if self.unlabelled is not None and not str(self.unlabelled):
            raise Sam3dError("--unlabelled names no folder; name that of the images, or leave it out")
        if self.continue_training and self.unlabelled:
            raise Sam3dError("--continue goes on with the images that it began with; leave out --unlabelled")
        if self.unlabelled and not self.from_model:
            raise Sam3dError(
                "--unlabelled needs a model that labels the images: give one with --from, such as the one that was "
                "trained on the labelled cases"
            )
        self._check_length()

    def _check_length(self) -> None:
        for option, number in (("--epochs", self.epochs), ("--iterations-per-epoch", self.iterations_per_epoch)):
            if number is not None and number < 1:
                raise Sam3dError(f"{option}: expected 1 or more, got {number}; leave it out for the usual number")
        if self.minutes is not None and not self.minutes > 0:
            raise Sam3dError(f"--minutes: expected more than 0, got {self.minutes}; leave it out to train by epochs")
