"""3DSAM-adapter's prompt encoder as published: features at the clicks and global queries, attended to by the image.

Axes in names: B images, Q queries (one class of one image each), P clicks, N = D * H * W image tokens, E width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.prompt_encoder import POSITIVE, PromptBatch, sample_at

GLOBAL_QUERIES = 10
HEADS = 8
ROUNDS = 2


class ProjectedAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are projected to an inner width, as in SAM's mask decoder.

    Args:
        width: Token width.
        inner: Width of all heads together.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, query_QNE: Tensor, context_QTE: Tensor, there_QT: Tensor | None = None) -> Tensor:
        """Return (Q, N, E); there_QT is False where context is padding."""
        projected = ((self.query, query_QNE), (self.key, context_QTE), (self.value, context_QTE))
        query, key, value = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer, x in projected)
        mask = None if there_QT is None else there_QT[:, None, None]
        return self.out(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class SamplerBlock(nn.Module):
    """Queries and clicks attend to each other; the image attends to the queries.

    `tokens_to_image` and its norm are never called, as published: they are there for the published parameter count.

    Args:
        width: Token width.
    """

    def __init__(self, width: int):
        super().__init__()
        self.queries = nn.Parameter(0.1 * torch.randn(1, GLOBAL_QUERIES, width))
        self.among_tokens = ProjectedAttention(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.tokens_to_image = ProjectedAttention(width, width // 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 8 * width), nn.ReLU(), nn.Linear(8 * width, width))
        self.norm3 = nn.LayerNorm(width)
        self.image_to_tokens = ProjectedAttention(width, width // 2)
        self.norm4 = nn.LayerNorm(width)

    def forward(self, image_QNE: Tensor, clicks_QPE: Tensor, there_QP: Tensor) -> tuple[Tensor, Tensor]:
        """Return image tokens and click tokens of the same shapes; there_QP is False where a click is padding."""
        tokens = torch.cat((self.queries.expand(len(image_QNE), -1, -1), clicks_QPE), 1)
        there = torch.cat((there_QP.new_ones((len(there_QP), GLOBAL_QUERIES)), there_QP), 1)
        tokens = self.norm1(tokens + self.among_tokens(tokens, tokens, there))
        tokens = self.norm3(tokens + self.mlp(tokens))
        queries, clicks_QPE = tokens[:, :GLOBAL_QUERIES], tokens[:, GLOBAL_QUERIES:]
        return self.norm4(image_QNE + self.image_to_tokens(image_QNE, queries)), clicks_QPE


class VisualSampler(nn.Module):
    """Change the last level of features by clicks, as published: a click has neither position nor polarity.

    A negative click cannot be said and is left out; a box, which the paper does not know, counts as a click at its
    centre. Where nothing is clicked the global queries change the level all the same.

    Args:
        width: Channels of the level.
    """

    def __init__(self, width: int):
        super().__init__()
        self.blocks = nn.ModuleList(SamplerBlock(width) for _ in range(ROUNDS))

    def forward(self, level_QCDHW: Tensor, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Return the changed level of each query's image, same shape.

        Args:
            level_QCDHW: The level of each query's image.
            batch: The queries.
            margin_Qzyx: Of the windows; as published it is not looked at.
        """
        points_QP3 = torch.cat((batch.points_QP3, batch.corners_QR23.mean(2)), 1)
        there_QP = torch.cat((batch.polarity_QP == POSITIVE, batch.has_box_QR), 1)
        clicks_QPE = sample_at(level_QCDHW, points_QP3, margin_Qzyx.shape[1:])
        return self._change(level_QCDHW, clicks_QPE, there_QP)

    def without_clicks(self, level_BCDHW: Tensor) -> Tensor:
        """Return the level of each image as it is where nothing is clicked."""
        nothing = level_BCDHW.new_zeros((len(level_BCDHW), 0, level_BCDHW.shape[1]))
        return self._change(level_BCDHW, nothing, nothing[..., 0].bool())

    def _change(self, level_QCDHW: Tensor, clicks_QPE: Tensor, there_QP: Tensor) -> Tensor:
        image = level_QCDHW.flatten(2).transpose(1, 2)
        for block in self.blocks:
            image, clicks_QPE = block(image, clicks_QPE, there_QP)
        return image.transpose(1, 2).unflatten(2, level_QCDHW.shape[2:])
