"""A plan after that of a trained model, so that training can start from its weights with nothing to be fitted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam3dnet.errors import PlanError
from sam3dnet.planning.fitting import EncoderChoice, Fit
from sam3dnet.planning.methods import DEFAULT_TUNING, METHODS, MethodChoice, Text
from sam3dnet.planning.rules import Decision
from sam3dnet.preprocessing.cases import channel_names

FULLRES = "3d_fullres"


@dataclass(frozen=True, eq=False)
class Likeness:
    """What is taken from the plan of a model: spacing, axes, crop, network, and how channels of the same name look.

    Attributes:
        source: The model's name, for decisions.
        plans: Of the model.
        channels: Names of its channels.

    Raises:
        PlanError: If its plan has no 3d_fullres, or its network is none of ours.
    """

    source: str
    plans: Mapping[str, Any]
    channels: tuple[str, ...]

    def __post_init__(self) -> None:
        if "architecture" not in self.plans.get("configurations", {}).get(FULLRES, {}):
            raise PlanError(f"{self.source}: its plan has no {FULLRES}; plan like another model")
        if self.method is None:
            raise PlanError(
                f"{self.source}: its network, {self.configuration['architecture']['network_class_name']}, is none of "
                "sam3dnet's; plan like another model"
            )

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
        """Its method, and what its network was built with."""
        kwargs = self.configuration["architecture"]["arch_kwargs"]
        return MethodChoice(
            str(self.method),
            kwargs.get("fidelity"),
            kwargs.get("tuning", DEFAULT_TUNING),
            prompts=bool(kwargs.get("prompts", True)),
            text=self._text(kwargs.get("text")),
        )

    def _text(self, embeddings: list[list[list[float]]] | None) -> Text | None:
        block = self.plans.get("sam3d", {})
        phrases = [one["value"] for one in block.get("decisions", []) if one["name"] == "text" and one["value"]]
        return None if embeddings is None else Text(tuple(*phrases[:1]), str(block.get("text_model")), embeddings)

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

    def fit(self, step_bytes: Callable[[dict[str, Any]], int]) -> Fit:
        """Give its network.

        Args:
            step_bytes: Measures a step of the smallest batch.
        """
        kwargs = dict(self.configuration["architecture"]["arch_kwargs"])
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
        for number, name in enumerate(names):
            if name in self.channels:
                at = self.channels.index(name)
                chosen[number], masked[number] = str(theirs[0][at]), bool(theirs[1][at])
        return chosen, masked

    def intensities(self, names: Sequence[str], own: Mapping[str, Any]) -> dict[str, Any]:
        """Take over the intensities that channels of the same name are normalised by."""
        theirs = list(self.plans["foreground_intensity_properties_per_channel"].values())
        taken = dict(own)
        for key, name in zip(own, names, strict=True):
            if name in self.channels:
                taken[key] = dict(theirs[self.channels.index(name)])
        return taken

    def _decision(self, name: str, value: Any) -> Decision:
        return Decision(name, value, f"as in {self.source}", "user")


def likeness_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> Likeness:
    """Give what is taken from a model, by its plan and the dataset.json of its training.

    Raises:
        PlanError: As of `Likeness`.
    """
    source = f"the model of {plans.get('dataset_name', 'an unnamed dataset')}"
    return Likeness(source, plans, tuple(str(name) for name in channel_names(dataset_json).values()))
