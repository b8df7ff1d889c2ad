"""What a training starts with in place of chance: the weights of a model that was trained before."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sam3dnet.errors import CheckpointError
from sam3dnet.inference.models import (
    CHECKPOINT_ORDER,
    choose_checkpoint,
    read_model_dataset,
    read_model_plans,
    trained_folds,
    unwrapped,
)
from sam3dnet.network.transfer import Meaning, Taken, find_axes, take_over
from sam3dnet.preprocessing.cases import channel_names, foreground_classes, output_names

logger = logging.getLogger(__name__)

Build = Callable[[int, int], nn.Module]


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """The weights of a trained model, and what they mean.

    Attributes:
        file: That they are from.
        weights: Of the network.
        meaning: Of its input and output.
    """

    file: Path
    weights: Mapping[str, Tensor]
    meaning: Meaning

    def give_to(self, network: nn.Module, own: Meaning, build: Build) -> Taken:
        """Let a network start with what means the same in it.

        Args:
            network: To be trained.
            own: Meaning of its input and output.
            build: Makes it for other numbers of channels and classes.

        Raises:
            CheckpointError: If nothing fits.
        """
        axes = find_axes(build, len(own.channels), len(own.classes))
        taken = take_over(network, own, self.weights, self.meaning, axes)
        if not taken.same and not taken.fitted:
            raise CheckpointError(f"{self.file}: nothing of it fits the network of this plan; start from another model")
        return taken


def read_starting_point(folder: Path, fold: int | Literal["all"], dataset_name: str) -> StartingPoint:
    """Read the weights of a model folder: of the same fold where it was trained, else of "all", else of the first.

    Args:
        folder: Of the model.
        fold: That is going to be trained.
        dataset_name: That it is trained on.

    Raises:
        CheckpointError, PlanError: If there is no such model, or it is damaged.
    """
    trained = trained_folds(folder)
    if not trained:
        raise CheckpointError(f"{folder}: no fold has a checkpoint ({', '.join(CHECKPOINT_ORDER)}); train it first")
    chosen = fold if fold in trained else "all" if "all" in trained else trained[0]
    plans, dataset_json = read_model_plans(folder), read_model_dataset(folder)
    if plans.get("dataset_name") == dataset_name and chosen != fold:
        logger.warning(
            "Warning: %s has seen cases of this dataset in fold %s that fold %s validates on: its validation says too "
            "much; train fold %s of it, or start from a model of another dataset",
            *(folder, chosen, fold, fold),
        )
    file, checkpoint = choose_checkpoint(folder / f"fold_{chosen}")
    weights = {name: value.clone() for name, value in unwrapped(checkpoint["network_weights"]).items()}
    configuration = plans["configurations"].get(checkpoint["init_args"]["configuration"], {})
    return StartingPoint(file, weights, meaning_of(dataset_json, bool(configuration.get("previous_stage"))))


def meaning_of(dataset_json: Mapping[str, Any], has_previous_stage: bool) -> Meaning:
    """Say what the channels and classes of a network are called.

    Args:
        dataset_json: Of its dataset.
        has_previous_stage: Whether it also sees the label map of a cascade's first stage, a class a channel.
    """
    channels = [str(name) for name in channel_names(dataset_json).values()]
    if has_previous_stage:
        channels += [f"first stage: {name}" for name in foreground_classes(dataset_json)]
    return Meaning(tuple(channels), tuple(output_names(dataset_json)))
