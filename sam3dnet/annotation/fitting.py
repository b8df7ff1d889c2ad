"""Whether a model can propose label maps for a dataset: its classes and channels mean the same, and it answers."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sam3dnet.errors import CheckpointError, DatasetError, PlanError, PromptError
from sam3dnet.inference.cascade import missing_first_stage, previous_model_folder
from sam3dnet.inference.meaning import differences, tell_other_names
from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans, trained_folds
from sam3dnet.inference.models import (
    PSEUDO_LABELLED,
    STARTED_FROM,
    build_network,
    choose_checkpoint,
    training_cases,
)
from sam3dnet.network.transfer import without_values
from sam3dnet.planning.likeness import FULLRES
from sam3dnet.portable.sources import model_folder
from sam3dnet.preprocessing.reading import READER_KEY, DatasetReader, reader_named

logger = logging.getLogger(__name__)


def require_fitting(
    model: Path, name: str, dataset_json: Mapping[str, Any], reader: DatasetReader, needs_prompts: bool = False
) -> None:
    """See that a model has the classes and channels of a dataset; channels that are called otherwise are told.

    So is a configuration that trainings do not go on with.

    Args:
        model: Its folder, or an exported file; its weights are not loaded.
        name: Of the dataset.
        dataset_json: Of the dataset.
        reader: Of the dataset.
        needs_prompts: Whether it must answer prompts.

    Raises:
        DatasetError: If it has other classes, or channels that are others or in another order, or reads images with
            other axes.
        CheckpointError, PlanError: If there is no such model, it is one for slices, or lacks a cascade's first stage.
        PromptError: If it must answer prompts, and does not.
    """
    with model_folder(model) as folder:
        theirs = read_model_dataset(folder)
        _require_same_meaning(model, theirs, name, dataset_json)
        _require_same_axes(model, str(read_model_plans(folder)["image_reader_writer"]), name, reader)
        configuration = _require_loadable(folder, model, theirs, needs_prompts)
    if configuration != FULLRES:
        logger.warning(
            "Warning: %s is of the configuration %s, but trainings here are of %s, one stage alone: what is trained "
            "takes its place if it agrees no worse with the cases that were held back, and without a comparison while "
            "there are none; --every 0 begins no training by itself",
            *(model, configuration, FULLRES),
        )


def learned_from(model: Path, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name the cases of a dataset that a model has learned from, and the images without labels, by its checkpoints.

    Args:
        model: Its folder, or an exported file, which does not say.
        name: Of the dataset.

    Raises:
        CheckpointError, PlanError: As of `require_fitting`.
    """
    with model_folder(model) as folder:
        if read_model_plans(folder).get("dataset_name") != name:
            return (), ()
        opened = [choose_checkpoint(folder / f"fold_{fold}")[1] for fold in trained_folds(folder)]
    seen = training_cases(opened) | training_cases(opened, STARTED_FROM)
    return tuple(sorted(seen)), tuple(sorted(training_cases(opened, PSEUDO_LABELLED)))


def _require_same_meaning(model: Path, theirs: Mapping[str, Any], name: str, dataset_json: Mapping[str, Any]) -> None:
    differ = differences(theirs, name, dataset_json)
    if differ:
        raise DatasetError(
            f"{model}: {'; '.join(differ)}; train a model of this dataset that starts from it: "
            f"sam3d_plan_and_preprocess -d {name} --like {model}, then sam3d_train {name} all --from {model}; or "
            "choose another one with -m"
        )
    tell_other_names(model, theirs, name, dataset_json)


def _require_same_axes(model: Path, theirs: str, name: str, reader: DatasetReader) -> None:
    if reader_named(theirs, {}).reorients != reader.reorients:
        raise DatasetError(
            f"{model}: reads images by {theirs}, {name} is read by {reader.name}, which gives their axes in another "
            f'order; write "{READER_KEY}": "{theirs}" into dataset.json, or train a model of the dataset as it is'
        )


def _require_loadable(folder: Path, model: Path, dataset_json: dict[str, Any], needs_prompts: bool) -> str:
    """See that a model is one that will be loaded, and answers prompts if it must; give its configuration."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folds = trained_folds(folder)
    if not folds:
        raise CheckpointError(f"{model}: no fold has a checkpoint; train one, or choose another one with -m")
    name = str(choose_checkpoint(folder / f"fold_{folds[0]}")[1]["init_args"]["configuration"])
    plans = PlansManager(read_model_plans(folder))
    configuration = plans.get_configuration(name)
    if len(configuration.patch_size) != 3:
        raise PlanError(f"{model}: is for slices ({name}); expected one for volumes; choose another one with -m")
    stage = configuration.previous_stage_name
    if stage is not None and not trained_folds(first := previous_model_folder(folder, stage)):
        raise CheckpointError(missing_first_stage(first, stage, plans))
    labels = plans.get_label_manager(dataset_json)
    build = partial(build_network, plans, configuration, labels, dataset_json)
    if needs_prompts and not getattr(without_values(build), "answers_prompts", False):
        raise PromptError(
            f"{model}: does not answer prompts, so nobody could correct what it proposes; plan and train again with "
            "sam3d_plan_and_preprocess and sam3d_train, without --no-prompts, or choose another one with -m (from "
            "Python needs_prompts=False takes it too, for label maps that are arrays or files)"
        )
    return name
