"""A plan after that of a trained model, so that training can start from its weights with nothing to be fitted."""

import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sam3dnet.errors import PlanError
from sam3dnet.planning.fitting import EncoderChoice, Fit
from sam3dnet.planning.methods import DEFAULT_TUNING, METHODS, MethodChoice, Text
from sam3dnet.planning.rules import Decision
from sam3dnet.preprocessing.cases import channel_names, output_names

FULLRES = "3d_fullres"
OPTION = "--like"
PLANNED_LIKE = "like"  # in a plan's block "sam3d": the model that it was planned after, as it was asked for
LIKE_DIGEST = "like_digest"  # of that model, however it is named
OF_THE_CLASSES = ("regions", "text")  # arguments of networks that say what a dataset's classes are
TAKEN = ("spacing", "patch_size", "architecture")  # of full resolution

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Likeness:
    """What is taken from the plan of a model: spacing, axes, crop, network, and how channels of the same name look.

    Attributes:
        source: The model's name, for decisions.
        plans: Of the model.
        channels: Names of its channels.
        classes: Names of its outputs, in their order.
        asked_for: How the user named it.

    Raises:
        PlanError: If its plan has no 3d_fullres, or its network is none of ours.
    """

    source: str
    plans: Mapping[str, Any]
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    asked_for: str

    def __post_init__(self) -> None:
        if "architecture" not in self.plans.get("configurations", {}).get(FULLRES, {}):
            raise PlanError(f"{self.source}: its plan has no {FULLRES}; plan like another model")
        if self.method is None:
            raise PlanError(
                f"{self.source}: its network, {self.configuration['architecture']['network_class_name']}, is none of "
                "sam3dnet's; plan like another model"
            )

    @property
    def digest(self) -> str:
        """Hash what tells the model from another one to plan after."""
        told = [self.plans.get("dataset_name"), *(self.configuration.get(key) for key in TAKEN)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Its full resolution."""
        found: Mapping[str, Any] = self.plans["configurations"][FULLRES]
        return found

    @property
    def method(self) -> str | None:
        """Its method, by name."""
        network_class = self.configuration["architecture"]["network_class_name"]
        names = [name for name, method in METHODS.items() if method.network_class == network_class and not method.peer]
        return names[0] if names else None

    @property
    def choice(self) -> MethodChoice:
        """Its method, and what its network was built with, but for what says what its classes are."""
        kwargs = self.configuration["architecture"]["arch_kwargs"]
        return MethodChoice(
            str(self.method),
            kwargs.get("fidelity"),
            kwargs.get("tuning", DEFAULT_TUNING),
            prompts=bool(kwargs.get("prompts", True)),
        )

    def choice_for(self, dataset_json: Mapping[str, Any], text: Text | None = None) -> MethodChoice:
        """Give its choice, with the text of a dataset's classes where it reads text.

        Args:
            dataset_json: Of the dataset.
            text: Of its classes; None takes the model's, which must have the same classes then.

        Raises:
            PlanError: If the model has other classes, or reads no such text.
        """
        if text is not None:
            self.require_reads(text.model)
            return replace(self.choice, text=text)
        own = tuple(output_names(dataset_json))
        if self.text is not None and own != self.classes:
            raise PlanError(
                f"{self.source}: its phrases are of its outputs, {', '.join(self.classes)}; the dataset's are "
                f"{', '.join(own)}; give --clip-weights to have phrases of these embedded"
            )
        return replace(self.choice, text=self.text)

    @property
    def text(self) -> Text | None:
        """The phrases of its outputs; None where it reads no text."""
        embeddings = self.configuration["architecture"]["arch_kwargs"].get("text")
        block = self.plans.get("sam3d", {})
        phrases = [one["value"] for one in block.get("decisions", []) if one["name"] == "text" and one["value"]]
        return None if embeddings is None else Text(tuple(*phrases[:1]), str(block.get("text_model")), embeddings)

    def require_reads(self, clip_model: str) -> None:
        """See that its network reads text as a CLIP model embeds it.

        Raises:
            PlanError: Else.
        """
        if self.text is None:
            raise PlanError(f"{self.source}: it reads no text; leave out --clip-weights")
        if self.text.model != clip_model:
            raise PlanError(
                f"{self.source}: it reads text as {self.text.model} embeds it, not {clip_model}; give --clip-model "
                f"{self.text.model}, and weights of it"
            )

    @property
    def transpose(self) -> tuple[list[int], list[int]]:
        """Its order of axes, forward and backward."""
        return list(self.plans["transpose_forward"]), list(self.plans["transpose_backward"])

    @property
    def spacing_mm(self) -> list[float]:
        """Its spacing, (Z, Y, X) as the reader gives images."""
        return [float(self.configuration["spacing"][axis]) for axis in self.transpose[1]]

    @property
    def encoder(self) -> EncoderChoice:
        """Its encoder, and whether that holds SAM's weights."""
        kwargs = self.configuration["architecture"]["arch_kwargs"]
        return {"encoder": kwargs["encoder"], "pretrained": kwargs["pretrained"]}

    @property
    def weights(self) -> Mapping[str, Any] | None:
        """What its plan says of SAM's weights."""
        found: Mapping[str, Any] | None = self.plans.get("sam3d", {}).get("weights")
        return found

    def fit(self, own_options: Mapping[str, Any], step_bytes: Callable[[dict[str, Any]], int]) -> Fit:
        """Give its network, for the classes of a dataset.

        Args:
            own_options: Arguments of the dataset's network, of which those that say what its classes are count.
            step_bytes: Measures a step of the smallest batch.
        """
        theirs = self.configuration["architecture"]["arch_kwargs"]
        kwargs = {key: value for key, value in theirs.items() if key not in OF_THE_CLASSES}
        kwargs |= {key: own_options[key] for key in OF_THE_CLASSES if key in own_options}
        patch = self._decision("patch_size", list(self.configuration["patch_size"]))
        stride, strides = (self._decision(name, kwargs[name]) for name in ("token_stride", "strides"))
        return Fit(patch, stride, strides, kwargs, step_bytes(kwargs))

    def decisions(self) -> list[Decision]:
        """Say what else is taken."""
        return [self._decision("spacing", self.spacing_mm), self._decision("encoder", dict(self.encoder))]

    def taken(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Say of decisions that they are the model's, such as those of its `choice`."""
        return [self._decision(one.name, one.value) for one in decisions]

    def normalization(
        self, names: Sequence[str], schemes: Sequence[str], use_mask: Sequence[bool]
    ) -> tuple[list[str], list[bool]]:
        """Take over how channels of the same name are normalised."""
        theirs = self.configuration["normalization_schemes"], self.configuration["use_mask_for_norm"]
        chosen, masked = list(schemes), [bool(use) for use in use_mask]
        for number, at in self._counterparts(names).items():
            chosen[number], masked[number] = str(theirs[0][at]), bool(theirs[1][at])
        return chosen, masked

    def intensities(self, names: Sequence[str], own: Mapping[str, Any]) -> dict[str, Any]:
        """Take over the intensities that channels of the same name are normalised by."""
        theirs = self.plans["foreground_intensity_properties_per_channel"]
        taken, keys = dict(own), list(own)
        for number, at in self._counterparts(names).items():
            taken[keys[number]] = dict(theirs[str(at)])
        return taken

    def _counterparts(self, names: Sequence[str]) -> dict[int, int]:
        """Find the model's channel of the same name for each that has one; of several, the second is the second's."""
        places = {name: iter([at for at, one in enumerate(self.channels) if one == name]) for name in self.channels}
        found = {number: next(places.get(name, iter(())), None) for number, name in enumerate(names)}
        return {number: at for number, at in found.items() if at is not None}

    def _decision(self, name: str, value: Any) -> Decision:
        return Decision(name, value, f"as in {self.source}", "user")


def likeness_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], asked_for: str | None = None) -> Likeness:
    """Give what is taken from a model, by its plan and the dataset.json of its training.

    Args:
        plans: Of the model.
        dataset_json: Of the model.
        asked_for: How the user named it; None: its dataset.

    Raises:
        PlanError: As of `Likeness`.
    """
    dataset = str(plans.get("dataset_name", "an unnamed dataset"))
    channels = tuple(str(name) for name in channel_names(dataset_json).values())
    classes = tuple(output_names(dataset_json))
    return Likeness(f"the model of {dataset}", plans, channels, classes, asked_for or dataset)


