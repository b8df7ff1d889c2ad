"""Prompts as tensors: sparse ones (clicks, corners of boxes) become tokens, dense ones become maps.

Axes in names: Q queries (one class of one image each), P clicks, R boxes, T tokens, C channels, E token width,
z y x voxels of the window, D H W tokens of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sam3dnet.network.target_device import preferred_format, product_type
from sam3dnet.prompts.types import ClassPrompts

POSITIVE, NEGATIVE, ABSENT = 1, 0, -1
NO_PROMPTS = ClassPrompts()
DENSE_CHANNELS = 6
CLICK_KINDS = 4  # negative or positive, agreed or disputed
NEAR, FAR = 0.2, 0.6  # standard deviations of a click's maps, as shares of the token stride
FREQUENCIES = 8
LONGEST_PERIOD = 256.0  # tokens
LARGEST_MARGIN = 10.0  # logits beyond it say no more


@dataclass(frozen=True)
class Query:
    """What is asked of the network: one class of one image of the batch, with its prompts.

    Attributes:
        sample: Which image of the batch.
        class_index: Channel of the logits: the label for classes, the number of the region for regions.
        prompts: In voxel coordinates (z, y, x) of the window, voxel centres at integers; may be empty.
    """

    sample: int
    class_index: int
    prompts: ClassPrompts = NO_PROMPTS


@dataclass
class PromptBatch:
    """Queries as tensors, padded to the largest number of clicks and boxes, at least one of each.

    Attributes:
        samples: Which image of the batch each query belongs to.
        class_Q: Channel of the logits.
        points_QP3: Clicks (z, y, x).
        polarity_QP: POSITIVE, NEGATIVE, or ABSENT for padding.
        corners_QR23: Boxes, low and high corner (z, y, x), inclusive.
        has_box_QR: False for padding.
        mask_Qzyx: Previous masks, 0 or 1; None where no query has one.
        has_mask_Q: Which queries have one.
    """

    samples: tuple[int, ...]
    class_Q: Tensor
    points_QP3: Tensor
    polarity_QP: Tensor
    corners_QR23: Tensor
    has_box_QR: Tensor
    mask_Qzyx: Tensor | None
    has_mask_Q: Tensor

    @classmethod
    def of(cls, queries: Sequence[Query], window_shape: Sequence[int]) -> "PromptBatch":
        """Make the tensors of some queries on windows of this shape (z, y, x)."""
        clicks = max(1, *(len(query.prompts.points) for query in queries))
        boxes = max(1, *(len(query.prompts.boxes) for query in queries))
        points = np.zeros((len(queries), clicks, 3), np.float32)
        polarity = np.full((len(queries), clicks), ABSENT)
        corners = np.zeros((len(queries), boxes, 2, 3), np.float32)
        has_box = np.zeros((len(queries), boxes), bool)
        for row, query in enumerate(queries):
            for column, point in enumerate(query.prompts.points):
                points[row, column] = point.at
                polarity[row, column] = POSITIVE if point.positive else NEGATIVE
            for column, box in enumerate(query.prompts.boxes):
                corners[row, column] = box.low, box.high
                has_box[row, column] = True
        mask_Qzyx, has_mask_Q = _masks(queries, window_shape)
        return cls(
            samples=tuple(query.sample for query in queries),
            class_Q=torch.tensor([query.class_index for query in queries], dtype=torch.long),
            points_QP3=torch.from_numpy(points),
            polarity_QP=torch.from_numpy(polarity),
            corners_QR23=torch.from_numpy(corners),
            has_box_QR=torch.from_numpy(has_box),
            mask_Qzyx=mask_Qzyx,
            has_mask_Q=has_mask_Q,
        )

    def padded(self, clicks: int, boxes: int) -> "PromptBatch":
        """Return the same queries with room for so many clicks and boxes, no fewer than there are."""
        more_clicks, more_boxes = clicks - self.points_QP3.shape[1], boxes - self.corners_QR23.shape[1]
        return replace(
            self,
            points_QP3=pad(self.points_QP3, (0, 0, 0, more_clicks)),
            polarity_QP=pad(self.polarity_QP, (0, more_clicks), value=ABSENT),
            corners_QR23=pad(self.corners_QR23, (0, 0, 0, 0, 0, more_boxes)),
            has_box_QR=pad(self.has_box_QR, (0, more_boxes)),
        )

    def to(self, device: torch.device) -> "PromptBatch":
        """Return the same queries on a device."""
        values: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **values)


def _masks(queries: Sequence[Query], window_shape: Sequence[int]) -> tuple[Tensor | None, Tensor]:
    has_mask_Q = torch.tensor([query.prompts.mask is not None for query in queries])
    if not has_mask_Q.any():
        return None, has_mask_Q
    empty = np.zeros(tuple(window_shape), bool)
    masks = [empty if query.prompts.mask is None else query.prompts.mask for query in queries]
    return torch.from_numpy(np.stack(masks).astype(np.float32)), has_mask_Q


def position_features(positions_3: Tensor, token_stride: Sequence[int]) -> Tensor:
    """Give sines and cosines of positions at periods from 2 tokens to the longest.

    Args:
        positions_3: (..., 3) in voxels (z, y, x), voxel centres at integers.
        token_stride: Voxels a token covers along (z, y, x).

    Returns:
        (..., 6 * FREQUENCIES)
    """
    stride_3 = positions_3.new_tensor(list(token_stride))
    in_tokens_3 = (positions_3 + 0.5) / stride_3
    ratio = LONGEST_PERIOD / 2.0
    periods = 2.0 * ratio ** torch.linspace(0, 1, FREQUENCIES, device=positions_3.device)
    angles = (2 * pi * in_tokens_3[..., None] / periods).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), -1)


def sample_at(features_QCzyx: Tensor, points_QP3: Tensor, window_shape: Sequence[int]) -> Tensor:
    """Read features at clicks, with linear interpolation: the visual sampler of 3DSAM-adapter (Gong et al. 2024).

    Args:
        features_QCzyx: Features of each query's image at any resolution.
        points_QP3: Clicks in voxels (z, y, x) of the window.
        window_shape: Voxels of the window (z, y, x).

    Returns:
        (Q, P, C)
    """
    top_3 = points_QP3.new_tensor([size - 1 for size in features_QCzyx.shape[2:]])
    at_QP3 = (points_QP3 + 0.5) * (top_3 + 1) / points_QP3.new_tensor(list(window_shape)) - 0.5
    at_QP3 = at_QP3.clamp(min=0).minimum(top_3)
    # not grid_sample: in half precision it would take the places in half precision too
    corner_83 = torch.cartesian_prod(*[torch.arange(2, device=points_QP3.device)] * 3)
    low_QP3 = at_QP3.floor()
    share_QP83 = (at_QP3 - low_QP3)[:, :, None]
    weight_QP8 = torch.where(corner_83 > 0, share_QP83, 1 - share_QP83).prod(-1)
    z, y, x = (low_QP3[:, :, None] + corner_83).minimum(top_3).long().unbind(-1)
    rows = torch.arange(len(features_QCzyx), device=features_QCzyx.device)[:, None, None]
    around_QP8C = features_QCzyx.movedim(1, -1)[rows, z, y, x]  # so that the gradient is channels-last
    return (around_QP8C * weight_QP8[..., None].to(around_QP8C.dtype)).sum(2)


@dataclass
class Standing:
    """What is known at the clicks of queries before they are answered.

    Attributes:
        margin_QP: Logit of the class against all others at the clicked voxel.
        disputed_QP: Whether the click says something else than the previous mask, or without one than the margin.
            A click that agrees is evidence, not a complaint.
    """

    margin_QP: Tensor
    disputed_QP: Tensor

    @classmethod
    def of(cls, batch: PromptBatch, margin_Qzyx: Tensor) -> "Standing":
        """Look at the clicked voxels.

        Args:
            batch: The queries, with a mask each.
            margin_Qzyx: Logit of the query's class against all others, before the prompt.
        """
        assert batch.mask_Qzyx is not None
        top_3 = batch.points_QP3.new_tensor([size - 1 for size in margin_Qzyx.shape[1:]])
        z, y, x = (batch.points_QP3 + 0.5).floor().clamp(min=0).minimum(top_3).long().unbind(-1)
        rows = torch.arange(len(margin_Qzyx), device=margin_Qzyx.device)[:, None]
        margin_QP = margin_Qzyx[rows, z, y, x]
        is_there_QP = torch.where(batch.has_mask_Q[:, None], batch.mask_Qzyx[rows, z, y, x] > 0, margin_QP > 0)
        is_click_QP = batch.polarity_QP != ABSENT
        return cls(margin_QP, is_click_QP & (is_there_QP != (batch.polarity_QP == POSITIVE)))


def is_complaint(batch: PromptBatch, standing: Standing) -> Tensor:
    """Tell which queries ask for a change, (Q,): those with a disputed click, a box or a previous mask."""
    return standing.disputed_QP.any(1) | batch.has_box_QR.any(1) | batch.has_mask_Q


def dense_prompts(batch: PromptBatch, standing: Standing, margin_Qzyx: Tensor, token_stride: Sequence[int]) -> Tensor:
    """Draw the prompts of each query as maps on the voxels of the window.

    Args:
        batch: The queries, with a mask each.
        standing: Of their clicks.
        margin_Qzyx: Logit of the query's class against all others, before the prompt.
        token_stride: Voxels a token covers along (z, y, x).

    Returns:
        (Q, DENSE_CHANNELS, z, y, x): disputed clicks near and far, agreed clicks, inside of a box, the previous mask
        (-1 outside of it, 0 where there is none), and the margin; each between -1 and 1, clicks negative where the
        class is not, in the type that they will be convolved in.
    """
    shape, dtype = margin_Qzyx.shape[1:], product_type(margin_Qzyx)
    sign_QP = (2 * batch.polarity_QP - 1) * (batch.polarity_QP != ABSENT)
    disputed_QP, agreed_QP = sign_QP * standing.disputed_QP, sign_QP * ~standing.disputed_QP
    channels = [
        _proximity(batch.points_QP3, weight_QP.to(dtype), shape, share, token_stride)
        for weight_QP, share in ((disputed_QP, NEAR), (disputed_QP, FAR), (agreed_QP, FAR))
    ]
    channels.append(_inside_boxes(batch, shape).to(dtype))
    assert batch.mask_Qzyx is not None
    has_mask = batch.has_mask_Q.to(dtype)[:, None, None, None]
    channels.append((2 * batch.mask_Qzyx.to(dtype) - 1) * has_mask)
    channels.append((margin_Qzyx.clamp(-LARGEST_MARGIN, LARGEST_MARGIN) / LARGEST_MARGIN).to(dtype))
    return torch.stack(channels, 1).contiguous(memory_format=preferred_format(margin_Qzyx))


def _proximity(
    points_QP3: Tensor, weight_QP: Tensor, shape: Sequence[int], share: float, token_stride: Sequence[int]
) -> Tensor:
    """Add up a Gaussian a click, within -1 and 1; each is a product of one along each axis, so they are multiplied."""
    along = []
    for axis, (size, stride) in enumerate(zip(shape, token_stride, strict=True)):
        offset_QPn = torch.arange(size, device=points_QP3.device) - points_QP3[..., axis, None]
        along.append(torch.exp(-0.5 * (offset_QPn / (share * stride)) ** 2).to(weight_QP.dtype))
    z_QPz = along[0] * weight_QP[..., None]
    plane_QPn = (along[1][..., :, None] * along[2][..., None, :]).flatten(2)
    return (z_QPz.transpose(1, 2) @ plane_QPn).clamp(-1, 1).unflatten(-1, tuple(shape[1:]))


def _inside_boxes(batch: PromptBatch, shape: Sequence[int]) -> Tensor:
    inside = torch.zeros((len(batch.samples), *shape), dtype=torch.bool, device=batch.has_box_QR.device)
    for box in range(batch.has_box_QR.shape[1]):
        low_Q3, high_Q3 = batch.corners_QR23[:, box].unbind(1)
        one = batch.has_box_QR[:, box, None, None, None]
        for axis, size in enumerate(shape):
            position_n = torch.arange(size, device=inside.device)
            within_Qn = (position_n >= low_Q3[:, axis, None] - 0.5) & (position_n <= high_Q3[:, axis, None] + 0.5)
            one = one & within_Qn.view(len(within_Qn), *(size if other == axis else 1 for other in range(3)))
        inside |= one
    return inside


class PromptEncoder(nn.Module):
    """Turn the sparse prompts of each query into tokens.

    What the published visual sampler lacks is here: where a click lies, whether it is positive, whether it agrees with
    the answer so far, and of which class it is.

    Args:
        num_classes: Channels of the logits.
        feature_channels: Channels of the features that are read at a click, finest first.
        width: Token width.
        token_stride: Voxels a token covers along (z, y, x).
    """

    def __init__(self, num_classes: int, feature_channels: Sequence[int], width: int, token_stride: Sequence[int]):
        super().__init__()
        self.token_stride = tuple(token_stride)
        class_tokens = nn.Embedding(num_classes, width)
        self.seg_layers = nn.ModuleDict({"class_tokens": class_tokens})
        self.kinds = nn.Embedding(CLICK_KINDS + 2, width)  # of clicks, then low and high corner
        self.position = nn.Linear(6 * FREQUENCIES, width)
        self.appearance = nn.Linear(sum(feature_channels) + 1, width)
        for embedding in (class_tokens, self.kinds):
            nn.init.normal_(embedding.weight, std=0.5)

    def image_positions(self, grid: Sequence[int], device: torch.device) -> Tensor:
        """Return the position code of every token of the image, (D * H * W, E)."""
        axes = [
            (torch.arange(size, device=device) + 0.5) * stride - 0.5
            for size, stride in zip(grid, self.token_stride, strict=True)
        ]
        centres_N3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        return self.position(position_features(centres_N3, self.token_stride))

    def forward(
        self, batch: PromptBatch, standing: Standing, features: Sequence[Tensor], window_shape: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            batch: The queries.
            standing: Of their clicks.
            features: Features of each query's image (Q, C, ...), finest first, at any resolution.
            window_shape: Voxels of the window (z, y, x).

        Returns:
            Tokens (Q, T, E), the class token first, then clicks, then two corners a box; and which are there, (Q, T).
        """
        class_QE = self.seg_layers["class_tokens"](batch.class_Q)
        seen = [sample_at(level, batch.points_QP3, window_shape) for level in features]
        margin_QP = standing.margin_QP.clamp(-LARGEST_MARGIN, LARGEST_MARGIN) / LARGEST_MARGIN
        seen_QPC = torch.cat((*seen, margin_QP[..., None].to(seen[0].dtype)), -1)
        kind_QPE = self.kinds(batch.polarity_QP.clamp(min=0) + 2 * standing.disputed_QP)
        place_QPE = self.position(position_features(batch.points_QP3, self.token_stride))
        clicks_QPE = class_QE[:, None] + kind_QPE + place_QPE + self.appearance(seen_QPC)
        place_QR2E = self.position(position_features(batch.corners_QR23, self.token_stride))
        corners_QR2E = class_QE[:, None, None] + self.kinds.weight[CLICK_KINDS:] + place_QR2E
        class_there = torch.ones_like(batch.class_Q, dtype=torch.bool)[:, None]
        there = (class_there, batch.polarity_QP != ABSENT, batch.has_box_QR.repeat_interleave(2, 1))
        return torch.cat((class_QE[:, None], clicks_QPE, corners_QR2E.flatten(1, 2)), 1), torch.cat(there, 1)
