"""A file in SAM's official format whose values are random: right names, shapes and size, and nothing learned."""

from pathlib import Path

import torch

from sam3dnet.preprocessing.folders import whole_or_nothing

POSITION_SPREAD = 0.02  # the official modules start their position tables at zero, which would hide a wrong one


def write_random_weights(path: Path, encoder: str) -> None:
    """Write what the official modules hold at birth: image encoder, prompt encoder and mask decoder.

    Args:
        path: The file, written whole or not at all.
        encoder: "vit_b", "vit_l" or "vit_h".
    """
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    sam = sam_model_registry[encoder]()
    with torch.no_grad():
        for name, parameter in sam.image_encoder.named_parameters():
            if "pos" in name:
                parameter.normal_(std=POSITION_SPREAD)
    with whole_or_nothing(path) as temporary:
        torch.save(sam.state_dict(), temporary)
