"""The network that a plan names, assembled from its parts, and the named encoder sizes.

Axes in names: B batch, C channels, z y x voxels, D H W tokens, E token width.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sam3dnet.errors import PlanError
from sam3dnet.network.detail_stem import DetailStem, triple
from sam3dnet.network.image_encoder import EncoderSize, ImageEncoder3D
from sam3dnet.network.mask_decoder import MaskDecoder3D
from sam3dnet.network.prompt_decoder import ImageFeatures, PromptDecoder
from sam3dnet.network.prompt_encoder import PromptBatch

ENCODER_SIZES = {
    "tiny": EncoderSize(48, 4, 3, (1, 3), (4, 4, 4), 24, 32),
    "small": EncoderSize(192, 8, 6, (1, 3, 5, 7), (8, 8, 8), 96, 96),
    "vit_b": EncoderSize(768, 12, 12, (2, 5, 8, 11), (8, 14, 14), 384, 256, 64),
    "vit_l": EncoderSize(1024, 24, 16, (5, 11, 17, 23), (8, 14, 14), 512, 256, 64),
    "vit_h": EncoderSize(1280, 32, 16, (7, 15, 23, 31), (8, 14, 14), 640, 256, 64),
}
Prompter = Callable[["SAM3D", ImageFeatures], Any]
STEM_FEATURES = (16, 32, 64, 96)
STEM_UNITS = (1, 2, 2, 2)
DECODER_WIDTH = 128
FROZEN_PARTS = (
    "image_encoder.patch_embed.proj.",
    "image_encoder.pos_embed",
    ".attn.qkv.",
    ".attn.proj.",
    ".attn.rel_pos_h",
    ".attn.rel_pos_w",
    ".mlp.",
)


class SAM3D(nn.Module):
    """SAM's image encoder in 3D with a detail stem and a full-resolution decoder.

    Any image size is accepted, whatever the patch size of the plan. The argument names are those of a plan's
    `arch_kwargs`.

    Args:
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        deep_supervision: Whether to return logits at every resolution above the tokens, finest first.
        encoder: Name of the encoder size.
        patch_size: Voxels (z, y, x) of a training patch.
        token_stride: Voxels a token covers along (z, y, x), each one of 1, 2, 4, 8, 16.
        strides: Factor of each level relative to the level before; (1, 1, 1) first; their product is token_stride.
        pretrained: Whether SAM's weights will be loaded; they are then frozen.
        checkpointing: Whether the blocks' activations are recomputed in the backward pass to save memory.
        prompts: Whether the network answers prompts, besides segmenting without one.

    Raises:
        PlanError: If the encoder is unknown or the strides do not multiply to the token stride.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        encoder: str,
        patch_size: Sequence[int],
        token_stride: Sequence[int],
        strides: Sequence[Sequence[int]],
        pretrained: bool = False,
        checkpointing: bool = False,
        prompts: bool = False,
    ):
        super().__init__()
        size = _encoder_size(encoder)
        _check_strides(strides, token_stride)
        stride = triple(token_stride)
        grid = triple([-(-voxels // step) for voxels, step in zip(patch_size, stride, strict=True)])
        depth = max(len(strides) - 1, 1)
        features, units = STEM_FEATURES[:depth], STEM_UNITS[:depth]
        self.image_encoder = ImageEncoder3D(size, input_channels, grid, stride)
        self.image_encoder.checkpointing = checkpointing
        self.detail_stem = DetailStem(input_channels, features, strides, units)
        self.detail_to_tokens = nn.Conv3d(features[-1], size.width, triple(strides[-1]), stride=triple(strides[-1]))
        self.decoder = MaskDecoder3D(
            size.neck_width, DECODER_WIDTH, features, strides, units, num_classes, deep_supervision
        )
        self.prompt_decoder = PromptDecoder(num_classes, DECODER_WIDTH, features, strides, stride) if prompts else None
        self.pretrained = pretrained
        self._initialise()
        self._order_memory()

    def _initialise(self) -> None:
        if self.pretrained:
            for parameter in self.detail_to_tokens.parameters():
                nn.init.zeros_(parameter)
            trainable = set(self.trainable_names())
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in trainable)
            return
        nn.init.trunc_normal_(self.image_encoder.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.image_encoder.depth_pos_embed, std=0.02)
        for name, module in self.image_encoder.blocks.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("adapter.up"):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 / 2)
                nn.init.zeros_(module.bias)

    def _order_memory(self) -> None:
        """Keep convolutions in channels-last order, in which narrow ones are several times faster on the CPU."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def trainable_names(self) -> list[str]:
        """Return the names of the tuned parameters: all, or all but SAM's where SAM's weights are used."""
        names = [name for name, _ in self.named_parameters()]
        if not self.pretrained:
            return names
        return [name for name in names if not _is_frozen(name)]

    def forward(
        self, x_BCzyx: Tensor, prompter: Prompter | None = None
    ) -> Tensor | list[Tensor] | tuple[list[Tensor], Any]:
        """Segment, and in training answer the prompts that a prompter makes up.

        Args:
            x_BCzyx: Images (B, C, z, y, x).
            prompter: Is given this network and the features of the images; None where only logits are wanted.

        Returns:
            Logits (B, num_classes, z, y, x), or with deep supervision a list of them, finest first. With a prompter:
            that list and what the prompter returned.
        """
        features = self.features(x_BCzyx)
        if prompter is not None:
            return list(features.logits), prompter(self, features)
        return list(features.logits) if self.decoder.deep_supervision else features.logits[0]

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return what prompts are answered from, the automatic logits among it."""
        x_BCzyx = x_BCzyx.contiguous(memory_format=torch.channels_last_3d)
        stem = self.detail_stem(x_BCzyx)
        levels = self.image_encoder(x_BCzyx, self._detail_tokens(stem[-1]))
        tokens, pyramid = self.decoder.pyramid(levels, stem)
        return ImageFeatures(tokens, tuple(pyramid), tuple(self.decoder.logits(pyramid)))

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
        if self.prompt_decoder is None:
            raise PlanError("this model was planned without prompts; plan and train again without --no-prompts")
        return self.prompt_decoder(features, batch, margin_Qzyx)

    def _detail_tokens(self, finest_BCzyx: Tensor) -> Tensor:
        pads = []
        for size, step in zip(reversed(finest_BCzyx.shape[2:]), reversed(self.detail_to_tokens.stride), strict=True):
            pads += [0, -size % step]
        return self.detail_to_tokens(nn.functional.pad(finest_BCzyx, pads) if any(pads) else finest_BCzyx)


def _is_frozen(name: str) -> bool:
    return name.startswith("image_encoder.") and any(part in name for part in FROZEN_PARTS)


def _encoder_size(name: str) -> EncoderSize:
    if name not in ENCODER_SIZES:
        raise PlanError(f"encoder {name!r} in the plan: expected one of {', '.join(ENCODER_SIZES)}; plan again")
    return ENCODER_SIZES[name]


def _check_strides(strides: Sequence[Sequence[int]], token_stride: Sequence[int]) -> None:
    product = [prod(step[axis] for step in strides) for axis in range(3)]
    if product != list(token_stride) or any(step != 1 for step in strides[0]):
        raise PlanError(
            f"the plan's strides {list(strides)} multiply to {product}; expected (1, 1, 1) first and the token stride "
            f"{list(token_stride)} as product; plan again"
        )
