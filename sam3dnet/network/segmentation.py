"""What every network of a plan has in common: which parameters are trained, how it starts, and how it is called.

Axes in names: B batch, C channels, K logits, Q queries, z y x voxels.
"""

import pydoc
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sam3dnet.devices import better_half
from sam3dnet.errors import PlanError
from sam3dnet.network.image_encoder import EncoderParts, EncoderSize, ImageEncoder3D
from sam3dnet.network.layers import triple
from sam3dnet.network.linear import store_frozen_in_half
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.reach import Reaching
from sam3dnet.network.target_device import order_kernels

ENCODER_SIZES = {
    "none": EncoderSize(192, 0, 6, (), (8, 8, 8), 96, 96),  # no transformer: convolutions alone
    "tiny": EncoderSize(48, 4, 3, (1, 3), (4, 4, 4), 24, 32),
    "small": EncoderSize(192, 8, 6, (1, 3, 5, 7), (8, 8, 8), 96, 96),
    "vit_b": EncoderSize(768, 12, 12, (2, 5, 8, 11), (8, 14, 14), 384, 256, 64),
    "vit_l": EncoderSize(1024, 24, 16, (5, 11, 17, 23), (8, 14, 14), 512, 256, 64),
    "vit_h": EncoderSize(1280, 32, 16, (7, 15, 23, 31), (8, 14, 14), 640, 256, 64),
}
Prompter = Callable[["SegmentationNetwork", ImageFeatures], Any]


