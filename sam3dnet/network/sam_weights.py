"""SAM's 2D weights in the 3D network: from one state dict to another, and what is allowed to stay untouched."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sam3dnet.errors import CheckpointError
from sam3dnet.network.attention import fit_relative_table
from sam3dnet.network.image_encoder import ImageEncoder3D, resize_position_table
from sam3dnet.network.tuning import (
    ADAPTERS,
    CHANNEL_MIX,
    DEPTH_CONV,
    DEPTH_RELATIVE,
    DEPTH_TABLE,
    NECKS,
    NEW_PATCH_EMBEDDING,
    encoder_part,
)

PREFIX = "image_encoder."
PATCH_KERNEL = "patch_embed.proj."
LAST_NECK = "necks.3."
NECK_NAMES = {
    "neck.0.": LAST_NECK + "conv1.",
    "neck.1.": LAST_NECK + "norm1.",
    "neck.2.": LAST_NECK + "conv2.",
    "neck.3.": LAST_NECK + "norm2.",
}
ResizeTable = Callable[[Tensor, tuple[int, int]], Tensor]
# What SAM's encoder does not have; these parts keep their initial values, under which ours computes what SAM's does.
NEW_PARTS = frozenset({ADAPTERS, CHANNEL_MIX, DEPTH_CONV, DEPTH_TABLE, DEPTH_RELATIVE, NECKS, NEW_PATCH_EMBEDDING})


def is_new(name: str) -> bool:
    """Tell whether a parameter of our image encoder has no counterpart in SAM's."""
    return encoder_part(name) in NEW_PARTS and not name.startswith(LAST_NECK)


def convert_sam_state(
    sam_state: Mapping[str, Tensor], own_state: Mapping[str, Tensor], resize_table: ResizeTable = resize_position_table
) -> dict[str, Tensor]:
    """Translate SAM's image encoder into ours.

    The absolute position table is resampled to our token grid, relative tables are fitted by their central rows, the
    neck's 3x3 kernel becomes the mean over three slices. SAM's patch kernel is left out where ours has another patch
    embedding in its place.

    Args:
        sam_state: State dict of SAM (`image_encoder.*`, other entries are ignored), as in the official checkpoints.
        own_state: State dict of our ImageEncoder3D, for the shapes.
        resize_table: (position table (H, W, E), grid) -> table (*grid, E).

    Returns:
        The entries of our state dict that SAM provides.

    Raises:
        CheckpointError: If an entry has another shape than this encoder size needs, or one is missing.
    """
    converted = {}
    replaced = any(encoder_part(name) == NEW_PATCH_EMBEDDING for name in own_state)
    for name, value in sam_state.items():
        if not name.startswith(PREFIX) or (replaced and name.startswith(PREFIX + PATCH_KERNEL)):
            continue
        ours, own_value = _translate(name.removeprefix(PREFIX), value, own_state, resize_table)
        if ours not in own_state or own_value.shape != own_state[ours].shape:
            expected = tuple(own_state[ours].shape) if ours in own_state else "no such part"
            raise CheckpointError(
                f"SAM weights: {name} has shape {tuple(value.shape)}, this encoder has {expected} for it; "
                "use the checkpoint of the encoder that the plan names"
            )
        converted[ours] = own_value
    missing = [name for name in own_state if name not in converted and not is_new(name)]
    if missing:
        raise CheckpointError(
            f"SAM weights: {len(missing)} entries are missing, the first is {PREFIX}{missing[0]}; expected an official "
            "SAM or MedSAM checkpoint of the plan's encoder"
        )
    return converted


def own_name(name: str) -> str:
    """Give our name for a parameter of SAM's image encoder, both without the prefix."""
    for theirs, ours in NECK_NAMES.items():
        if name.startswith(theirs):
            return name.replace(theirs, ours)
    return name


def _translate(
    name: str, value: Tensor, own_state: Mapping[str, Tensor], resize_table: ResizeTable
) -> tuple[str, Tensor]:
    ours = own_name(name)
    if name == "pos_embed" and value.ndim == 4:
        return ours, resize_to_table(value, own_state[ours], resize_table)
    if name.endswith(("rel_pos_h", "rel_pos_w")) and name in own_state:
        return ours, fit_relative_table(value, (own_state[ours].shape[0] + 1) // 2)
    return ours, _inflate(value) if ours != name else value


def resize_to_table(value_1HWE: Tensor, own_1HWE: Tensor, resize_table: ResizeTable) -> Tensor:
    """Resample SAM's position table (1, H, W, E) to the grid of ours; returned as it is where they agree."""
    if value_1HWE.shape == own_1HWE.shape:
        return value_1HWE
    grid = (own_1HWE.shape[1], own_1HWE.shape[2])
    return resize_table(value_1HWE[0], grid)[None]


def _inflate(value: Tensor) -> Tensor:
    if value.ndim != 4:
        return value
    depth = value.shape[-1]
    return value[:, :, None].repeat(1, 1, depth, 1, 1) / depth


def load_sam_weights(encoder: nn.Module, path: Path) -> None:
    """Load a checkpoint in SAM's format into an image encoder.

    Args:
        encoder: The image encoder of a SAM3D network.
        path: The file, see `read_sam_state`.

    Raises:
        CheckpointError: If the file cannot be read safely or does not fit.
    """
    state = read_sam_state(path)
    assert isinstance(encoder, ImageEncoder3D)
    try:
        converted = convert_sam_state(state, encoder.state_dict(), encoder.parts.resize_table)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    encoder.load_state_dict(converted, strict=False)
    encoder.parts.after_loading(encoder)


def read_sam_state(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint in SAM's format; its values stay in the file until they are used, if its format allows that.

    Args:
        path: A state dict, or one under "model" (as MedSAM's training script writes).

    Raises:
        CheckpointError: If the file cannot be read safely.
    """
    try:
        content = _load(path)
    except Exception as error:  # torch raises whatever its unpickler met
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a readable SAM checkpoint ({reason}); get the file again") from error
    state = content.get("model", content) if isinstance(content, dict) else {}
    entries = state.items() if isinstance(state, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)  # as torch wrote files before version 1.6
