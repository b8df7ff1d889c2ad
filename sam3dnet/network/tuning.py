"""How an image encoder is tuned: which modules are put where in every block, and which of its parts are trained.

All methods go through this one table; a block only knows the places.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch.nn.functional as F
from torch import nn

from sam3dnet.errors import PlanError
from sam3dnet.network.adapters import BottleneckAdapter, ConvAdapter, LowRankUpdate, MultiScaleAdapter

DEFAULT_TUNING = "spatial-adapter"

# Places in a block; a module there is found under this name, and no other parameter's name contains "adapter.".
ENTRANCE, AFTER_ATTENTION, AFTER_MLP, EXIT = "adapter", "attention_adapter", "mlp_adapter", "exit_adapter"
QKV = "qkv_adapter"  # inside the attention; what it returns is added to queries, keys and values

ADAPTERS = "adapters"
CHANNEL_MIX = "channel mix"
DEPTH_CONV = "depth convolution"
DEPTH_TABLE = "depth table"
DEPTH_RELATIVE = "depth relative position"
LAYER_NORMS = "layer norms"
NECKS = "necks"
NEW_PATCH_EMBEDDING = "new patch embedding"
TRUNK = "trunk"  # what else comes from SAM: patch kernel, position tables, attention, MLPs

PARTS = (
    ADAPTERS,
    CHANNEL_MIX,
    DEPTH_CONV,
    DEPTH_TABLE,
    DEPTH_RELATIVE,
    LAYER_NORMS,
    NECKS,
    NEW_PATCH_EMBEDDING,
    TRUNK,
)
# The first that matches a name, from the encoder on, says its part.
_MARKS = (
    ("adapter.", ADAPTERS),
    ("patch_embed.channel_mix", CHANNEL_MIX),
    ("patch_embed.depth_", DEPTH_CONV),
    ("patch_embed.proj.", TRUNK),
    ("patch_embed.", NEW_PATCH_EMBEDDING),
    ("depth_pos_embed", DEPTH_TABLE),
    (".rel_pos_d", DEPTH_RELATIVE),
    ("necks.", NECKS),
    (".norm1.", LAYER_NORMS),
    (".norm2.", LAYER_NORMS),
)
_ALWAYS = frozenset({NECKS, NEW_PATCH_EMBEDDING})  # these do not come from SAM and do not start as the identity
_DEPTH = _ALWAYS | {CHANNEL_MIX, DEPTH_CONV, DEPTH_TABLE}

Factory = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Tuning:
    """One way to tune a pretrained encoder.

    Attributes:
        source: The paper.
        trained: Parts of the encoder that are trained.
        modules: Place in every block -> (token width, bottleneck) -> the module put there.
    """

    source: str
    trained: frozenset[str]
    modules: Mapping[str, Factory] = field(default_factory=dict)

    def make(self, place: str, width: int, bottleneck: int) -> nn.Module | None:
        """Make the module for a place of a block; None if nothing is put there."""
        factory = self.modules.get(place)
        return None if factory is None else factory(width, bottleneck)


def _narrow_adapter(width: int, bottleneck: int) -> nn.Module:
    return BottleneckAdapter(width, bottleneck // 2)  # two a block: together as wide as the one of other methods


def _low_rank_update(width: int, _bottleneck: int) -> nn.Module:
    return LowRankUpdate(width)


TUNINGS: dict[str, Tuning] = {
    "spatial-adapter": Tuning(
        "3DSAM-adapter (Gong et al. 2024)", _DEPTH | {ADAPTERS, DEPTH_RELATIVE, LAYER_NORMS}, {ENTRANCE: ConvAdapter}
    ),
    "adapter": Tuning(
        "Houlsby et al. 2019",
        _DEPTH | {ADAPTERS, LAYER_NORMS},
        {AFTER_ATTENTION: _narrow_adapter, AFTER_MLP: _narrow_adapter},
    ),
    "pro-tuning": Tuning(
        "Pro-tuning (Nie et al. 2022)",
        _DEPTH | {ADAPTERS},
        {EXIT: partial(ConvAdapter, kernel=(1, 3, 3), bias=False)},
    ),
    "st-adapter": Tuning(
        "ST-Adapter (Pan et al. 2022)",
        _DEPTH | {ADAPTERS},
        {ENTRANCE: partial(ConvAdapter, kernel=(3, 1, 1), before=None, after=F.gelu)},
    ),
    "med-tuning": Tuning("Med-Tuning (Shen et al. 2023)", _DEPTH | {ADAPTERS}, {ENTRANCE: MultiScaleAdapter}),
    "lora": Tuning("LoRA (Hu et al. 2021)", _DEPTH | {ADAPTERS}, {QKV: _low_rank_update}),
    "layernorm": Tuning("layer norms alone", _DEPTH | {LAYER_NORMS}),
    "full": Tuning("full fine-tuning", frozenset(PARTS)),
    "frozen": Tuning("frozen encoder", _ALWAYS),
}


def find_tuning(name: str) -> Tuning:
    """Give a tuning method by its name.

    Raises:
        PlanError: If there is none of that name.
    """
    if name not in TUNINGS:
        raise PlanError(f"tuning {name!r} in the plan: expected one of {', '.join(TUNINGS)}; plan again")
    return TUNINGS[name]


def encoder_part(name: str) -> str:
    """Say which part of an image encoder a parameter belongs to, from its name within the encoder."""
    return next((part for mark, part in _MARKS if mark in name), TRUNK)
