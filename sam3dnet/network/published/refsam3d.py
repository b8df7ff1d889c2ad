"""RefSAM3D (Gao & Lu, Artificial Intelligence in Health 2(4), 2025): segmentation by text, no code published.

From the paper: a frozen in-plane kernel with a depth kernel, shifted windows, adapters with a depth-wise 3D
convolution; CLIP's word and sentence embeddings of a phrase; a projector to the visual width; cross-attention of four
levels of tokens to the text; a U-shaped decoder of x2 steps, four from tokens of 16 voxels; the image beside the last
features, and one more 3D convolution.

Ours, because the paper leaves it open: image encoder and adapters are those of our corrected 3DSAM-adapter; values as
well as keys come from the text, with a norm before and a projection after the attention, and its result is added to
the tokens; the attention sees the levels after their necks; the background has a phrase of its own; every phrase is
decoded by itself to one logit; with tokens finer than 16 voxels there are as many x2 steps as it takes.

Axes in names: B batch, C channels, K logits (one a phrase), L words and one sentence, T text width, N = D * H * W
tokens, E level width, z y x voxels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.errors import PlanError, PromptError
from sam3dnet.network.layers import CrossAttention, beside
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.published.encoder_parts import corrected_parts
from sam3dnet.network.published.u_shaped_decoder import UShapedDecoder
from sam3dnet.network.segmentation import SegmentationNetwork, make_image_encoder
from sam3dnet.network.tuning import DEFAULT_TUNING

LEARNED_WORDS, LEARNED_WIDTH = 4, 64


class TextProjector(nn.Module):
    """Map word and sentence embeddings to the visual width.

    Args:
        text_width: Width of the embeddings.
        width: Channels of a level.
    """

    def __init__(self, text_width: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(text_width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, text_KLT: Tensor) -> Tensor:
        """Return (K, L, width)."""
        return self.layers(text_KLT)


class TextDecoder(nn.Module):
    """One logit a voxel from four levels that know of a phrase.

    Args:
        level_channels: Channels of each of the four levels.
        image_channels: Channels of the image.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.
        deep_supervision: Whether logits of every resolution above the tokens are returned.
    """

    def __init__(
        self, level_channels: int, image_channels: int, strides: Sequence[Sequence[int]], deep_supervision: bool
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.climb = UShapedDecoder(level_channels, strides)
        finest, *coarser = self.climb.widths
        self.last = nn.Conv3d(finest + image_channels, 1, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv3d(channels, 1, 1) for channels in coarser)

    def forward(self, levels: Sequence[Tensor], image_BCzyx: Tensor) -> list[Tensor]:
        """Return logits (B, 1, z, y, x), finest first; only the finest without deep supervision."""
        finest, *coarser = self.climb(levels, image_BCzyx.shape[2:])
        logits = [self.last(beside([finest], image_BCzyx))]
        if self.deep_supervision:
            logits += [head(features) for head, features in zip(self.heads, coarser, strict=True)]
        return logits


class RefSAM3D(SegmentationNetwork):
    """SAM's blocks in shifted windows, whose levels attend to a phrase, and a U-shaped decoder: one mask a phrase.

    The phrases of the classes are embedded at planning and come with the plan. Without them every class has learned
    embeddings in their place: then the network knows no words, and cannot be asked for anything but its classes.

    Args:
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        deep_supervision: Whether to return logits at every resolution above the tokens, finest first.
        encoder: Name of the encoder size.
        patch_size: Voxels (z, y, x) of a training patch.
        token_stride: Voxels a token covers along (z, y, x), each one of 1, 2, 4, 8, 16; published is 16.
        strides: Factor of each level relative to the level before; (1, 1, 1) first; their product is token_stride.
        pretrained: Whether SAM's weights will be loaded; what of them is then frozen, the tuning says.
        checkpointing: Whether the blocks' activations are recomputed in the backward pass to save memory.
        tuning: How the image encoder is tuned where it holds SAM's weights.
        text: Embeddings (num_classes, L, T) of the phrase of every class, the words and then the sentence; rows of
            zeros fill up shorter phrases. None: learned embeddings.

    Raises:
        PlanError: If encoder or tuning are unknown, the strides do not multiply to the token stride, or there is not
            one phrase a class.
    """

    decoder: TextDecoder
    text_KLT: Tensor

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
        text: Sequence[Sequence[Sequence[float]]] | None = None,
    ):
        super().__init__()
        if text is not None and len(text) != num_classes:
            raise PlanError(f"the plan has {len(text)} phrases for {num_classes} outputs; plan again")
        parts = corrected_parts(tuning)
        self.image_encoder = make_image_encoder(
            encoder, input_channels, patch_size, token_stride, strides, parts, checkpointing=checkpointing
        )
        size = self.image_encoder.size
        self.knows_words = text is not None
        self._keep_text(num_classes, text)
        self.projector = TextProjector(self.text_KLT.shape[-1], size.neck_width)
        self.attend = nn.ModuleList(CrossAttention(size.neck_width, heads=1) for _ in range(4))
        self.decoder = TextDecoder(size.neck_width, input_channels, strides, deep_supervision)
        self.pretrained = pretrained
        self.start_training_state(num_classes)

    def _keep_text(self, num_classes: int, text: Sequence[Sequence[Sequence[float]]] | None) -> None:
        if text is None:
            self.text_KLT = nn.Parameter(torch.randn(num_classes, LEARNED_WORDS, LEARNED_WIDTH))
        else:  # it comes with the plan, not with a checkpoint
            self.register_buffer("text_KLT", torch.tensor(text, dtype=torch.float32), persistent=False)

    def require_words(self) -> None:
        """Refuse text where the classes have learned embeddings.

        Raises:
            PromptError: If the network was planned without a text encoder.
        """
        if not self.knows_words:
            raise PromptError(
                "this model was planned without CLIP's weights: it knows its classes by learned embeddings and no "
                "words; plan again with --clip-weights and train again, or leave out the text"
            )

    def ask_for(self, text_KLT: Tensor) -> None:
        """Segment by other phrases from now on; there is one logit for each.

        Args:
            text_KLT: Embeddings of the phrases, from the text encoder of the plan.

        Raises:
            PromptError: If the network was planned without a text encoder, or the embeddings come from another.
        """
        self.require_words()
        if text_KLT.shape[-1] != self.text_KLT.shape[-1]:
            raise PromptError(
                f"the text embeddings have width {text_KLT.shape[-1]}, this model's {self.text_KLT.shape[-1]}; use the "
                "text encoder that the plan names"
            )
        self.text_KLT = text_KLT.to(self.text_KLT)

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return the levels, the image, and one logit a phrase."""
        levels = self.image_encoder(x_BCzyx)
        logits = self._decode(levels, x_BCzyx)
        return ImageFeatures(torch.cat(tuple(levels), 1), (x_BCzyx,), tuple(logits))

    def _decode(self, levels: Sequence[Tensor], x_BCzyx: Tensor) -> list[Tensor]:
        """Pair every image with every phrase; phrases join the batch."""
        batch, phrases = len(x_BCzyx), len(self.text_KLT)
        text = self.projector(self.text_KLT).repeat(batch, 1, 1)
        there = (self.text_KLT != 0).any(-1).repeat(batch, 1)
        referred = [
            _refer(attend, level.repeat_interleave(phrases, 0), text, there)
            for attend, level in zip(self.attend, levels, strict=True)
        ]
        logits = self.decoder(referred, x_BCzyx.repeat_interleave(phrases, 0))
        return [level.squeeze(1).unflatten(0, (batch, phrases)) for level in logits]

    def answer(self, _features: ImageFeatures, _batch: PromptBatch, _margin_Qzyx: Tensor) -> Tensor:
        """Refuse: this network is asked by text."""
        raise PlanError("refsam3d answers text, not clicks or boxes; plan with another method for these")


def _refer(attend: nn.Module, level_BEDHW: Tensor, text_BLE: Tensor, there_BL: Tensor) -> Tensor:
    tokens_BNE = level_BEDHW.flatten(2).transpose(1, 2)
    changed = tokens_BNE + attend(tokens_BNE, text_BLE, there_BL)
    return changed.transpose(1, 2).unflatten(2, level_BEDHW.shape[2:])
