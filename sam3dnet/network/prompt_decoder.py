"""From the features of an image and prompts to a correction of one class's logits, at a fraction of the encoder's cost.

Axes in names: B batch, Q queries (one class of one image each), K logits, T prompt tokens, N = D * H * W image tokens,
C channels, E token width, z y x voxels of a level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from sam3dnet.network.layers import (
    NEGATIVE_SLOPE,
    ConvUnit,
    CrossAttention,
    PointwiseConv,
    UpConv3d,
    cropped,
    mean_of_blocks,
    triple,
)
from sam3dnet.network.prompt_encoder import (
    DENSE_CHANNELS,
    PromptBatch,
    PromptEncoder,
    Standing,
    dense_prompts,
    is_complaint,
)

ROUNDS = 2
COARSE_FEATURES = (16, 16, 32, 48)  # of the correction at each level, finest first


@dataclass(frozen=True)
class ImageFeatures:
    """What the network knows of a batch of images before any prompt; prompts are answered from it.

    Attributes:
        tokens_BCDHW: Features on the token grid.
        pyramid: Features (B, C, z, y, x) of each resolution above the tokens, finest first.
        logits: Automatic logits (B, K, z, y, x) of each resolution, finest first; one entry without deep supervision.
    """

    tokens_BCDHW: Tensor
    pyramid: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """All features, finest first, the tokens last."""
        return (*self.pyramid, self.tokens_BCDHW)

    def select(self, samples: Sequence[int]) -> "ImageFeatures":
        """Return the features of some images of the batch, any of them more than once; copied only if they must be."""
        batch_size = len(self.tokens_BCDHW)
        if list(samples) == list(range(batch_size)):
            return self
        if batch_size == 1:
            return self._map(lambda value: value.expand(len(samples), *value.shape[1:]))
        return self._map(lambda value: value[list(samples)])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ImageFeatures":
        """Return the features on a device, and in another precision where one is given."""
        return self._map(lambda value: value.to(device, dtype))

    def nbytes(self) -> int:
        """Return the bytes that the features take."""
        return sum(value.nbytes for value in (*self.levels, *self.logits))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ImageFeatures":
        return ImageFeatures(
            change(self.tokens_BCDHW), tuple(map(change, self.pyramid)), tuple(map(change, self.logits))
        )


def class_margin(logits_QKzyx: Tensor, class_Q: Tensor, regions: bool) -> Tensor:
    """Give the logit of one class against all others, whose sigmoid is the class's probability.

    Args:
        logits_QKzyx: Logits.
        class_Q: Which channel of each query.
        regions: Whether channels are independent regions; else they are classes of a softmax.

    Returns:
        (Q, z, y, x)
    """
    rows = torch.arange(len(class_Q), device=class_Q.device)
    chosen_Qzyx = logits_QKzyx[rows, class_Q]
    if regions:
        return chosen_Qzyx
    others = logits_QKzyx.clone()
    others[rows, class_Q] = -torch.inf
    return chosen_Qzyx - others.logsumexp(1)


def margin_of_class(logits_Kzyx: Tensor, class_index: int, regions: bool) -> Tensor:
    """Give the margin of one class of one image as `class_margin` does, without a copy of the logits: (z, y, x)."""
    logits_Kzyx = logits_Kzyx.float()
    if regions:
        return logits_Kzyx[class_index]
    others = [logits_zyx for number, logits_zyx in enumerate(logits_Kzyx) if number != class_index]
    return logits_Kzyx[class_index] - reduce(torch.logaddexp, others)


class TwoWayBlock(nn.Module):
    """Prompt tokens attend to each other and to the image, and the image attends to them.

    Source: SAM's two-way attention (Kirillov et al. 2023), here with the norm before each step.

    Args:
        width: Token width.
    """

    def __init__(self, width: int):
        super().__init__()
        self.among_prompts = CrossAttention(width)
        self.to_image = CrossAttention(width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.from_image = CrossAttention(width)

    def forward(self, prompts_QTE: Tensor, image_QNE: Tensor, there_QT: Tensor) -> tuple[Tensor, Tensor]:
        """Return prompt tokens and image tokens of the same shapes."""
        prompts_QTE = prompts_QTE + self.among_prompts(prompts_QTE, prompts_QTE, there_QT)
        prompts_QTE = prompts_QTE + self.to_image(prompts_QTE, image_QNE)
        prompts_QTE = prompts_QTE + self.mlp(self.norm(prompts_QTE))
        return prompts_QTE, image_QNE + self.from_image(image_QNE, prompts_QTE, there_QT)


class PromptLevel(nn.Module):
    """Bring the correction up one resolution, where it meets the image's features and the drawn prompts.

    Args:
        channels_in: Channels of the coarser correction.
        image_channels: Channels of the image's features at this resolution.
        channels_out: Channels out.
        stride: Factor between the resolutions along (z, y, x).
        kernel: Of a convolution that follows; without one the level is pointwise and cheap.
    """

    def __init__(
        self,
        channels_in: int,
        image_channels: int,
        channels_out: int,
        stride: Sequence[int],
        kernel: Sequence[int] | None = None,
    ):
        super().__init__()
        self.up = UpConv3d(channels_in, channels_out, triple(stride))
        self.from_image = PointwiseConv(image_channels, channels_out, bias=False)
        self.from_prompts = PointwiseConv(DENSE_CHANNELS, channels_out)
        self.conv = (
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
            if kernel is None
            else ConvUnit(channels_out, channels_out, kernel=kernel)
        )

    def forward(self, coarse_QCzyx: Tensor, image_QCzyx: Tensor, dense_QCzyx: Tensor) -> Tensor:
        """Return (Q, channels_out, z, y, x) at the resolution of the image's features."""
        upsampled = cropped(self.up(coarse_QCzyx), image_QCzyx.shape[2:])
        # in place: at full resolution new memory costs as much as the sum
        return self.conv(upsampled.add_(self.from_image(image_QCzyx)).add_(self.from_prompts(dense_QCzyx)))


