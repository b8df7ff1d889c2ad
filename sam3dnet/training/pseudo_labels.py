"""Images without labels that are trained on: the label maps of a model that was trained before stand in for labels.

Such label maps are called pseudo-labels (Lee, ICML workshop 2013), and a training on them self-training. They are made
once, before the training, with mirrored windows and post-processing, as for users.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from sam3dnet.errors import CheckpointError, DatasetError
from sam3dnet.inference.images import find_cases
from sam3dnet.inference.meaning import differences
from sam3dnet.inference.models import read_model_dataset, read_model_plans
from sam3dnet.inference.predictor import predict_folder
from sam3dnet.preprocessing.cases import TrainingCase, channel_names
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import DatasetReader, reader_named
from sam3dnet.settings.prediction import PredictionSettings

FOLDER, LABEL_MAPS = "pseudo_labels", "label_maps"

logger = logging.getLogger(__name__)

Fold = int | Literal["all"]


class CasesOfDataset(Protocol):
    """What nnU-Net's loaders ask for cases."""

    identifiers: list[str]

    def load_case(self, identifier: str) -> Any:
        """Give image, label map, that of a first stage, and properties."""


class LabelledAndPseudoLabelled:
    """The cases of a fold and the pseudo-labelled ones, for nnU-Net's loaders, which draw them all alike.

    Args:
        labelled: nnU-Net's dataset of the fold.
        pseudo_labelled: The further cases.
    """

    def __init__(self, labelled: CasesOfDataset, pseudo_labelled: CasesOfDataset):
        self._of = {name: part for part in (pseudo_labelled, labelled) for name in part.identifiers}
        self.identifiers = sorted(self._of)

    def load_case(self, identifier: str) -> Any:
        """Give what nnU-Net's datasets give."""
        return self._of[identifier].load_case(identifier)

    __getitem__ = load_case


def folder_of_fold(dataset_folder: Path, fold: Fold) -> Path:
    """Say where the pseudo-labels of a fold's training lie, in the folder of the preprocessed dataset."""
    return dataset_folder / FOLDER / f"fold_{fold}"


def label_images(
    settings: PredictionSettings, name: str, dataset_json: Mapping[str, Any], known: Collection[str]
) -> list[TrainingCase]:
    """Have a model label images; what it has labelled already, as it is now, stays.

    Args:
        settings: Folder of the images, model folder, fold, and folder for the label maps.
        name: Of the dataset that is trained on.
        dataset_json: Of this dataset.
        known: Names of its cases, which are left out.

    Returns:
        Those in which something was found.

    Raises:
        DatasetError: If there is no image, nothing was found in any, or the model has other classes or channels.
        CheckpointError, PlanError: If the model cannot be loaded.
    """
    images, model, output = (
        Path(str(folder)) for folder in (settings.input_folder, settings.model_folder, settings.output_folder)
    )
    theirs = read_model_dataset(model)
    differ = differences(theirs, name, dataset_json)
    if differ:
        raise DatasetError(
            f"--unlabelled: {model} cannot label images for {name}: {'; '.join(differ)}; start --from a model that was "
            "trained on the labelled cases of this dataset"
        )
    found, faulty = find_cases(images, str(theirs["file_ending"]), len(channel_names(theirs)))
    for case_name, why in faulty.items():
        logger.warning("Warning: %s is left out: %s", case_name, why)
    there = sorted(case.name for case in found if case.name in known)
    if there:
        logger.info("%s: %d images are left out, which the dataset has: %s", images, len(there), shorten(there))
    wanted = {case.name: case for case in found if case.name not in known}
    if not wanted:
        raise DatasetError(f"{images}: all images are in {name} already; expected some without a label map there")
    report = predict_folder(settings, only=wanted)
    for case_name, why in report.failed.items():
        logger.warning("Warning: %s is left out: %s", case_name, why)
    reader = reader_named(str(read_model_plans(model)["image_reader_writer"]), theirs)
    labelled = [
        TrainingCase(case.name, case.files, output / f"{case.name}{theirs['file_ending']}")
        for case in wanted.values()
        if case.name not in report.failed
    ]
    kept = with_something(labelled, reader)
    if not kept:
        raise DatasetError(
            f"--unlabelled: {model} found nothing in any image of {images}; start --from a better model, or train "
            "without these"
        )
    return kept


def with_something(cases: Iterable[TrainingCase], reader: DatasetReader) -> list[TrainingCase]:
    """Leave out cases in which nothing was found: of those a model would learn to find nothing.

    Args:
        cases: With their pseudo-labels.
        reader: Of these.
    """
    kept: list[TrainingCase] = []
    left_out: list[TrainingCase] = []
    for case in cases:
        (kept if (reader.read_seg(case.label)[0] > 0).any() else left_out).append(case)
    if left_out:
        names = shorten([case.name for case in left_out])
        logger.info("%d unlabelled images are left out, in which the model found nothing: %s", len(left_out), names)
    return kept


def stored_cases(dataset_folder: Path, fold: Fold, data_identifier: str, names: Collection[str]) -> CasesOfDataset:
    """Give the preprocessed cases with pseudo-labels, for nnU-Net's loaders.

    Args:
        dataset_folder: Of the preprocessed dataset.
        fold: That is trained.
        data_identifier: Of its configuration.
        names: Of the cases.

    Raises:
        CheckpointError: If they are no longer there.
    """
    folder = folder_of_fold(dataset_folder, fold) / data_identifier
    gone = sorted(name for name in names if not (folder / f"{name}.pkl").is_file())
    if gone:
        raise CheckpointError(
            f"{folder}: {len(gone)} of the {len(names)} unlabelled images that this training learns from are no longer "
            f"there: {shorten(gone)}; train again without --continue"
        )
    return nnUNetDatasetBlosc2(str(folder), sorted(names))