class SegmentationNetwork(nn.Module):
    """An image encoder that may hold SAM's weights, and a decoder; the base of all networks of plans.

    Attributes:
        image_encoder: Tuned as its parts say, where it holds SAM's weights; else trained whole.
        decoder: Has the switch `deep_supervision`, which nnU-Net turns.
        pretrained: Whether the image encoder gets SAM's weights.
        reaching: Has `reach_K`, where the network answers prompts.

    What there is one of for each class lies in modules named "seg_layers", also outside of the decoder: nnU-Net leaves
    these alone where a training starts from pretrained weights, and copies all else.
    """

    reaching: Reaching
    image_encoder: ImageEncoder3D
    decoder: nn.Module
    pretrained: bool

    def start_training_state(self, num_classes: int, half_frozen: bool = False) -> None:
        """Freeze what is not tuned, or start the encoder for training from scratch; order the memory.

        Args:
            num_classes: Channels of the logits.
            half_frozen: Whether frozen linear layers of the encoder are stored in bf16.
        """
        if self.pretrained:
            trainable = set(self.trainable_names())
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in trainable)
            if half_frozen:
                store_frozen_in_half(self.image_encoder)
        else:
            start_from_scratch(self.image_encoder)
        if self.answers_prompts:
            self.reaching = Reaching(num_classes)
        order_kernels(self)

    @torch.no_grad()
    def start_from_images(self, num_images: int) -> None:
        """Let the patch embedding mix no more than the first channels to SAM's three at first, the images.

        Further ones, of a cascade's first stage, would drown what SAM knows to read; training mixes them in.
        """
        mix = getattr(self.image_encoder.patch_embed, "channel_mix", None)
        if mix is not None:
            mix.zero_()
            mix[:, :num_images] = 1 / num_images

    def reach(self, class_index: int) -> tuple[float, ...]:
        """Give how far answers about a class reach around clicks, along (z, y, x) in voxels; see `nearness`."""
        tokens = float(self.reaching.reach_K[class_index])
        return tuple(tokens * stride for stride in self.image_encoder.token_stride)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SegmentationNetwork":
        """Order the kernels for the device that they come to, as torch's recurrent networks flatten theirs here."""
        moved = super()._apply(fn, recurse)
        order_kernels(self)
        return moved

    @property
    def answers_prompts(self) -> bool:
        """Whether `prompted` answers; a network without prompts raises there."""
        return False

    def trainable_names(self) -> list[str]:
        """Return the names of the tuned parameters: all, or with SAM's weights what the tuning method says."""
        names = [name for name, _ in self.named_parameters()]
        if not self.pretrained:
            return names
        tuned = {f"image_encoder.{name}" for name in self.image_encoder.trained_names()}
        return [name for name in names if name in tuned or not name.startswith("image_encoder.")]

    def forward(
        self, x_BCzyx: Tensor, prompter: Prompter | None = None
    ) -> Tensor | list[Tensor] | tuple[list[Tensor], Any]:
        """Segment, and in training answer the prompts that a prompter makes up.

        Args:
            x_BCzyx: Images (B, C, z, y, x).
            prompter: Is given this network and the features of the images; None where only logits are wanted.

        Returns:
            Logits (B, K, z, y, x), or with deep supervision a list of them, finest first. With a prompter: that list
            and what the prompter returned.
        """
        with better_half(x_BCzyx.device):  # nnU-Net's own code takes fp16
            features = self.features(x_BCzyx)
            if prompter is not None:
                return list(features.logits), prompter(self, features)
            return list(features.logits) if self.decoder.deep_supervision else features.logits[0]

    @abstractmethod
    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return what prompts are answered from, the automatic logits among it."""

    def prompted(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Answer prompts from the features alone.

        Args:
            features: Of a batch of images.
            batch: The queries, one class of one image each.
            margin_Qzyx: Logit of the query's class against all others before the prompt, see `class_margin`.

        Returns:
            Corrections (Q, z, y, x): what the prompts add to the logit of the query's class, or to its margin.

        Raises:
            PlanError: If the network was planned without prompts.
        """
        if batch.mask_Qzyx is None:
            batch = replace(batch, mask_Qzyx=torch.zeros_like(margin_Qzyx))
        return self.answer(features.select(batch.samples), batch, margin_Qzyx)

    @abstractmethod
    def answer(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Answer prompts as `prompted` does, from the features of each query's own image.

        Args:
            features: Of each query's image.
            batch: The queries, with a mask each, empty where there is none.
            margin_Qzyx: As for `prompted`.

        Returns:
            As `prompted`.

        Raises:
            PlanError: As `prompted`.
        """


def locate_network(name: str) -> type[nn.Module]:
    """Find the class of a network by where a plan says it is.

    Raises:
        PlanError: If there is no such class.
    """
    found = pydoc.locate(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise PlanError(
            f"network {name!r} in the plan: no such network; install the version that the plan was made with"
        )
    return found


def no_prompts() -> PlanError:
    """Give the error for a prompt to a network without a prompt encoder."""
    return PlanError("this model was planned without prompts; plan and train again without --no-prompts")


def start_from_scratch(encoder: ImageEncoder3D) -> None:
    """Start an image encoder for training without SAM's weights; adapters stay what they are at birth."""
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    nn.init.trunc_normal_(encoder.depth_pos_embed, std=0.02)
    for name, module in encoder.blocks.named_modules():
        if isinstance(module, nn.Linear) and not name.rpartition(".")[2].startswith("up"):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 / 2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def find_encoder_size(name: str) -> EncoderSize:
    """Give the dimensions of an encoder by its name.

    Raises:
        PlanError: If there is none of that name.
    """
    if name not in ENCODER_SIZES:
        raise PlanError(f"encoder {name!r} in the plan: expected one of {', '.join(ENCODER_SIZES)}; plan again")
    return ENCODER_SIZES[name]


def make_image_encoder(
    encoder: str,
    input_channels: int,
    patch_size: Sequence[int],
    token_stride: Sequence[int],
    strides: Sequence[Sequence[int]],
    parts: EncoderParts,
    *,
    checkpointing: bool,
) -> ImageEncoder3D:
    """Build the image encoder of a plan.

    Args:
        encoder: Name of its size.
        input_channels: Channels of the image.
        patch_size: Voxels (z, y, x) of a training patch.
        token_stride: Voxels a token covers along (z, y, x).
        strides: Factor of each level relative to the level before.
        parts: What it is put together from.
        checkpointing: Whether activations are recomputed in the backward pass.

    Raises:
        PlanError: If there is no encoder of that name, or the strides do not lead to the tokens.
    """
    check_strides(strides, token_stride)
    size, stride = find_encoder_size(encoder), triple(token_stride)
    built = ImageEncoder3D(size, input_channels, token_grid(patch_size, stride), stride, parts)
    built.checkpointing = checkpointing
    return built


def token_grid(patch_size: Sequence[int], token_stride: Sequence[int]) -> tuple[int, int, int]:
    """Give the tokens (D, H, W) of a patch (z, y, x), rounded up."""
    return triple([-(-voxels // step) for voxels, step in zip(patch_size, token_stride, strict=True)])


def check_strides(strides: Sequence[Sequence[int]], token_stride: Sequence[int]) -> None:
    """Refuse strides that do not lead from voxels to tokens.

    Raises:
        PlanError: If they do not multiply to the token stride, or do not begin at full resolution.
    """
    product = [prod(step[axis] for step in strides) for axis in range(3)]
    if product != list(token_stride) or any(step != 1 for step in strides[0]):
        raise PlanError(
            f"the plan's strides {list(strides)} multiply to {product}; expected (1, 1, 1) first and the token stride "
            f"{list(token_stride)} as product; plan again"
        )
