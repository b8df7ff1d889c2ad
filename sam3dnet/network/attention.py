"""SAM's attention with decomposed relative position, in three dimensions and in one fused dot product.

Axes in names: B batch (or batch times windows), h heads, N tokens = D * H * W, E token width, e width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e4  # finite, so that bf16 and fp16 stay free of NaN


def fit_relative_table(table: Tensor, size: int) -> Tensor:
    """Give the 2 * size - 1 central rows of a relative position table, so that an offset keeps its meaning.

    Offsets beyond the table read its outermost row. (Interpolating the whole table, as published, would make an offset
    of one token read another offset's row.)

    Args:
        table: (2 * known - 1, e), the middle row for offset 0.
        size: Tokens along the axis.

    Returns:
        (2 * size - 1, e)
    """
    centre = table.shape[0] // 2
    rows = torch.arange(-(size - 1), size, device=table.device).clamp(-centre, centre) + centre
    return table[rows]


def relative_position(query_BhNe: Tensor, table: Tensor, size: int, coordinate_N: Tensor) -> Tensor:
    """Give q . R for every key coordinate along one axis.

    Args:
        query_BhNe: Unscaled queries.
        table: Relative position table of the axis, any odd number of rows.
        size: Tokens along the axis.
        coordinate_N: Each token's coordinate along the axis.

    Returns:
        (B, h, N, size): entry k is the bias towards keys with coordinate k.
    """
    fitted = fit_relative_table(table, size)
    offsets_NS = coordinate_N[:, None] - torch.arange(size, device=table.device)[None] + size - 1
    scores_BhNR = query_BhNe @ fitted.t().to(query_BhNe.dtype)
    return scores_BhNR.gather(-1, offsets_NS.expand(*scores_BhNR.shape[:2], -1, -1))


class Attention3D(nn.Module):
    """Multi-head self-attention over a 3D grid of tokens; names and meaning of the weights are SAM's.

    SAM's bias q.R_h + q.R_w, here with q.R_d, is itself a dot product: the scores towards each row, column and slice
    are appended to the query and the key's one-hot coordinates to the key, so that scaled_dot_product_attention does
    the rest and no N x N bias is stored. Padding is masked the same way, by one more entry.

    Args:
        width: Token width E.
        heads: Number of heads.
        table_size: Tokens along (depth, height, width) that the relative position tables cover.
    """

    def __init__(self, width: int, heads: int, table_size: tuple[int, int, int]):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        depth, height, breadth = table_size
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * depth - 1, width // heads))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * breadth - 1, width // heads))

    def forward(self, tokens_BDHWE: Tensor, padding_BN: Tensor | None = None) -> Tensor:
        """Attend among all tokens of each batch entry.

        Args:
            tokens_BDHWE: Tokens on their grid.
            padding_BN: True where a token is padding and must not be attended to; None where there is none.

        Returns:
            (B, D, H, W, E)
        """
        batch, *grid, width = tokens_BDHWE.shape
        qkv = self.qkv(tokens_BDHWE.flatten(1, 3))
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query_aug, key_aug = self._augment(query, key, grid, padding_BN)
        value_aug = F.pad(value, (0, query_aug.shape[-1] - value.shape[-1]))
        out = F.scaled_dot_product_attention(query_aug, key_aug, value_aug, scale=1.0)[..., : value.shape[-1]]
        return self.proj(out.transpose(1, 2).flatten(2)).view(batch, *grid, width)

    def _augment(self, query: Tensor, key: Tensor, grid: list[int], padding_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        queries, keys = [query * self.scale], [key]
        coordinates = torch.meshgrid(*(torch.arange(size, device=query.device) for size in grid), indexing="ij")
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        for coordinate, size, table in zip(coordinates, grid, tables, strict=True):
            flat_N = coordinate.flatten()
            queries.append(relative_position(query, table, size, flat_N))
            one_hot_NS = flat_N[:, None] == torch.arange(size, device=key.device)
            keys.append(one_hot_NS.to(key.dtype).expand(*key.shape[:2], -1, -1))
        if padding_BN is not None:
            queries.append(torch.ones_like(query[..., :1]))
            keys.append((padding_BN.to(key.dtype) * MASKED)[:, None, :, None].expand(-1, key.shape[1], -1, -1))
        missing = -sum(part.shape[-1] for part in queries) % 8  # fused GPU kernels want multiples of 8
        queries.append(query.new_zeros(*query.shape[:3], missing))
        keys.append(key.new_zeros(*key.shape[:3], missing))
        return torch.cat(queries, -1), torch.cat(keys, -1)


def partition_windows(tokens_BDHWE: Tensor, window: tuple[int, int, int]) -> tuple[Tensor, Tensor | None]:
    """Cut a token grid into windows, padding it at its far ends.

    Args:
        tokens_BDHWE: Tokens on any grid.
        window: Window size (depth, height, width) in tokens.

    Returns:
        Windows (B * windows, d, h, w, E) and the padding mask (B * windows, d * h * w), None where nothing was padded.
    """
    batch, *grid, _ = tokens_BDHWE.shape
    pads = [-size % side for size, side in zip(grid, window, strict=True)]
    mask = None
    if any(pads):
        inside = tokens_BDHWE.new_zeros((1, *grid, 1), dtype=torch.bool)
        widths = (0, 0, 0, pads[2], 0, pads[1], 0, pads[0])
        tokens_BDHWE = F.pad(tokens_BDHWE, widths)
        mask = _cut(F.pad(inside, widths, value=True), window).flatten(1).repeat(batch, 1)
    return _cut(tokens_BDHWE, window), mask


def _cut(x_BDHWE: Tensor, window: tuple[int, int, int]) -> Tensor:
    split = x_BDHWE.unflatten(3, (-1, window[2])).unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3)


def join_windows(windows_BdhwE: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Undo partition_windows: (B * windows, d, h, w, E) -> (B, *grid, E)."""
    window = windows_BdhwE.shape[1:4]
    counts = [-(-size // side) for size, side in zip(grid, window, strict=True)]
    split = windows_BdhwE.unflatten(0, (-1, *counts)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    whole = split.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return whole[:, : grid[0], : grid[1], : grid[2]]
