"""3DSAM-adapter's prompt encoder as published: features at the clicks and global queries, attended to by the image.

Axes in names: Q queries, P clicks, T prompt tokens, N = D * H * W image tokens, E token width.
"""

import torch
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from sam3dnet.network.prompt_encoder import POSITIVE, PromptBatch, sample_at

GLOBAL_QUERIES = 10
HEADS = 8
ROUNDS = 2


class SamplerBlock(nn.Module):
    """Queries and clicks attend to each other; the image attends to the queries.

    `tokens_to_image` and its norm are never called, as published: they are there for the published parameter count.

    Args:
        width: Token width.
    """

    def __init__(self, width: int):
        super().__init__()
        self.queries = nn.Parameter(0.1 * torch.randn(1, GLOBAL_QUERIES, width))
        self.among_tokens = Attention(width, HEADS)
        self.norm1 = nn.LayerNorm(width)
        self.tokens_to_image = Attention(width, HEADS, downsample_rate=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, 8 * width, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.image_to_tokens = Attention(width, HEADS, downsample_rate=2)
        self.norm4 = nn.LayerNorm(width)

    def forward(self, image_1NE: Tensor, clicks_1PE: Tensor) -> tuple[Tensor, Tensor]:
        """Return image tokens and click tokens of the same shapes."""
        tokens = torch.cat((self.queries, clicks_1PE), 1)
        tokens = self.norm1(tokens + self.among_tokens(q=tokens, k=tokens, v=tokens))
        tokens = self.norm3(tokens + self.mlp(tokens))
        queries, clicks_1PE = tokens[:, :GLOBAL_QUERIES], tokens[:, GLOBAL_QUERIES:]
        return self.norm4(image_1NE + self.image_to_tokens(q=image_1NE, k=queries, v=queries)), clicks_1PE


class VisualSampler(nn.Module):
    """Change the last level of features by clicks, as published: a click has neither position nor polarity.

    A negative click cannot be said and is left out; a box, which the paper does not know, counts as a click at its
    centre.

    Args:
        width: Channels of the level.
    """

    def __init__(self, width: int):
        super().__init__()
        self.blocks = nn.ModuleList(SamplerBlock(width) for _ in range(ROUNDS))

    def forward(self, level_QCDHW: Tensor, batch: PromptBatch | None, window_shape: tuple[int, ...]) -> Tensor:
        """Return the changed level of each query.

        Args:
            level_QCDHW: The level, one entry a query.
            batch: The queries; None for images without a click, which the global queries change as well.
            window_shape: Voxels of the window (z, y, x).
        """
        changed = []
        for row in range(len(level_QCDHW)):
            level = level_QCDHW[row : row + 1]
            clicks = _clicks(level, batch, row, window_shape)
            image = level.flatten(2).transpose(1, 2)
            for block in self.blocks:
                image, clicks = block(image, clicks)
            changed.append(image.transpose(1, 2).unflatten(2, level.shape[2:]))
        return torch.cat(changed)


def _clicks(level_1CDHW: Tensor, batch: PromptBatch | None, row: int, window_shape: tuple[int, ...]) -> Tensor:
    if batch is None:
        return level_1CDHW.new_zeros((1, 0, level_1CDHW.shape[1]))
    points_P3 = batch.points_QP3[row][batch.polarity_QP[row] == POSITIVE]
    centres_R3 = batch.corners_QR23[row].mean(1)[batch.has_box_QR[row]]
    points_1P3 = torch.cat((points_P3, centres_R3))[None]
    sample = torch.zeros(1, dtype=torch.long, device=points_1P3.device)
    return sample_at(level_1CDHW, sample, points_1P3, window_shape)
