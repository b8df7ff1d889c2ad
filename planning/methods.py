"""The methods that can be planned: which network a plan names, and what the choice adds to its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sam3dnet.errors import PlanError
from sam3dnet.planning.rules import Decision

DEFAULT_METHOD = "sam3d"
TEXT_METHOD = "refsam3d"
DEFAULT_FIDELITY = "corrected"
DEFAULT_TUNING = "spatial-adapter"
DEFAULT_PLANS_NAME = "SAM3DPlans"


@dataclass(frozen=True)
class Method:
    """A network and its paper.

    Attributes:
        network_class: Where the class is, for a plan.
        source: The paper, for the plan's decisions.
        fidelities: Ways to build it, the default first; empty where there is one.
        answers_prompts: Whether it can answer clicks and boxes.
        finest_strides: Token strides to try for the finest axis, best first; None leaves them to the rules.
        peer: Name of another package's network; it has no encoder of ours.
        crop_multiple: Crops are planned in multiples of so many voxels; a peer pads all else, and pays for it.
        fits_grid: Whether the network can be asked for windows of attention that fit the token grid, and for kernels
            that fit thick slices.
    """

    network_class: str
    source: str
    fidelities: tuple[str, ...] = ()
    answers_prompts: bool = False
    finest_strides: tuple[int, ...] | None = None
    peer: str | None = None
    crop_multiple: int = 1
    fits_grid: bool = False


PEER_CLASS = "sam3dnet.network.peers.PeerNetwork"
CUSTOM_METHOD = "network"  # with MethodChoice.network

METHODS = {
    DEFAULT_METHOD: Method("sam3dnet.network.sam3d.SAM3D", "sam3dnet", answers_prompts=True, fits_grid=True),
    "3dsam-adapter": Method(
        "sam3dnet.network.published.adapter3dsam.Adapter3DSAM",
        "3DSAM-adapter (Gong et al. 2024)",
        (DEFAULT_FIDELITY, "as-published"),
        answers_prompts=True,
        finest_strides=(4,),
    ),
    TEXT_METHOD: Method(
        "sam3dnet.network.published.refsam3d.RefSAM3D", "RefSAM3D (Gao & Lu 2025)", finest_strides=(16,)
    ),
    "3dmedsam": Method(
        "sam3dnet.network.published.medsam3d.MedSAM3D", "3DMedSAM (Lin et al. 2025), after the abstract"
    ),
    "swin-unetr": Method(
        PEER_CLASS, "Swin-UNETR (Hatamizadeh et al. 2022), MONAI's", peer="swin-unetr", crop_multiple=32
    ),
    "unetr": Method(PEER_CLASS, "UNETR (Hatamizadeh et al. 2022), MONAI's", peer="unetr", crop_multiple=16),
    "segresnet": Method(PEER_CLASS, "SegResNet (Myronenko 2018), MONAI's", peer="segresnet", crop_multiple=8),
    "primus": Method(PEER_CLASS, "Primus (Wald et al. 2025), nnU-Net's", peer="primus", crop_multiple=8),
    CUSTOM_METHOD: Method(PEER_CLASS, "the user's", peer=CUSTOM_METHOD, crop_multiple=32),
}
NETWORK_CLASSES = tuple(method.network_class for method in METHODS.values())
FORMER_NETWORK_CLASSES = ("sam3dnet.network.build.SAM3D",)  # of plans that were made before


@dataclass(frozen=True)
class Text:
    """The phrases of the outputs, embedded.

    Attributes:
        phrases: One an output.
        model: The text encoder's name.
        embeddings: For each phrase the words and then the sentence, filled up with zeros.
    """

    phrases: tuple[str, ...]
    model: str
    embeddings: list[list[list[float]]] = field(repr=False)


@dataclass(frozen=True)
class MethodChoice:
    """What is to be planned.

    Attributes:
        name: Of the method.
        fidelity: How true to the paper, where there is a choice; None for the default.
        tuning: How an encoder with SAM's weights is tuned.
        prompts: Whether clicks and boxes shall be answered, where the method can.
        text: The phrase of every output, for refsam3d; None where there is no text encoder.
        network: package.module:Class of an installed package, for the method "network".

    Raises:
        PlanError: If there is no such method or fidelity, or the choices do not go together.
    """

    name: str = DEFAULT_METHOD
    fidelity: str | None = None
    tuning: str = DEFAULT_TUNING
    prompts: bool = True
    text: Text | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise PlanError(f"method {self.name!r} is unknown; expected one of {', '.join(METHODS)}")
        if self.fidelity is not None and self.fidelity not in self.method.fidelities:
            known = ", ".join(self.method.fidelities) or "none to choose from"
            raise PlanError(f"method {self.name} has no fidelity {self.fidelity!r}; it has {known}")
        if self.method.peer and self.tuning != DEFAULT_TUNING:
            raise PlanError(
                f"method {self.name} has no image encoder to be tuned by {self.tuning!r}; leave out the tuning"
            )
        if self.text is not None and self.name != TEXT_METHOD:
            raise PlanError(f"method {self.name} reads no text; plan {TEXT_METHOD} for it")
        if (self.name == CUSTOM_METHOD) != (self.network is not None):
            raise PlanError("a network of your own needs both --method network and --network package.module:Class")

    @property
    def method(self) -> Method:
        """The network and its paper."""
        return METHODS[self.name]

    @property
    def answers_prompts(self) -> bool:
        """Whether the planned network answers clicks and boxes."""
        return self.prompts and self.method.answers_prompts

    @property
    def plans_name(self) -> str:
        """Name of the plan: SAM3DPlans, and what differs from the default."""
        parts = [DEFAULT_PLANS_NAME]
        own = self.network.rpartition(":")[2] if self.network else self.name
        parts += [own] if self.name != DEFAULT_METHOD else []
        parts += [self.fidelity] if self.fidelity not in (None, DEFAULT_FIDELITY) else []
        parts += [self.tuning] if self.tuning != DEFAULT_TUNING else []
        parts += ["automatic"] if self.name != DEFAULT_METHOD and self.prompts < self.method.answers_prompts else []
        return "_".join(part for part in parts if part)

    def network_options(self, regions: bool) -> dict[str, Any]:
        """Give the arguments of the network that depend on the choice and not on the budget.

        Args:
            regions: Whether the dataset's outputs are independent regions.
        """
        options: dict[str, Any] = {}
        if self.method.answers_prompts:
            options["prompts"] = self.prompts
        if self.method.fits_grid:
            options["fitted_windows"] = True
        if self.tuning != DEFAULT_TUNING:
            options["tuning"] = self.tuning
        if self.method.fidelities:
            options |= {"fidelity": self.fidelity or self.method.fidelities[0], "regions": regions}
        if self.text is not None:
            options["text"] = self.text.embeddings
        if self.method.peer:
            options["network"] = self.network or self.method.peer
        return options

    def decisions(self) -> list[Decision]:
        """Say what was asked for."""
        source = self.method.source
        decisions = [Decision("method", self.name, "asked for with --method, or the default", source)]
        if self.method.fidelities:
            fidelity = self.fidelity or self.method.fidelities[0]
            decisions.append(Decision("fidelity", fidelity, "with the paper's defects, or without them", source))
        if self.tuning != DEFAULT_TUNING:
            reason = "how an image encoder with SAM's weights is tuned; from scratch it is trained whole"
            decisions.append(Decision("tuning", self.tuning, reason, "user"))
        if self.text is not None:
            reason = f"what each output is asked for by, embedded by {self.text.model}"
            decisions.append(Decision("text", list(self.text.phrases), reason, source))
        elif self.name == TEXT_METHOD:
            reason = "without CLIP's weights the classes have learned embeddings: the network will know no words"
            decisions.append(Decision("text", None, reason, source))
        return decisions
