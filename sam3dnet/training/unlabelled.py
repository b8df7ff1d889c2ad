"""A training that learns from images without labels, too: who labels them, and that they stay as they are."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from sam3dnet.errors import DatasetError
from sam3dnet.inference.economy import release_cached
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.preprocessing.splits import Split
from sam3dnet.settings.prediction import PredictionSettings
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training.asked import Asked, cases_of_dataset, model_to_start_from, stored_cases, stored_in
from sam3dnet.training.distributed import is_first_process, unhurried_meetings
from sam3dnet.training.pseudo_labels import PseudoLabels
from sam3dnet.training.starting import StartingPoint, kind_of_network


def pseudo_labels_of(asked: Asked, settings: TrainingSettings, folders: Folders) -> PseudoLabels:
    """Give the place of the pseudo-labelled cases of a training."""
    folder = folders.preprocessed / asked.plans["dataset_name"]
    return PseudoLabels(asked.plans, settings.configuration, asked.dataset_json, folder, asked.fold)


@contextmanager
def pseudo_labelled_by(
    labels: PseudoLabels,
    asked: Asked,
    settings: TrainingSettings,
    folders: Folders,
    start: StartingPoint | None,
    given: Sequence[TrainingCase],
    split: Split | None,
) -> Iterator[dict[str, str]]:
    """Preprocess what is trained on beside the dataset's cases, labelled first where it is not yet.

    Until the block ends no other training changes it.

    Args:
        labels: The place of these cases.
        asked: The fold that is trained.
        settings: What else is asked for, with the folder of the images.
        folders: nnU-Net's three folders.
        start: The model that the training starts from, which labels the images of the folder.
        given: Cases that are labelled already, where there is no folder.
        split: Of the fold; None for "all".

    Yields:
        Of each case by what it is known again.

    Raises:
        DatasetError: If there is no image to learn from, or the model cannot label any.
        CheckpointError: If the model is of another kind of network.
    """
    if not settings.unlabelled and not given:
        yield {}
        return
    with unhurried_meetings() as meet, labels.alone(meet):
        if start is not None and settings.unlabelled:
            given = _labelled_by(start, labels, asked, settings, folders, split, meet)
        stored: dict[str, str] = meet(labels.store(given, settings.num_processes) if is_first_process() else {})[0]
        gc.collect()  # what labelled them is in a circle
        release_cached(asked.device)
        if settings.unlabelled and not stored:
            raise DatasetError(f"--unlabelled: no image of {settings.unlabelled} is left to learn from; see above")
        yield stored


def _labelled_by(
    start: StartingPoint,
    labels: PseudoLabels,
    asked: Asked,
    settings: TrainingSettings,
    folders: Folders,
    split: Split | None,
    meet: Callable[[Any], list[Any]],
) -> list[TrainingCase]:
    """Have the model that the training starts from label the images."""
    start.require_kin(kind_of_network(PlansManager(asked.plans).get_configuration(settings.configuration)))
    name = asked.plans["dataset_name"]
    known = {
        *cases_of_dataset(name, folders, asked.dataset_json),
        *stored_cases(folders.preprocessed / name / stored_in(asked.plans, settings.configuration)),
        *(() if split is None else (*split.train, *split.val)),
    }
    with model_to_start_from(asked, settings, folders) as model:
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
def as_it_began(labels: PseudoLabels, pseudo_labelled: Mapping[str, str]) -> Iterator[None]:
    """See that a training goes on with the same cases, and let no other one change them until the block ends.

    Args:
        labels: The place of the cases.
        pseudo_labelled: Of each case by what it is known again, as the training began.

    Raises:
        CheckpointError: If they are not there as they were.
    """
    if not pseudo_labelled:
        yield
        return
    with unhurried_meetings() as meet, labels.alone(meet):
        labels.require(pseudo_labelled)
        yield
