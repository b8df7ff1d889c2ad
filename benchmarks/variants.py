"""Train sam3dnet with a part of it changed, for ablations; `real_sets.py --methods sam3d-VARIANT` calls it.

    python benchmarks/variants.py VARIANT -- DATASET fold0 --minutes 20 --root DIR

The rest of the line is that of sam3d_train. What is trained lies in the usual folders. Where a variant changes parts of
the network it predicts only by this command's own validation, since the network that sam3d_predict makes knows nothing
of it; "no-blocks", "no-prompts" and "finer-tokens" change the plan, and are models as any other.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from scipy import ndimage
from torch import Tensor, nn

from sam3dnet.cli import train
from sam3dnet.network.image_encoder import ImageEncoder3D, TransformerBlock3D
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.training import asked, optimizer, trainer
from sam3dnet.training.drawing import finest
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
TOUCHING = np.ones((3, 3, 3))  # what makes voxels one object
PLACES_OF_AN_OBJECT = 200
OBJECTS_WEIGHT = 0.5  # half of the loss as it is, as in the publication
SMALL_UNTIL = 0.7  # of the training
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


class EachObjectAsOften:
    """Loads cases as a dataset does, with as many places to centre a crop on in each object of a class.

    nnU-Net draws them from all voxels of a class, and so large objects more often than small ones.

    Args:
        load_case: Of a dataset of nnU-Net's.
    """

    def __init__(self, load_case: Callable[[str], tuple]) -> None:
        self._load_case = load_case
        self._places: dict[str, dict[Any, np.ndarray]] = {}

    def __call__(self, name: str) -> tuple:
        """Load a case; its places are drawn once."""
        data, labels_CZYX, previous, properties = self._load_case(name)
        classes = properties["class_locations"]
        if name not in self._places:
            labels_ZYX = np.asarray(labels_CZYX[0])
            self._places[name] = {one: places_of_objects(np.isin(labels_ZYX, one)) for one in classes}
        return data, labels_CZYX, previous, {**properties, "class_locations": self._places[name]}


def places_of_objects(mask_ZYX: np.ndarray) -> np.ndarray:
    """Draw as many voxels of each object of a mask: (N, 4), before the axes a zero, as nnU-Net has them."""
    objects_ZYX, number = ndimage.label(mask_ZYX, TOUCHING)
    voxels_V3 = np.argwhere(mask_ZYX)
    of_object_V = objects_ZYX[mask_ZYX]
    ends = np.cumsum(np.bincount(of_object_V, minlength=number + 1))
    by_object = np.argsort(of_object_V, kind="stable")
    drawn = [np.random.randint(start, end, PLACES_OF_AN_OBJECT) for start, end in pairwise(ends)]
    places_N3 = voxels_V3[by_object[np.concatenate(drawn)]] if drawn else np.empty((0, 3), dtype=int)
    return np.pad(places_N3, ((0, 0), (1, 0)))


def sample_objects() -> None:
    """Centre crops on each object of a class as often."""
    make = nnUNetTrainerSAM3D.get_tr_and_val_datasets

    def changed(self: nnUNetTrainerSAM3D) -> tuple[Any, Any]:
        training, validation = make(self)
        training.load_case = EachObjectAsOften(training.load_case)
        return training, validation

    nnUNetTrainerSAM3D.get_tr_and_val_datasets = changed  # type: ignore[method-assign]


SAMPLING: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "hard-classes": sample_hard_classes,
        "foreground-75": lambda: sample_foreground(0.75),
        "by-object": sample_objects,
    }
)


class WithObjects(nn.Module):
    """Adds the Dice loss of each object by itself to a loss, as the blob loss does (Kofler et al., 2022).

    An object's Dice knows nothing of the other true objects of its class; what is segmented outside of all counts
    against each.

    Args:
        loss: Of logits and nnU-Net's target, each a list with deep supervision.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Any, target: Any) -> Tensor:
        """Add both."""
        of_objects = object_loss(finest(logits), finest(target))
        added: Tensor = self.loss(logits, target) + OBJECTS_WEIGHT * of_objects
        return added


def object_loss(logits_BKZYX: Tensor, target_B1ZYX: Tensor) -> Tensor:
    """Give one minus the Dice of an object, mean over objects, then over the classes of all crops that have any."""
    found_BKZYX = logits_BKZYX.float().softmax(1)
    losses = []
    for found_KZYX, target_1ZYX in zip(found_BKZYX, target_B1ZYX, strict=True):
        for label in range(1, len(found_KZYX)):
            objects_ZYX, number = ndimage.label((target_1ZYX[0] == label).numpy(force=True), TOUCHING)
            if not number:
                continue
            objects_V = torch.from_numpy(objects_ZYX).to(found_KZYX.device, torch.long).flatten()
            voxels_N = torch.bincount(objects_V, minlength=number + 1)
            sums_N = found_KZYX.new_zeros(number + 1).index_add(0, objects_V, found_KZYX[label].flatten())
            losses.append(1 - (2 * sums_N[1:] / (sums_N[0] + sums_N[1:] + voxels_N[1:])).mean())
    return torch.stack(losses).mean() if losses else logits_BKZYX.sum() * 0


