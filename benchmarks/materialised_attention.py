"""SAM's attention as published: scores and bias are N x N tensors; beside it ours is measured.

Axes in names: B batch or windows, h heads, N tokens = D * H * W, e width of a head.
"""

import torch
from torch import Tensor, nn

from sam3dnet.network.attention import MASKED, Attention3D


class MaterialisedAttention(Attention3D):
    """Attention3D with the score matrix and the bias in memory; weights and results are the same."""

    def forward(
        self, tokens_BDHWE: Tensor, padding_BN: Tensor | None = None, wrapped_BNA: Tensor | None = None
    ) -> Tensor:
        """Attend among all tokens of each batch entry, as the base class says."""
        batch, *grid, width = tokens_BDHWE.shape
        tokens_BNE = tokens_BDHWE.flatten(1, 3)
        qkv = self.qkv(tokens_BNE)
        if self.qkv_adapter is not None:
            qkv = qkv + self.qkv_adapter(tokens_BNE)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = self._with_bias((query * self.scale) @ key.transpose(-2, -1), query, grid)
        if padding_BN is not None:
            scores = scores + padding_BN[:, None, None].to(scores.dtype) * MASKED
        if wrapped_BNA is not None:
            apart_BNN = (wrapped_BNA[:, :, None] != wrapped_BNA[:, None]).any(-1)
            scores = scores + apart_BNN[:, None].to(scores.dtype) * MASKED
        out = scores.softmax(-1) @ value
        return self.proj(out.transpose(1, 2).flatten(2)).view(batch, *grid, width)

    def _with_bias(self, scores_BhNN: Tensor, query_BhNe: Tensor, grid: list[int]) -> Tensor:
        """Add q.R_d, q.R_h and q.R_w, one after the other, as SAM does."""
        query = query_BhNe.unflatten(2, grid)
        scores = scores_BhNN.unflatten(3, grid).unflatten(2, grid)
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        axes = ("Bhdyxe,dke->Bhdyxk", "Bhzdxe,dke->Bhzdxk", "Bhzyde,dke->Bhzydk")
        for axis, (size, table, equation) in enumerate(zip(grid, tables, axes, strict=True)):
            coordinates = torch.arange(size, device=table.device)
            offsets = coordinates[:, None] - coordinates[None] + size - 1
            bias = torch.einsum(equation, query, self.fit_table(table, size)[offsets].to(query.dtype))
            for other in range(3):
                bias = bias.unsqueeze(5 + other) if other != axis else bias
            scores = scores + bias
        return scores.flatten(5, 7).flatten(2, 4)


def materialise(network: nn.Module) -> nn.Module:
    """Make every attention of a network compute as published; the weights stay what they are."""
    for module in network.modules():
        if type(module) is Attention3D:
            module.__class__ = MaterialisedAttention
    return network
