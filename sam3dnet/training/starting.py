"""What a training starts with in place of chance: the weights of a model that was trained before."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from sam3dnet.errors import CheckpointError
from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans, trained_folds
from sam3dnet.inference.models import (
    CHECKPOINT_ORDER,
    EARLIER,
    PSEUDO_LABELLED,
    STARTED_FROM,
    TRAINING_CASES,
    choose_checkpoint,
    training_cases,
    unwrapped,
)
from sam3dnet.network.earlier_weights import as_named_today
from sam3dnet.network.transfer import Meaning, Taken, find_axes, take_over
from sam3dnet.preprocessing.cases import channel_names, foreground_classes, output_names
from sam3dnet.preprocessing.folders import parse_fold
from sam3dnet.preprocessing.problems import shorten

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

OURS, PEER = "sam3dnet.", "sam3dnet.network.peers.PeerNetwork"

logger = logging.getLogger(__name__)

Build = Callable[[int, int], nn.Module]


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """The weights of a trained model, and what they mean.

    Attributes:
        file: That they are from.
        weights: Of the network.
        meaning: Of its input and output.
        network: What its network is, by `kind_of_network`.
        source: What the user has named; the file may be of a folder that is gone afterwards.
        seen: Names of the cases that they were trained on, where these are of the dataset that is trained on.
    """

    file: Path
    weights: Mapping[str, Tensor]
    meaning: Meaning
    network: str
    seen: frozenset[str] = frozenset()
    source: str = ""

    @property
    def fold(self) -> int | Literal["all"]:
        """The fold whose weights they are."""
        return parse_fold(self.file.parent.name)

    def holds(self, part: str, network: nn.Module, own: Meaning) -> bool:
        """Tell whether it gives all that a part of a network has, as it is there.

        Args:
            part: Name of the part.
            network: To be trained.
            own: Meaning of its input and output.
        """
        state = network.state_dict()
        given = {name: value.shape for name, value in as_named_today(self.weights, state).items()}
        wanted = {name: value.shape for name, value in state.items() if name.startswith(f"{part}.")}
        return self.meaning.channels == own.channels and wanted.items() <= given.items()

    def require_kin(self, network: str) -> None:
        """See that something in it can mean the same as in a network, where names and sizes may agree by chance.

        Args:
            network: What that is, by `kind_of_network`.

        Raises:
            CheckpointError: If the two are others and not both of this package.
        """
        ours = all(name.startswith(OURS) and not name.startswith(PEER) for name in (network, self.network))
        if network != self.network and not ours:
            raise CheckpointError(
                f"{self.file}: weights of {self.network}; expected those of {network} as here"
                f"{'' if network.startswith(PEER) else ', or of another network of sam3dnet'}; start from another model"
            )

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


def read_starting_point(
    folder: Path,
    fold: int | Literal["all"],
    dataset_name: str,
    validating: Collection[str],
    own: Path | None = None,
) -> StartingPoint:
    """Read the weights of a model folder: of the same fold where it was trained, else of "all", else of the first.

    Args:
        folder: Of the model.
        fold: That is going to be trained.
        dataset_name: That it is trained on.
        validating: The cases that the fold validates on, and does not train on.
        own: Folder of the fold that is going to be trained. If the model is the one there, and a training that began
            with it was cut off, it is that of before.

    Raises:
        CheckpointError, PlanError: If there is no such model, or it is damaged.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    trained = trained_folds(folder)
    if not trained:
        raise CheckpointError(f"{folder}: no fold has a checkpoint ({', '.join(CHECKPOINT_ORDER)}); train it first")
    chosen = fold if fold in trained else "all" if "all" in trained else trained[0]
    plans, dataset_json = read_model_plans(folder), read_model_dataset(folder)
    fold_folder = folder / f"fold_{chosen}"
    was_begun = own is not None and own.resolve() == fold_folder.resolve() and (fold_folder / EARLIER).is_file()
    file, checkpoint = choose_checkpoint(fold_folder, EARLIER if was_begun else None)
    if was_begun:
        logger.warning(
            "Warning: a training that began anew in %s has not ended; this one starts from the model before it, %s; "
            "--continue goes on with the other",
            *(fold_folder, EARLIER),
        )
    known = frozenset[str]()
    if plans.get("dataset_name") == dataset_name:
        learned = (TRAINING_CASES, STARTED_FROM, PSEUDO_LABELLED)
        known = known.union(*(training_cases([checkpoint], key) for key in learned))
    seen = sorted(known & {*validating})
    if seen or (validating and not known and chosen != fold and plans.get("dataset_name") == dataset_name):
        logger.warning(
            "Warning: %s has seen cases of this dataset in fold %s that fold %s validates on%s: its validation says "
            "too much; train fold %s of it %s, or start from a model of another dataset",
            *(folder, chosen, fold, f" ({shorten(seen)})" if seen else ""),
            *(fold, "again, since the folds have changed" if chosen == fold else "first"),
        )
    weights = {name: value.clone() for name, value in unwrapped(checkpoint["network_weights"]).items()}
    configuration = PlansManager(plans).get_configuration(checkpoint["init_args"]["configuration"])
    meaning = meaning_of(dataset_json, configuration.previous_stage_name is not None)
    return StartingPoint(file, weights, meaning, kind_of_network(configuration), known)


def kind_of_network(configuration: "ConfigurationManager") -> str:
    """Name the class of a network, package.module.Class, and of a peer also the network in it."""
    inner = configuration.network_arch_init_kwargs.get("network")
    return configuration.network_arch_class_name + ("" if inner is None else f" ({inner})")


def meaning_of(dataset_json: Mapping[str, Any], has_previous_stage: bool) -> Meaning:
    """Say what the channels and classes of a network are called.

    Args:
        dataset_json: Of its dataset.
        has_previous_stage: Whether it also sees the label map of a cascade's first stage, a label a channel, by value.
    """
    channels = [str(name) for name in channel_names(dataset_json).values()]
    if has_previous_stage:
        classes = foreground_classes(dataset_json)
        for value in sorted({value for values in classes.values() for value in values}):
            named = " and ".join(sorted(name for name, values in classes.items() if value in values))
            channels.append(f"first stage: {named}")
    return Meaning(tuple(numbered(channels)), tuple(output_names(dataset_json)))


def numbered(names: Sequence[str]) -> list[str]:
    """Tell things of one name apart: the second is called "CT (2)"."""
    return [f"{name} ({n})" if (n := names[: at + 1].count(name)) > 1 else name for at, name in enumerate(names)]
