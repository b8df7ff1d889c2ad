"""What can be asked of the search for the best configuration."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses

OUR_TRAINER = "nnUNetTrainerSAM3D"


@dataclass(frozen=True)
class FindBestSettings(InFolders):
    """Find the best of a dataset's trained models, and of ensembles of two, by cross-validation, choose what
    post-processing improves it, and say how to predict.

    Works as nnUNetv2_find_best_configuration does, and writes what that writes. The post-processing of each model is
    stored beside it, and sam3d_predict applies it.

    Attributes:
        dataset: Dataset by number or name, such as 501 or Dataset501_Hippocampus.
        configurations: Configurations to choose among; without it all that are there.
        plans: Plans to choose among; without it all that are there.
        trainers: Trainers to choose among; name stock ones, such as nnUNetTrainer, with ours.
        folds: Folds that count, such as 0 1 2; without it all.
        no_ensembling: Consider single models alone.
        num_processes: Cases that are scored at the same time; without it one a core, as far as memory allows, 8 at
            most.

    Raises:
        DatasetError: If no model has been validated on all of these folds.
    """

    dataset: DatasetName
    _: KW_ONLY
    configurations: Annotated[list[str] | None, "-c"] = None
    plans: Annotated[list[str] | None, "-p"] = None
    trainers: Annotated[list[str] | None, "-tr"] = None
    folds: Annotated[list[str | int] | None, "-f"] = None
    no_ensembling: Annotated[bool, "--disable_ensembling"] = False
    num_processes: NumProcesses = None
