"""3DSAM-adapter's prompt encoder without its defects: clicks have position, polarity and class, boxes are welcome.

Axes in names: Q queries, T prompt tokens, N = D * H * W image tokens, C channels, E token width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam3dnet.network.prompt_decoder import TwoWayBlock
from sam3dnet.network.prompt_encoder import PromptBatch, PromptEncoder, Standing, is_complaint

GLOBAL_QUERIES = 10
ROUNDS = 2


class ClickEncoder(nn.Module):
    """Change the last level of features by prompts; the identity at birth, and where all clicks agree with the margin.

    The features at each click ("visual sampler") and ten global queries are the published ones; position, polarity and
    class are added to them, and they do attend to the image.

    Args:
        num_classes: Channels of the logits.
        width: Channels of the level.
        token_stride: Voxels a token covers along (z, y, x).
    """

    def __init__(self, num_classes: int, width: int, token_stride: Sequence[int]):
        super().__init__()
        self.prompts = PromptEncoder(num_classes, (width,), width, token_stride)
        self.queries = nn.Parameter(0.1 * torch.randn(1, GLOBAL_QUERIES, width))
        blocks = [TwoWayBlock(width) for _ in range(ROUNDS)]
        self.blocks = nn.ModuleList(blocks)
        for block in blocks:
            for parameter in block.from_image.proj.parameters():
                nn.init.zeros_(parameter)

    def forward(self, level_QCDHW: Tensor, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Return the changed level of each query's image, same shape.

        Args:
            level_QCDHW: The level of each query's image.
            batch: The queries, with a mask each.
            margin_Qzyx: Logit of the query's class against all others, before the prompt.
        """
        standing = Standing.of(batch, margin_Qzyx)
        prompts_QTE, there_QT = self.prompts(batch, standing, (level_QCDHW,), margin_Qzyx.shape[1:])
        prompts_QTE = torch.cat((prompts_QTE, self.queries.expand(len(prompts_QTE), -1, -1)), 1)
        there_QT = torch.cat((there_QT, there_QT.new_ones((len(there_QT), GLOBAL_QUERIES))), 1)
        grid = level_QCDHW.shape[2:]
        before_QNE = level_QCDHW.flatten(2).transpose(1, 2) + self.prompts.image_positions(grid, level_QCDHW.device)
        image_QNE = before_QNE
        for block in self.blocks:
            prompts_QTE, image_QNE = block(prompts_QTE, image_QNE, there_QT)
        change_QNE = (image_QNE - before_QNE) * is_complaint(batch, standing)[:, None, None]
        return level_QCDHW + change_QNE.transpose(1, 2).unflatten(2, grid)