def without_what_is_taken(
    changes: Mapping[str, Any], before: Mapping[str, Any], plans: Mapping[str, Any], file_name: str
) -> dict[str, Any]:
    """Let a model that is planned after win over what was changed in another plan, and tell where one is forgotten.

    What was changed in a plan like the same model stays.

    Args:
        changes: By hand in the plan before, by path.
        before: The plan before.
        plans: The new plan.
        file_name: Of the plan.

    Returns:
        The changes that are kept.
    """
    like_before, like = (of.get("sam3d", {}).get(PLANNED_LIKE) for of in (before, plans))
    digest_before, digest = (of.get("sam3d", {}).get(LIKE_DIGEST) for of in (before, plans))
    if like is None and like_before is not None:
        logger.warning(
            "Warning: %s is no longer planned like %s, which %s asked for: spacing, crop and network are planned anew, "
            "the cases are made anew, and what was trained by the plan before does not go with it; give %s %s again to "
            "keep it",
            *(file_name, like_before, OPTION, OPTION, shlex.quote(str(like_before))),
        )
    if like is None or (like_before is not None and digest == digest_before):
        return dict(changes)
    places = [f"configurations.{FULLRES}.{key}" for key in TAKEN]
    lost = [path for path in changes if any(path == place or path.startswith(f"{place}.") for place in places)]
    for path in lost:
        logger.warning("Warning: %s of %s, changed by hand, gives way to %s", path, file_name, OPTION)
    return {path: value for path, value in changes.items() if path not in lost}
