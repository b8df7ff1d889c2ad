"""Train sam3dnet with a part of it changed, for ablations; `real_sets.py --methods sam3d-VARIANT` calls it.

    python benchmarks/variants.py VARIANT -- DATASET fold0 --minutes 20 --root DIR

The rest of the line is that of sam3d_train. What is trained lies in the usual folders, and predicts only by this
command's own validation, since the network that sam3d_predict makes knows no variant where one changes its parts.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import nn

from sam3dnet.cli import train
from sam3dnet.network.image_encoder import ImageEncoder3D, TransformerBlock3D
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.training import optimizer
from sam3dnet.training.trainer import nnUNetTrainerSAM3D


def leave_blocks(encoder: ImageEncoder3D, left: Iterable[int]) -> None:
    """Put the identity in the place of all blocks but these; embeddings, necks, stem and decoder stay."""
    kept = set(left)
    for index in range(len(encoder.blocks)):
        if index not in kept:
            encoder.blocks[index] = nn.Identity()


def start_at_identity(encoder: ImageEncoder3D) -> None:
    """Let every block begin as the identity: what it adds starts at zero."""
    for block in encoder.blocks:
        if not isinstance(block, TransformerBlock3D):
            continue
        for layer in (block.attn.proj, block.mlp["lin2"]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def half_from_identity(encoder: ImageEncoder3D) -> None:
    """Keep every second block, and let it begin as the identity."""
    leave_blocks(encoder, range(1, len(encoder.blocks), 2))
    start_at_identity(encoder)


def leave_adapters_out(encoder: ImageEncoder3D) -> None:
    """Take the adapters out of all blocks: they tune SAM's weights, and here there are none."""
    for block in encoder.blocks:
        for name in ("adapter", "attention_adapter", "mlp_adapter", "exit_adapter"):
            setattr(block, name, nn.Identity())


Change = Callable[[ImageEncoder3D], None]
VARIANTS: Mapping[str, Change] = MappingProxyType(
    {
        "no-blocks": lambda encoder: leave_blocks(encoder, ()),
        "every-second": lambda encoder: leave_blocks(encoder, range(1, len(encoder.blocks), 2)),
        "last-half": lambda encoder: leave_blocks(encoder, range(len(encoder.blocks) // 2, len(encoder.blocks))),
        "last-two": lambda encoder: leave_blocks(encoder, range(len(encoder.blocks) - 2, len(encoder.blocks))),
        "zero-start": start_at_identity,
        "every-second-zero-start": half_from_identity,
        "no-adapters": leave_adapters_out,
        "as-is": lambda _encoder: None,
    }
)
RATES = MappingProxyType({"rate-1e-3": 1e-3, "rate-2e-3": 2e-3, "rate-5e-3": 5e-3})  # of all that starts at random


def without_intensities(transforms: ComposeTransforms) -> ComposeTransforms:
    """Leave out what changes grey values: noise, blur, brightness, contrast, low resolution, gamma."""
    return ComposeTransforms([one for one in transforms.transforms if not isinstance(one, RandomTransform)])


def only_mirrored(transforms: ComposeTransforms) -> ComposeTransforms:
    """Leave out rotation and scaling, too."""
    for one in transforms.transforms:
        if isinstance(one, SpatialTransform):
            one.p_rotation = one.p_scaling = one.p_elastic_deform = 0
    return without_intensities(transforms)


AUGMENTATIONS: Mapping[str, Callable[[ComposeTransforms], ComposeTransforms]] = MappingProxyType(
    {"spatial-only": without_intensities, "mirror-only": only_mirrored}
)


def change_augmentation(variant: str) -> None:
    """Change the transforms of every trainer that is made from now on in this process."""
    as_it_is = nnUNetTrainerSAM3D.get_training_transforms

    def changed(self: nnUNetTrainerSAM3D, *arguments: Any, **options: Any) -> ComposeTransforms:
        return AUGMENTATIONS[variant](as_it_is(self, *arguments, **options))

    nnUNetTrainerSAM3D.get_training_transforms = changed  # type: ignore[method-assign]


def change(variant: str) -> None:
    """Change what training makes: every network that is built from now on in this process, or how it learns."""
    if variant in AUGMENTATIONS:
        change_augmentation(variant)
        return
    if variant in RATES:
        optimizer.LEARNING_RATE_NEW = RATES[variant]
        return
    as_planned = SAM3D.__init__

    def changed(self: SAM3D, *arguments: object, **options: object) -> None:
        as_planned(self, *arguments, **options)  # type: ignore[arg-type]
        VARIANTS[variant](self.image_encoder)

    SAM3D.__init__ = changed  # type: ignore[assignment,method-assign]


ALL = (*VARIANTS, *RATES, *AUGMENTATIONS)


def main() -> int:
    """Change, then train."""
    variant, separator, *line = sys.argv[1:]
    if separator != "--" or variant not in ALL:
        raise SystemExit(f"usage: variants.py {'|'.join(ALL)} -- arguments of sam3d_train")
    change(variant)
    sys.argv = ["sam3d_train", *line]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
