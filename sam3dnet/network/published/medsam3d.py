"""3DMedSAM (Lin et al., Biocybernetics and Biomedical Engineering 45(1), 2025), after the abstract.

Only the abstract was at hand, and there is no code. From it: a new module in place of SAM's 2D patch embedding; 3D
adapters, most pretrained weights frozen; a multi-scale 3D mask decoder, because anomalies differ in scale. All else is
ours: the convolutions of the patch embedding, the spatial adapter as 3D adapter, SAM's own windows, and logits that are
predicted at every resolution and added up.

Axes in names: B batch, C channels, E token width, z y x voxels, D H W tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.errors import PlanError
from sam3dnet.network.image_encoder import EncoderParts
from sam3dnet.network.layers import ConvUnit
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.published.resolutions import enlarged
from sam3dnet.network.published.u_shaped_decoder import UShapedDecoder
from sam3dnet.network.segmentation import SegmentationNetwork, make_image_encoder
from sam3dnet.network.tuning import DEFAULT_TUNING, find_tuning

NARROWEST = 16


class LearnedPatchEmbed(nn.Module):
    """Convolutions that halve the volume until a voxel is a token, in place of SAM's patch kernel.

    Args:
        input_channels: Channels of the image.
        width: Token width.
        token_stride: Voxels a token covers along (z, y, x), powers of two.
    """

    def __init__(self, input_channels: int, width: int, token_stride: tuple[int, int, int]):
        super().__init__()
        steps = max(token_stride).bit_length() - 1
        channels = [input_channels, *(max(width >> (steps - step), NARROWEST) for step in range(steps))]
        strides = [[2 if stride >> step > 1 else 1 for stride in token_stride] for step in range(steps)]
        self.stem = nn.Sequential(
            *(ConvUnit(channels[step], channels[step + 1], strides[step]) for step in range(steps))
        )
        self.to_tokens = nn.Conv3d(channels[-1], width, 1)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return tokens (B, width, D, H, W) with D = ceil(z / stride) and so on."""
        return self.to_tokens(self.stem(x_BCzyx))


class MultiScaleDecoder(nn.Module):
    """Logits at every resolution, each added to the coarser ones: large anomalies are seen in coarse features.

    Args:
        level_channels: Channels of each of the four levels.
        num_classes: Channels of the logits.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.
        deep_supervision: Whether logits of every resolution above the tokens are returned.
    """

    def __init__(self, level_channels: int, num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.climb = UShapedDecoder(level_channels, strides)
        self.seg_layers = nn.ModuleList(nn.Conv3d(channels, num_classes, 1) for channels in self.climb.widths)

    def forward(self, levels: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
        """Return logits (B, num_classes, z, y, x), finest first; only the finest without deep supervision."""
        pyramid = self.climb(levels, shape)
        logits = [self.seg_layers[-1](pyramid[-1])]
        for index in reversed(range(len(pyramid) - 1)):
            own = self.seg_layers[index](pyramid[index])
            logits.insert(0, own + enlarged(logits[0], self.climb.strides[index + 1], own.shape[2:]))
        return logits if self.deep_supervision else logits[:1]


class MedSAM3D(SegmentationNetwork):
    """3DMedSAM after the abstract: learned 3D patch embedding, SAM's blocks with 3D adapters, multi-scale decoder.

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
        tuning: How the image encoder is tuned where it holds SAM's weights.

    Raises:
        PlanError: If encoder or tuning are unknown or the strides do not multiply to the token stride.
    """

    decoder: MultiScaleDecoder

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
        tuning: str = DEFAULT_TUNING,
    ):
        super().__init__()
        parts = EncoderParts(find_tuning(tuning), patch_embed=LearnedPatchEmbed)
        self.image_encoder = make_image_encoder(
            encoder, input_channels, patch_size, token_stride, strides, parts, checkpointing=checkpointing
        )
        self.decoder = MultiScaleDecoder(self.image_encoder.size.neck_width, num_classes, strides, deep_supervision)
        self.pretrained = pretrained
        self.start_training_state(num_classes)

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return the levels, the image, and the logits."""
        levels = self.image_encoder(x_BCzyx)
        logits = self.decoder(levels, x_BCzyx.shape[2:])
        return ImageFeatures(torch.cat(tuple(levels), 1), (x_BCzyx,), tuple(logits))

    def answer(self, _features: ImageFeatures, _batch: PromptBatch, _margin_Qzyx: Tensor) -> Tensor:
        """Refuse: the abstract knows of no prompt."""
        raise PlanError("3dmedsam, after the abstract, answers no prompts; plan with another method for these")