def count_objects() -> None:
    """Let the loss of every trainer that is made from now on count each object, too; for labels, not regions."""
    build = nnUNetTrainerSAM3D._build_loss
    nnUNetTrainerSAM3D._build_loss = lambda self: WithObjects(build(self))  # type: ignore[method-assign]


def grown(patch_size: Iterable[int], step: Iterable[int], image_shape: Iterable[float]) -> list[int]:
    """Give a crop of twice the voxels, nearer to the shape of the images.

    Args:
        patch_size: (Z, Y, X).
        step: What each edge is a multiple of.
        image_shape: Up to which each edge can grow.
    """
    size, steps, shape = list(patch_size), list(step), list(image_shape)
    wanted = 2 * math.prod(size)
    while math.prod(size) < wanted:
        short = [axis for axis in range(3) if size[axis] < shape[axis]]
        if not short:
            break
        axis = min(short, key=lambda one: size[one] / shape[one])
        size[axis] += steps[axis]
    return size


def grow_crops() -> None:
    """Let the last part of a training, and prediction, have crops of twice the voxels; of an epoch half of the steps.

    For trainings whose loaders run in this process, by a plan without a transformer.
    """
    train = nnUNetTrainerSAM3D._train_epoch

    def changed(self: nnUNetTrainerSAM3D) -> None:
        of_plan = self.configuration_manager.configuration
        if "grown_from" not in of_plan and self._fraction_done(self.current_epoch) >= SMALL_UNTIL:
            of_plan["grown_from"] = before = of_plan["patch_size"]
            shape = of_plan["median_image_size_in_voxels"]
            of_plan["patch_size"] = grown(before, self._arch_kwargs()["token_stride"], shape)
            self.num_iterations_per_epoch //= 2
            self.print_to_log_file(f"crops of {of_plan['patch_size']} from now on, before {before}")
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        train(self)

    nnUNetTrainerSAM3D._train_epoch = changed  # type: ignore[method-assign]


def keep_prompts_apart() -> None:
    """Let the loss of answers to prompts teach the prompt decoder alone, and nothing that segments by itself."""
    answer = SAM3D.answer

    def changed(self: SAM3D, features: ImageFeatures, *arguments: Any) -> Tensor:
        tokens, pyramid, logits = features.tokens_BCDHW, features.pyramid, features.logits
        apart = ImageFeatures(tokens.detach(), *(tuple(one.detach() for one in part) for part in (pyramid, logits)))
        return answer(self, apart, *arguments)

    SAM3D.answer = changed  # type: ignore[method-assign]


def weigh_prompts(weight: float) -> None:
    """Let answers to prompts count so much beside what is segmented by itself."""
    trainer.PROMPT_LOSS_WEIGHT = weight


LEARNING: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "object-loss": count_objects,
        "growing": grow_crops,
        "prompts-apart": keep_prompts_apart,
        "prompts-lightly": lambda: weigh_prompts(0.1),
    }
)


def without_transformer(_of_network: dict[str, Any]) -> dict[str, Any]:
    """Plan no transformer."""
    return {"encoder": "none", "pretrained": False}


def without_prompts(_of_network: dict[str, Any]) -> dict[str, Any]:
    """Plan a network that answers no prompts."""
    return {"prompts": False}


def with_finer_tokens(of_network: dict[str, Any]) -> dict[str, Any]:
    """Leave the coarsest level out, so that there are eight times as many tokens (four, if it halves two axes)."""
    finer = {name: of_network[name][:-1] for name in ("strides", "kernels", "features")}
    return finer | {"token_stride": [int(n) for n in np.prod(finer["strides"], axis=0)]}


PLANS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = MappingProxyType(
    {"no-blocks": without_transformer, "no-prompts": without_prompts, "finer-tokens": with_finer_tokens}
)


def change_plan(variant: str) -> None:
    """Train by the plan that there is, but for some arguments of the network."""
    read = asked.read_plan

    def changed(*arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        plans, dataset_json = read(*arguments)
        for configuration in plans["configurations"].values():
            if "architecture" in configuration:
                of_network = configuration["architecture"]["arch_kwargs"]
                of_network |= PLANS[variant](of_network)
        return plans, dataset_json

    asked.read_plan = changed


def change(variant: str) -> None:
    """Change what training makes: every network that is built from now on in this process, or how it learns."""
    if variant in PLANS:
        change_plan(variant)
        return
    if variant in SAMPLING or variant in LEARNING:
        (SAMPLING | LEARNING)[variant]()
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


ALL = (*VARIANTS, *PLANS, *RATES, *AUGMENTATIONS, *SAMPLING, *LEARNING)


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