class PromptDecoder(nn.Module):
    """Answer prompts: what to add to the logit of the query's class at every voxel.

    The image's features are read, never computed anew, and nothing at full resolution is wider than a pointwise
    convolution, so a further prompt costs a fraction of the first. Clicks that all agree with the answer so far change
    nothing, and neither does a network that has not been trained.

    Args:
        num_classes: Channels of the logits.
        token_width: Channels on the token grid.
        features: Channels of the pyramid, finest first.
        strides: Factor of each level relative to the level before, (1, 1, 1) first, the tokens last.
        token_stride: Voxels a token covers along (z, y, x).
        kernels: Of the convolutions of each level.
    """

    def __init__(
        self,
        num_classes: int,
        token_width: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        token_stride: Sequence[int],
        kernels: Sequence[Sequence[int]],
    ):
        super().__init__()
        self.strides = [triple(stride) for stride in strides]
        self.token_stride = triple(token_stride)
        self.encoder = PromptEncoder(num_classes, (*features, token_width), token_width, token_stride)
        self.dense_to_tokens = PointwiseConv(DENSE_CHANNELS, token_width)
        self.blocks = nn.ModuleList(TwoWayBlock(token_width) for _ in range(ROUNDS))
        widths = (*COARSE_FEATURES[: len(features)], token_width)
        self.levels = nn.ModuleList(
            PromptLevel(
                widths[index + 1], features[index], widths[index], strides[index + 1], kernels[index] if index else None
            )
            for index in reversed(range(len(features)))
        )
        self.mask_token = nn.Sequential(
            nn.LayerNorm(token_width),
            nn.Linear(token_width, token_width),
            nn.GELU(),
            nn.Linear(token_width, widths[0] + 1),
        )
        for parameter in self.mask_token[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Decode the prompts.

        Args:
            features: Of each query's image.
            batch: The queries, with a mask each.
            margin_Qzyx: Logit of each query's class against all others, before the prompt.

        Returns:
            Corrections (Q, z, y, x), to be added to the logit of the query's class.
        """
        window_shape = margin_Qzyx.shape[1:]
        standing = Standing.of(batch, margin_Qzyx)
        dense = self._pyramid(dense_prompts(batch, standing, margin_Qzyx, self.token_stride))
        prompts_QTE, there_QT = self.encoder(batch, standing, features.levels, window_shape)
        image_QEDHW = features.tokens_BCDHW + self.dense_to_tokens(dense[-1])
        grid = image_QEDHW.shape[2:]
        image_QNE = image_QEDHW.flatten(2).transpose(1, 2) + self.encoder.image_positions(grid, image_QEDHW.device)
        for block in self.blocks:
            prompts_QTE, image_QNE = block(prompts_QTE, image_QNE, there_QT)
        correction = image_QNE.transpose(1, 2).unflatten(2, grid)
        for level, image, drawn in zip(self.levels, reversed(features.pyramid), reversed(dense[:-1]), strict=True):
            correction = level(correction, image, drawn)
        weights = self.mask_token(prompts_QTE[:, 0]) * is_complaint(batch, standing)[:, None]
        weights_QC, bias_Q = weights.tensor_split([-1], -1)
        return torch.einsum("qczyx,qc->qzyx", correction, weights_QC) + bias_Q[:, :, None, None]

    def _pyramid(self, dense_QCzyx: Tensor) -> list[Tensor]:
        """Pool the drawn prompts to every resolution, finest first, the token grid last."""
        levels = [dense_QCzyx]
        for stride in self.strides[1:]:
            levels.append(mean_of_blocks(levels[-1], stride))
        return levels
