"""The first stage of a cascade: found beside the second, loaded with it, and predicted on the way to its input.

As nnU-Net has it: the first stage's label map, on the image's grid, is preprocessed with the image, and each label that
is not background becomes a channel.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam3dnet.errors import CheckpointError, DatasetError
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.images import Case, ImageInput, require_whole
from sam3dnet.inference.model_folders import trained_folds
from sam3dnet.inference.models import LoadedModel, load_model
from sam3dnet.preprocessing.reading import DatasetReader

logger = logging.getLogger(__name__)

Labels = npt.NDArray[Any]
Turn = AbstractContextManager[Any]


def load_stages(
    model_folder: Path,
    folds: Sequence[int | str] | None = None,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
    *,
    previous: bool = True,
) -> LoadedModel:
    """Load a model as `load_model` does, and with a cascade's second stage the first.

    Of the first stage the folds of the second are taken as far as they are trained, else all that are; of each the
    final checkpoint, or what `load_model` takes in its place.

    Args:
        model_folder: See `load_model`.
        folds: See `load_model`.
        checkpoint: See `load_model`; of this stage.
        device: Where the networks go.
        previous: Whether the first stage is needed; its label maps may be there already.

    Raises:
        CheckpointError: As of `load_model`, and if the first stage is not there.
        PlanError: As of `load_model`.
    """
    model = load_model(model_folder, folds, checkpoint, device)
    stage = model.configuration.previous_stage_name
    if stage is None or not previous:
        return model
    first = previous_model_folder(model_folder, stage)
    trained = trained_folds(first)
    if not trained:
        raise CheckpointError(missing_first_stage(first, stage, model.plans))
    asked = {file.parent.name for file in model.checkpoint_files}
    same = [fold for fold in trained if f"fold_{fold}" in asked]
    loaded = load_stages(first, same or None, None, device)
    logger.debug("first stage: %s", ", ".join(map(str, loaded.checkpoint_files)))
    return replace(model, previous=loaded)


def previous_model_folder(model_folder: Path, stage: str) -> Path:
    """Say where the first stage of a second one lies: the same trainer's and plan's, under the other configuration."""
    trainer_and_plan = model_folder.absolute().name.rpartition("__")[0]
    return model_folder.absolute().parent / f"{trainer_and_plan}__{stage}"


def missing_first_stage(folder: Path, stage: str, plans: Any) -> str:
    """Say what to do where the first stage is not there."""
    line = f"sam3d_train {plans.dataset_name} fold0 -c {stage}"
    return (
        f"{folder}: the second stage of a cascade needs a trained first stage there, {stage}, which has no checkpoint; "
        f"train it ({line}) or copy its model folder there; sam3d_predict also takes its label maps with "
        "--prev-stage-predictions"
    )


class PredictedStage:
    """Gives the first stage's label map of an image by predicting it; one at a time, whoever asks.

    Args:
        model: The first stage.
        turn: Held while a network is at work, so that two stages never share the device's memory.
        options: Of `AutomaticSegmentation`.
    """

    def __init__(self, model: LoadedModel, turn: Turn, **options: Any):
        self._input = make_input(model, turn, **options)
        self._automatic = AutomaticSegmentation(model, **options)
        self._turn = turn

    def __call__(self, _case: Case | None, image_CZYX: np.ndarray, properties: Mapping[str, Any]) -> Labels:
        """Segment an image as its reader gave it; the labels (Z, Y, X) lie on its grid."""
        preprocessed = self._input.preprocess(image_CZYX, properties)
        with self._turn:
            return self._automatic.label_map(*preprocessed)


class StoredStage:
    """Gives the first stage's label maps from a folder, as nnU-Net's prediction takes them.

    Args:
        folder: Holds CASE and the file ending of the dataset for each case.
        reader: Of the dataset.
        file_ending: Of the dataset.
    """

    def __init__(self, folder: Path, reader: DatasetReader, file_ending: str):
        self._folder, self._reader, self._ending = folder, reader, file_ending

    def __call__(self, case: Case | None, image_CZYX: np.ndarray, _properties: Mapping[str, Any]) -> Labels:
        """Read the label map of a case, (Z, Y, X) on the image's grid.

        Raises:
            DatasetError: If there is none, or it is damaged or of another grid.
        """
        assert case is not None, "an image in memory has no name"
        file = self._folder / f"{case.name}{self._ending}"
        if not file.is_file():
            raise DatasetError(
                f"{file}: not found; expected the first stage's label map of this image; predict it with the first "
                "stage into this folder, or leave out --prev-stage-predictions"
            )
        require_whole(Case(case.name, case.files[:1]), self._reader, label=file)
        labels_1ZYX, _ = self._reader.read_seg(file)
        labels_ZYX: Labels = labels_1ZYX[0]
        return labels_ZYX


def make_input(
    model: LoadedModel, turn: Turn | None = None, stored: str | Path | None = None, **options: Any
) -> ImageInput:
    """Make what reads images for a model, and for a cascade's second stage segments them with the first.

    Args:
        model: From `load_stages`.
        turn: Held while the first stage is at work; whoever asks the second at the same time takes it too.
        stored: Folder with the first stage's label maps, in place of predicting them.
        options: Of `AutomaticSegmentation`, for the first stage.
    """
    if model.previous is not None:
        return ImageInput(model, PredictedStage(model.previous, turn or Lock(), **options))
    return ImageInput(model, stored_stage(model, stored))


def stored_stage(model: LoadedModel, folder: str | Path | None) -> StoredStage | None:
    """Give what reads the first stage's label maps from a folder; None where none is named."""
    if folder is None:
        return None
    return StoredStage(Path(folder), model.reader, model.dataset_json["file_ending"])
