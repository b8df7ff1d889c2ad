"""The network "sam3d", assembled from its parts.

Axes in names: B batch, C channels, z y x voxels, D H W tokens, E token width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from sam3dnet.errors import PlanError
from sam3dnet.network.detail_stem import DetailStem
from sam3dnet.network.image_encoder import EncoderParts, fitted_layout, sam_layout
from sam3dnet.network.layers import WHOLE_KERNEL, Conv3d, triple
from sam3dnet.network.mask_decoder import MaskDecoder3D
from sam3dnet.network.prompt_decoder import ImageFeatures, PromptDecoder
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.segmentation import (
    SegmentationNetwork,
    make_image_encoder,
    no_prompts,
)
from sam3dnet.network.target_device import preferred_format
from sam3dnet.network.tuning import DEFAULT_TUNING, find_tuning

STEM_FEATURES = (16, 32, 64, 96)
STEM_UNITS = (1, 2, 2, 2)
DECODER_WIDTH = 128


class SAM3D(SegmentationNetwork):
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
        pretrained: Whether SAM's weights will be loaded; what of them is then frozen, the tuning says.
        checkpointing: Whether the blocks' activations are recomputed in the backward pass to save memory.
        prompts: Whether the network answers prompts, besides segmenting without one.
        tuning: How the image encoder is tuned where it holds SAM's weights.
        half_frozen: Whether SAM's frozen linear layers are stored in bf16, which takes half of their memory and rounds
            them.
        fitted_windows: Whether windows share the token grid of a patch evenly, nearly without padding; models that were
            planned before have windows of SAM's size.
        kernels: Voxels that the convolutions of each level cover, the tokens last; None for 3 along every axis.
        features: Channels of each level above the tokens, finest first; None for those of levels that halve every axis,
            which models have that were planned before.

    Raises:
        PlanError: If the encoder or the tuning is unknown, the strides do not multiply to the token stride, or there is
            not a kernel, or not a number of features, for each level.
    """

    decoder: MaskDecoder3D

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
        tuning: str = DEFAULT_TUNING,
        half_frozen: bool = False,
        fitted_windows: bool = False,
        kernels: Sequence[Sequence[int]] | None = None,
        features: Sequence[int] | None = None,
    ):
        super().__init__()
        depth = max(len(strides) - 1, 1)
        features, units = tuple(features or STEM_FEATURES[:depth]), STEM_UNITS[:depth]
        if len(features) != depth:
            raise PlanError(f"features: {len(features)} for {depth} levels above the tokens; give one for each")
        parts = EncoderParts(find_tuning(tuning), fitted_layout if fitted_windows else sam_layout)
        self.image_encoder = make_image_encoder(
            encoder, input_channels, patch_size, token_stride, strides, parts, checkpointing=checkpointing
        )
        size = self.image_encoder.size
        kernels = kernels or [WHOLE_KERNEL] * len(strides)
        if len(kernels) != len(strides):
            raise PlanError(f"kernels: {len(kernels)} for {len(strides)} levels; give one for each of the strides")
        self.detail_stem = DetailStem(input_channels, features, strides, units, kernels)
        self.detail_to_tokens = Conv3d(features[-1], size.width, triple(strides[-1]), stride=triple(strides[-1]))
        self.decoder = MaskDecoder3D(
            size.neck_width, DECODER_WIDTH, features, strides, units, kernels, num_classes, deep_supervision
        )
        self.prompt_decoder = (
            PromptDecoder(num_classes, DECODER_WIDTH, features, strides, triple(token_stride), kernels)
            if prompts
            else None
        )
        self.pretrained = pretrained
        if pretrained:
            for parameter in self.detail_to_tokens.parameters():
                nn.init.zeros_(parameter)
        self.start_training_state(num_classes, half_frozen)

    @property
    def answers_prompts(self) -> bool:
        """Whether `prompted` answers."""
        return self.prompt_decoder is not None

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return what prompts are answered from, the automatic logits among it."""
        x_BCzyx = x_BCzyx.contiguous(memory_format=preferred_format(x_BCzyx))
        stem = self.detail_stem(x_BCzyx)
        levels = self.image_encoder(x_BCzyx, self._detail_tokens(stem[-1]))
        tokens, pyramid = self.decoder.pyramid(levels, stem)
        return ImageFeatures(tokens, tuple(pyramid), tuple(self.decoder.logits(pyramid)))

    def answer(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Answer prompts from the features of each query's image, as the base class says."""
        if self.prompt_decoder is None:
            raise no_prompts()
        return self.prompt_decoder(features, batch, margin_Qzyx)

    def _detail_tokens(self, finest_BCzyx: Tensor) -> Tensor:
        pads = []
        for size, step in zip(reversed(finest_BCzyx.shape[2:]), reversed(self.detail_to_tokens.stride), strict=True):
            pads += [0, -size % step]
        return self.detail_to_tokens(nn.functional.pad(finest_BCzyx, pads) if any(pads) else finest_BCzyx)
