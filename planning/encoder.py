"""The choice of the image encoder: SAM's, where its weights can be had and a step is affordable, a small one, or none.

On a CPU steps are few. Trained from scratch there, for 5 to 40 minutes, a transformer's blocks gained neither better
masks nor better answers to clicks, on six of seven real sets (benchmarks/RESULTS.md), and cost a third of the steps; at
equal steps they gained on one of four. So there the network is convolutions alone, unless an encoder is asked for. With
the many steps of a card the convolutions, whose channels are few, may not be enough: that has not been measured, so
there a small encoder is the choice without SAM's weights, and the decision says what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sam3dnet.planning.rules import MEASURED, Decision

# Below this many voxels in the whole dataset a network of the size "small" only learns it by heart.
TINY_DATASET_VOXELS = 1_000_000
# On a CPU time is short, and a step may take up to half as long again as one of the small encoder.
MOST_TIMES_THE_SECONDS = 1.5
WITHOUT = "none"
PRETRAINED = "vit_b"  # of SAM's three the one that is taken unasked
UNPROVEN_FROM_SCRATCH = (
    "; from scratch a transformer's blocks gained nothing over convolutions alone (--encoder none) in 10 to 40 minutes "
    "of a CPU, and in the many steps of a card it has not been measured"
)


@dataclass(frozen=True)
class SamWeights:
    """What there is of SAM's weights for an encoder.

    Attributes:
        record: What the plan says of them: family, name, digest, bytes, and path for a file of the user's own.
        missing: Why they are not here; None if they are.
    """

    record: Mapping[str, Any] | None = None
    missing: str | None = None


# (encoder, asked for by the user) -> what there is of its weights, downloaded if need be.
FindWeights = Callable[[str, bool], SamWeights]


@dataclass(frozen=True)
class EncoderDecision:
    """The choice, its weights, and what the user must be told of it at once; None for nothing."""

    decision: Decision
    weights: Mapping[str, Any] | None = None
    warning: str | None = None


def no_weights(_encoder: str, _asked: bool) -> SamWeights:
    """Find none, for planning that looks for no weights."""
    return SamWeights(missing="none were looked for")


def choose_encoder(
    requested: str,
    dataset_voxels: float,
    find_weights: FindWeights,
    times_the_seconds: Callable[[str, str], float | None],
    needs_transformer: bool = False,
) -> EncoderDecision:
    """Choose the encoder's size and whether it starts from SAM's weights.

    Args:
        requested: "auto" or a size by name.
        dataset_voxels: Voxels of all training images on the planned grid.
        find_weights: Called only where the encoder would be taken with them.
        times_the_seconds: (SAM's encoder, small encoder) -> how many times the seconds a step would take; None
            where they do not matter, on a card.
        needs_transformer: Whether the network cannot do without one.

    Returns:
        A decision whose value is {"encoder": name, "pretrained": bool}, with what goes with it.
    """
    if requested.startswith("vit_"):
        return _asked_for(requested, find_weights(requested, True))
    if requested != "auto":
        return EncoderDecision(Decision("encoder", _value(requested, False), "asked for; trained from scratch", "user"))
    small = "tiny" if dataset_voxels < TINY_DATASET_VOXELS else "small"
    times = times_the_seconds(PRETRAINED, small)
    trained = f"{small!r} is trained whole from scratch ({dataset_voxels / 1e6:.1f} million voxels of training images)"
    scratch = small
    if times is not None and not needs_transformer:
        scratch = WITHOUT
        trained = (
            "no transformer: on a CPU steps are few, and trained from scratch its blocks cost more than they gain; "
            f"--encoder {small} takes them"
        )
    if times is not None and times > MOST_TIMES_THE_SECONDS:
        reason = (
            f"{trained}; a step of {PRETRAINED} with SAM's weights would take {times:.1f} times as long as one of "
            f"{small}, on a CPU; --encoder {PRETRAINED} takes it all the same"
        )
        return EncoderDecision(Decision("encoder", _value(scratch, False), reason, MEASURED))
    weights = find_weights(PRETRAINED, False)
    if weights.missing:
        reason = f"{trained}, where it would have been {PRETRAINED} with SAM's weights: {weights.missing}"
        if times is None and not needs_transformer:
            reason += UNPROVEN_FROM_SCRATCH
        return EncoderDecision(Decision("encoder", _value(scratch, False), reason, "sam3dnet"), warning=reason)
    reason = f"SAM's weights are at hand ({_named(weights)}): its trunk stays frozen, adapters and decoder are trained"
    decision = Decision("encoder", _value(PRETRAINED, True), reason, "3DSAM-adapter (Gong et al. 2024)")
    return EncoderDecision(decision, weights.record)


def _asked_for(encoder: str, weights: SamWeights) -> EncoderDecision:
    reason = f"asked for; trained from SAM's weights{f' ({_named(weights)})' if weights.record else ''}"
    warning = None
    if weights.missing:
        warning = f"{encoder} is planned but its weights are not here, and training needs them: {weights.missing}"
        reason += f"; {warning}"
    return EncoderDecision(Decision("encoder", _value(encoder, True), reason, "user"), weights.record, warning)


def _named(weights: SamWeights) -> str:
    return str((weights.record or {}).get("name"))


def _value(name: str, pretrained: bool) -> dict[str, Any]:
    return {"encoder": name, "pretrained": pretrained}
