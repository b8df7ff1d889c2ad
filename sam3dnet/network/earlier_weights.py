"""Weights that were stored under other names, by earlier versions."""

import re
from collections.abc import Mapping

from torch import Tensor

REACH = "reaching.seg_layers.reach_K"
_RENAMED = (  # pattern, and what its place takes
    (r"^decoder\.heads\.", "decoder.seg_layers."),
    (r"^decoder\.head\.", "decoder.seg_layers.0."),
    (r"(?<!\.seg_layers)\.class_tokens\.", ".seg_layers.class_tokens."),
    (r"^reach_K$", REACH),
)


def as_named_today(state: Mapping[str, Tensor], network_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights the names that a network has for them; one that it has is left as it is."""
    return {name if name in network_state else _named_today(name): value for name, value in state.items()}


def completed(state: Mapping[str, Tensor], network_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Do as `as_named_today`, and complete weights of before there was a reach."""
    renamed = as_named_today(state, network_state)
    missing = {REACH: network_state[REACH].clone()} if REACH in network_state and REACH not in renamed else {}
    return {**renamed, **missing}


def _named_today(name: str) -> str:
    for pattern, today in _RENAMED:
        name = re.sub(pattern, today, name)
    return name
