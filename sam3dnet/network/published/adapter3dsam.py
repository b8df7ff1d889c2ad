"""3DSAM-adapter (Gong et al., Medical Image Analysis 98, 103324, 2024), as published and corrected.

Axes in names: B batch, C channels, K logits, Q queries, z y x voxels, D H W tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.errors import PlanError
from sam3dnet.network.layers import triple
from sam3dnet.network.prompt_decoder import ImageFeatures, class_margin
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.published.aggregation_decoder import (
    AggregationDecoder,
    CoarseAggregationDecoder,
    FullResolutionDecoder,
)
from sam3dnet.network.published.click_encoder import ClickEncoder
from sam3dnet.network.published.encoder_parts import as_published_parts, corrected_parts
from sam3dnet.network.published.visual_sampler import VisualSampler
from sam3dnet.network.segmentation import (
    SegmentationNetwork,
    make_image_encoder,
    no_prompts,
)
from sam3dnet.network.tuning import DEFAULT_TUNING

CORRECTED, AS_PUBLISHED = "corrected", "as-published"
FIDELITIES = (CORRECTED, AS_PUBLISHED)


class Adapter3DSAM(SegmentationNetwork):
    """SAM's blocks in shifted cubic windows with spatial adapters, clicks at the last level, aggregated levels.

    "as-published" is the structure of the official code: 25,462,400 tuned parameters for ViT-B and two classes, with
    clicks. "corrected" mends its defects: SAM's features are whole at birth; an offset between tokens keeps SAM's
    meaning; windows fit the token grid; clicks have position, polarity and class; nothing is built that is never
    called; masks are predicted at full resolution; any batch, patch and encoder size works (with "as-published" as
    well).

    Args:
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        deep_supervision: Whether to return logits at every resolution above the tokens, finest first.
        encoder: Name of the encoder size.
        patch_size: Voxels (z, y, x) of a training patch.
        token_stride: Voxels a token covers along (z, y, x), each one of 1, 2, 4, 8, 16; published is 4.
        strides: Factor of each level relative to the level before; (1, 1, 1) first; their product is token_stride.
        pretrained: Whether SAM's weights will be loaded; what of them is then frozen, the tuning says.
        checkpointing: Whether the blocks' activations are recomputed in the backward pass to save memory.
        prompts: Whether there is a prompt encoder (the variant "one click a volume"); without it "automatic".
        regions: Whether the logits are independent regions; else they are classes of a softmax.
        tuning: How the image encoder is tuned where it holds SAM's weights.
        fidelity: "corrected" or "as-published".

    Raises:
        PlanError: If encoder, tuning or fidelity are unknown or the strides do not multiply to the token stride.
    """

    decoder: AggregationDecoder

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
        regions: bool = False,
        tuning: str = DEFAULT_TUNING,
        fidelity: str = CORRECTED,
    ):
        super().__init__()
        if fidelity not in FIDELITIES:
            raise PlanError(f"fidelity {fidelity!r} in the plan: expected one of {', '.join(FIDELITIES)}; plan again")
        published = fidelity == AS_PUBLISHED
        parts = as_published_parts(tuning) if published else corrected_parts(tuning)
        self.image_encoder = make_image_encoder(
            encoder, input_channels, patch_size, token_stride, strides, parts, checkpointing=checkpointing
        )
        size = self.image_encoder.size
        self.prompt_encoder: nn.Module | None = None
        if prompts and published:
            self.prompt_encoder = VisualSampler(size.neck_width)
        elif prompts:
            self.prompt_encoder = ClickEncoder(num_classes, size.neck_width, triple(token_stride))
        sizes = (size.neck_width, input_channels, num_classes, strides, deep_supervision)
        self.decoder = CoarseAggregationDecoder(*sizes) if published else FullResolutionDecoder(*sizes)
        self.pretrained = pretrained
        self.regions = regions
        self.start_training_state(num_classes)
        if published:
            nn.init.ones_(self.image_encoder.depth_pos_embed)

    @property
    def answers_prompts(self) -> bool:
        """Whether `prompted` answers."""
        return self.prompt_encoder is not None

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return what prompts are answered from: three levels as the decoder reads them, the last one, and the image.

        As published, the global queries of the prompt encoder change the last level also where there is no click.
        """
        levels = self.image_encoder(x_BCzyx)
        shallow, last = self.decoder.branch(levels[:-1]), levels[-1]
        unprompted = last
        if isinstance(self.prompt_encoder, VisualSampler):
            unprompted = self.prompt_encoder.without_clicks(last)
        logits = self.decoder.logits([*shallow, self.decoder.branches[-1](unprompted)], x_BCzyx)
        return ImageFeatures(torch.cat((*shallow, last), 1), (x_BCzyx,), tuple(logits))

    def answer(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Answer prompts as the base class says: the network's own margin with prompts less the margin before."""
        if self.prompt_encoder is None:
            raise no_prompts()
        width = self.image_encoder.size.neck_width
        *shallow, last = features.tokens_BCDHW.split([width // 2] * 3 + [width], 1)
        changed = self.prompt_encoder(last, batch, margin_Qzyx)
        logits = self.decoder.logits([*shallow, self.decoder.branches[-1](changed)], features.pyramid[0])[0]
        return class_margin(logits, batch.class_Q, self.regions) - margin_Qzyx
