"""Decisions that are not choices, but that users read beside them."""

from __future__ import annotations

from collections.abc import Sequence

from sam3dnet.planning.plan import MEMORY_DECISION
from sam3dnet.planning.rules import MEASURED, NNUNET, Decision


def normalization_decision(schemes: Sequence[str]) -> Decision:
    """Say how the channels are normalised."""
    reason = "by channel name: CT gets a fixed window, all others their own mean and deviation unless named otherwise"
    return Decision("normalization_schemes", list(schemes), reason, NNUNET)


def memory_decision(step_bytes: int) -> Decision:
    """Say what a step takes, as measured."""
    reason = "parameters, optimiser, and the peak of forward and backward, traced without running a kernel"
    return Decision(MEMORY_DECISION, f"{step_bytes / 1e9:.2f} GB", reason, "sam3dnet")


def time_decision(step_seconds: float) -> Decision:
    """Say how long a step takes, as estimated."""
    reason = "estimated, without running a kernel, for one core such as that which the estimate was measured on"
    return Decision("time of a step", f"{step_seconds:.2g} s", reason, MEASURED)


def sides_decision(pairs: Sequence[tuple[str, str]]) -> Decision:
    """Say which classes are swapped in mirrored images."""
    reason = "each is the mirror image of the other, so that mirrored images have their labels swapped"
    return Decision("sides", [" and ".join(pair) for pair in pairs], reason, "sam3dnet")
