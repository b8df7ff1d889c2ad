"""How many parameters a network has and tunes, part by part."""

from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from sam3dnet.network.image_encoder import LAYER_NORM_EPS, EncoderSize, ImageEncoder3D
from sam3dnet.network.sam_weights import own_name
from sam3dnet.network.segmentation import SegmentationNetwork
from sam3dnet.network.tuning import DEFAULT_TUNING, NECKS, PARTS, encoder_part

IMAGE_ENCODER = "image encoder"
# Tuned parameters of the image encoder (ViT-B) as 3DSAM-adapter's tables give them, in millions.
PUBLISHED_MILLIONS = {
    "spatial-adapter": 15.21,
    "adapter": 7.61,
    "pro-tuning": 7.17,
    "st-adapter": 7.15,
    "med-tuning": 11.10,
    "full": 89.67,
}
# Tuned parameters of 3DSAM-adapter's official code, ViT-B and two classes.
PUBLISHED_PARTS = {IMAGE_ENCODER: 15_209_984, "decoder": 7_088_256, "prompt encoder": 3_164_160, "all": 25_462_400}
SAM_PIXELS, SAM_PATCH, SAM_WINDOW = 1024, 16, 14


@dataclass(frozen=True)
class Count:
    """Parameters of a part: tuned ones, and all."""

    tuned: int
    total: int


def count_parameters(network: SegmentationNetwork) -> dict[str, Count]:
    """Count the parameters of each part of a network.

    Returns:
        "image encoder: adapters" and so on for the parts of the image encoder that there are, "image encoder" for all
        of them, each other module under its name, and "all".
    """
    counts = {f"{IMAGE_ENCODER}: {part}": _count(network, f"image_encoder.{part}") for part in PARTS}
    counts = {name: count for name, count in counts.items() if count.total}
    counts[IMAGE_ENCODER] = _count(network, "image_encoder.")
    others = dict.fromkeys(name.split(".")[0] for name, _ in network.named_parameters())
    counts |= {name.replace("_", " "): _count(network, f"{name}.") for name in others if name != "image_encoder"}
    counts["all"] = _count(network, "")
    return counts


def _count(network: SegmentationNetwork, prefix: str) -> Count:
    tuned = set(network.trainable_names())
    chosen = [(name, p.numel()) for name, p in network.named_parameters() if _part_name(name).startswith(prefix)]
    return Count(sum(number for name, number in chosen if name in tuned), sum(number for _, number in chosen))


def _part_name(name: str) -> str:
    child, _, rest = name.partition(".")
    return f"{child}.{encoder_part(rest)}" if child == "image_encoder" else f"{child}."


def tuned_of_sam(encoder: ImageEncoder3D) -> int:
    """Count how many parameters of SAM's own 2D image encoder are tuned, at the sizes of SAM's own tables.

    This is what the literature counts for full fine-tuning: it depends on no token grid, and of the neck, which is
    inflated here, SAM's own parameters count once.

    Args:
        encoder: An image encoder that would get SAM's weights.
    """
    tuned = set(encoder.trained_names())
    official = official_encoder(encoder.size)
    return sum(p.numel() for name, p in official.named_parameters() if own_name(name) in tuned)


def literature_count(network: SegmentationNetwork, tuning: str) -> int:
    """Count the tuned parameters of the image encoder as 3DSAM-adapter's table of tuning methods does.

    That table counts the necks for the spatial adapter alone, and for full fine-tuning SAM's own 2D encoder.

    Args:
        network: With an image encoder that would get SAM's weights.
        tuning: Name of the tuning method.
    """
    if tuning == "full":
        return tuned_of_sam(network.image_encoder)
    counts = count_parameters(network)
    necks = 0 if tuning == DEFAULT_TUNING else counts[f"{IMAGE_ENCODER}: {NECKS}"].tuned
    return counts[IMAGE_ENCODER].tuned - necks


def official_encoder(size: EncoderSize) -> nn.Module:
    """Build SAM's own 2D image encoder of a size from `segment_anything`, without memory for its weights."""
    with torch.device("meta"):
        return ImageEncoderViT(
            img_size=SAM_PIXELS,
            patch_size=SAM_PATCH,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
            use_rel_pos=True,
            global_attn_indexes=size.global_blocks,
            window_size=SAM_WINDOW,
            out_chans=size.neck_width,
        )
