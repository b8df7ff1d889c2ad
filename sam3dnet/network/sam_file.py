"""Look into a file in SAM's format: which encoder it holds, and whether it fits, before anything is built for it."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sam3dnet.errors import CheckpointError
from sam3dnet.network.image_encoder import ImageEncoder3D
from sam3dnet.network.sam_weights import PREFIX, convert_sam_state, read_sam_state
from sam3dnet.network.segmentation import ENCODER_SIZES

_BLOCK = re.compile(re.escape(PREFIX) + r"blocks\.(\d+)\.")


def check_sam_file(path: Path, encoder: str) -> None:
    """Check names and shapes of a file's entries against an encoder; neither takes memory.

    Args:
        path: File in SAM's format.
        encoder: "vit_b", "vit_l" or "vit_h".

    Raises:
        CheckpointError: If the file cannot be read safely, holds another encoder, which is named, or does not fit.
    """
    shapes = {name: value.to("meta") for name, value in read_sam_state(path).items() if name.startswith(PREFIX)}
    held = held_encoder(shapes)
    if held is None:
        raise CheckpointError(
            f"{path}: expected a checkpoint in SAM's format with an encoder of the size {', '.join(sam_encoders())}; "
            "found another kind of file; name an official SAM or MedSAM file, or one that was tuned from it"
        )
    if held != encoder:
        raise CheckpointError(f"{path} holds {held}, not {encoder}; plan with --encoder {held}, or name another file")
    with torch.device("meta"):
        own = ImageEncoder3D(ENCODER_SIZES[encoder], 1, (1, 2, 2), (8, 8, 8))
    try:
        convert_sam_state(shapes, own.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def sam_encoders() -> list[str]:
    """Name the encoders that have SAM's sizes."""
    return [name for name in ENCODER_SIZES if name.startswith("vit_")]


def held_encoder(state: Mapping[str, Tensor]) -> str | None:
    """Name the encoder that a state dict in SAM's format holds, by its width and depth; None if it is none of SAM's."""
    table = state.get(f"{PREFIX}pos_embed")
    blocks = {int(match[1]) for name in state if (match := _BLOCK.match(name))}
    size = None if table is None else (table.shape[-1], len(blocks))
    sizes = {(ENCODER_SIZES[name].width, ENCODER_SIZES[name].depth): name for name in sam_encoders()}
    return None if size is None else sizes.get(size)
