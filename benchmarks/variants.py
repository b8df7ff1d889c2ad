"""Train sam3dnet with a part of it changed, for ablations; `real_sets.py --methods sam3d-VARIANT` calls it.

    python benchmarks/variants.py VARIANT -- DATASET fold0 --minutes 20 --root DIR

The rest of the line is that of sam3d_train. What is trained lies in the usual folders. Where a variant changes parts of
the network it predicts only by this command's own validation, since the network that sam3d_predict makes knows nothing
of it; "no-blocks" changes the plan, and is a model as any other.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import nn

from sam3dnet.cli import train
from sam3dnet.network.image_encoder import ImageEncoder3D, TransformerBlock3D
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.training import asked, optimizer
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


LEAST_HARD = 0.1  # what a class with Dice 1 still counts
Change = Callable[[ImageEncoder3D], None]
VARIANTS: Mapping[str, Change] = MappingProxyType(
    {
        "every-second": lambda encoder: leave_blocks(encoder, range(1, len(encoder.blocks), 2)),
        "last-half": lambda encoder: leave_blocks(encoder, range(len(encoder.blocks) // 2, len(encoder.blocks))),
        "last-two": lambda encoder: leave_blocks(encoder, range(len(encoder.blocks) - 2, len(encoder.blocks))),
        "zero-start": start_at_identity,
        "every-second-zero-start": half_from_identity,
        "no-adapters": leave_adapters_out,
        "as-is": lambda _encoder: None,
    }
)
# Of all that starts at random.
RATES = MappingProxyType({"rate-3e-4": 3e-4, "rate-1e-3": 1e-3, "rate-2e-3": 2e-3, "rate-5e-3": 5e-3})


def without_intensities(transforms: ComposeTransforms) -> ComposeTransforms:
    """Leave out what changes grey values: noise, blur, brightness, contrast, low resolution, gamma."""
    return ComposeTransforms([one for one in transforms.transforms if not isinstance(one, RandomTransform)])


def only_mirrored(transforms: ComposeTransforms) -> ComposeTransforms:
    """Leave out rotation and scaling, too."""
    for one in transforms.transforms:
        if isinstance(one, SpatialTransform):
            one.p_rotation = one.p_scaling = one.p_elastic_deform = 0
    return without_intensities(transforms)


def more_spatial(transforms: ComposeTransforms) -> ComposeTransforms:
    """Turn and scale every second crop in place of every fifth, and bend every third."""
    for one in transforms.transforms:
        if isinstance(one, SpatialTransform):
            one.p_rotation = one.p_scaling = 0.5
    return bent(transforms)


def bent(transforms: ComposeTransforms) -> ComposeTransforms:
    """Bend every third crop: smooth displacements of up to a twelfth of its shortest edge."""
    for one in transforms.transforms:
        if isinstance(one, SpatialTransform):
            one.p_elastic_deform = 1 / 3
            one.elastic_deform_scale = (0.1, 0.25)  # of the edges: the width of the Gaussian
            one.elastic_deform_magnitude = (0, min(one.patch_size) / 12)  # voxels
    return transforms


AUGMENTATIONS: Mapping[str, Callable[[ComposeTransforms], ComposeTransforms]] = MappingProxyType(
    {
        "spatial-only": without_intensities,
        "mirror-only": only_mirrored,
        "elastic": bent,
        "more-spatial": more_spatial,
    }
)


def change_augmentation(variant: str) -> None:
    """Change the transforms of every trainer that is made from now on in this process."""
    as_it_is = nnUNetTrainerSAM3D.get_training_transforms

    def changed(self: nnUNetTrainerSAM3D, *arguments: Any, **options: Any) -> ComposeTransforms:
        return AUGMENTATIONS[variant](as_it_is(self, *arguments, **options))

    nnUNetTrainerSAM3D.get_training_transforms = changed  # type: ignore[method-assign]


class HardClassesLoader(nnUNetDataLoader):
    """Centres crops on a class the more often the worse it is segmented, in place of each class as often."""

    dice: ClassVar[dict[int, float]] = {}  # of each class so far, from 0 to 1

    def get_bbox(self, data_shape: Any, force_fg: bool, class_locations: Any, *rest: Any, **options: Any) -> Any:
        """Choose the class, then as nnU-Net."""
        there = [one for one in class_locations or () if one in self.dice and len(class_locations[one])]
        if force_fg and there:
            weights = np.array([LEAST_HARD + 1 - self.dice[one] for one in there])
            options["overwrite_class"] = there[np.random.choice(len(there), p=weights / weights.sum())]
        return super().get_bbox(data_shape, force_fg, class_locations, *rest, **options)


def sample_hard_classes() -> None:
    """Let the classes of crops follow the Dice of the last epoch; for trainings whose loader runs in this process."""
    make_loaders, end_epoch = nnUNetTrainerSAM3D.get_dataloaders, nnUNetTrainerSAM3D.on_epoch_end

    def loaders(self: nnUNetTrainerSAM3D) -> tuple:
        made = make_loaders(self)
        loader = made[0].data_loader
        loader.__class__ = HardClassesLoader
        HardClassesLoader.dice = dict.fromkeys(self.label_manager.foreground_labels, 0.0)
        return made

    def at_the_end(self: nnUNetTrainerSAM3D) -> None:
        found = self.logger.get_value("dice_per_class_or_region", step=-1)
        for label, dice in zip(self.label_manager.foreground_labels, found, strict=True):
            HardClassesLoader.dice[label] = float(np.nan_to_num(dice))
        end_epoch(self)

    nnUNetTrainerSAM3D.get_dataloaders = loaders  # type: ignore[method-assign]
    nnUNetTrainerSAM3D.on_epoch_end = at_the_end  # type: ignore[method-assign]


def sample_foreground(share: float) -> None:
    """Centre this share of the crops on a class, drawn for each crop."""
    initialize = nnUNetTrainerSAM3D.initialize

    def changed(self: nnUNetTrainerSAM3D) -> None:
        self.probabilistic_oversampling, self.oversample_foreground_percent = True, share
        initialize(self)
        self.oversample_foreground_percent = share

    nnUNetTrainerSAM3D.initialize = changed  # type: ignore[method-assign]


SAMPLING: Mapping[str, Callable[[], None]] = MappingProxyType(
    {"hard-classes": sample_hard_classes, "foreground-75": lambda: sample_foreground(0.75)}
)


def without_transformer() -> None:
    """Train by the plan that there is, but with the encoder "none"."""
    read = asked.read_plan

    def changed(*arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        plans, dataset_json = read(*arguments)
        for configuration in plans["configurations"].values():
            if "architecture" in configuration:
                configuration["architecture"]["arch_kwargs"] |= {"encoder": "none", "pretrained": False}
        return plans, dataset_json

    asked.read_plan = changed


PLANS: Mapping[str, Callable[[], None]] = MappingProxyType({"no-blocks": without_transformer})


def change(variant: str) -> None:
    """Change what training makes: every network that is built from now on in this process, or how it learns."""
    if variant in PLANS:
        PLANS[variant]()
        return
    if variant in SAMPLING:
        SAMPLING[variant]()
        return
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


ALL = (*VARIANTS, *PLANS, *RATES, *AUGMENTATIONS, *SAMPLING)


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
