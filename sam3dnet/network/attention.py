"""SAM's attention with decomposed relative position, in three dimensions and in one fused dot product.

Axes in names: B batch (or batch times windows), h heads, N tokens = D * H * W, E token width, e width of a head.
"""

import math
from collections.abc import Callable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.linear import Linear

FitTable = Callable[[Tensor, int], Tensor]
MASKED = -1e4  # before scaling; finite, so that bf16 and fp16 stay free of NaN
BYTES_AT_A_TIME, BYTES_AT_A_TIME_ON_CARD = 1 << 24, 1 << 28  # of augmented queries, keys and values


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


def relative_position(query_BhNe: Tensor, fitted: Tensor, size: int, coordinate_N: Tensor) -> Tensor:
    """Give q . R for every key coordinate along one axis.

    Args:
        query_BhNe: Unscaled queries.
        fitted: Relative position table of the axis, 2 * size - 1 rows.
        size: Tokens along the axis.
        coordinate_N: Each token's coordinate along the axis.

    Returns:
        (B, h, N, size): entry k is the bias towards keys with coordinate k.
    """
    offsets_NS = coordinate_N[:, None] - torch.arange(size, device=fitted.device)[None] + size - 1
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
        qkv_adapter: What it returns for tokens (B, N, E) is added to their queries, keys and values (B, N, 3 * E).
        fit_table: (table, tokens along its axis) -> table of 2 * tokens - 1 rows.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        table_size: tuple[int, int, int],
        qkv_adapter: nn.Module | None = None,
        fit_table: FitTable = fit_relative_table,
    ):
        super().__init__()
        self.heads = heads
        self.fit_table = fit_table
        self.qkv_adapter = qkv_adapter
        self.scale = (width // heads) ** -0.5
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        depth, height, breadth = table_size
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * depth - 1, width // heads))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * breadth - 1, width // heads))

    def forward(
        self, tokens_BDHWE: Tensor, padding_BN: Tensor | None = None, wrapped_BNA: Tensor | None = None
    ) -> Tensor:
        """Attend among all tokens of each batch entry.

        Args:
            tokens_BDHWE: Tokens on their grid.
            padding_BN: True where a token is padding and must not be attended to; None where there is none.
            wrapped_BNA: For each axis, True where a token came from the other end of the grid; tokens that differ in
                any of them do not attend to each other. None where none did.

        Returns:
            (B, D, H, W, E)
        """
        few = self._at_a_time(tokens_BDHWE)
        if few >= len(tokens_BDHWE):
            return self._attend(tokens_BDHWE, padding_BN, wrapped_BNA)
        parts = [None if whole is None else whole.split(few) for whole in (tokens_BDHWE, padding_BN, wrapped_BNA)]
        calls = zip(*(part or repeat(None) for part in parts), strict=False)
        return torch.cat([self._attend(*call) for call in calls])

    def _at_a_time(self, tokens_BDHWE: Tensor) -> int:
        """Give how many batch entries to take together, such as windows, so that queries and keys take little room."""
        limit = BYTES_AT_A_TIME if tokens_BDHWE.device.type == "cpu" else BYTES_AT_A_TIME_ON_CARD
        tokens = math.prod(tokens_BDHWE.shape[1:4])
        augmented = self.heads * (tokens_BDHWE.shape[-1] // self.heads + sum(tokens_BDHWE.shape[1:4]))
        return max(1, limit // (3 * tokens * augmented * tokens_BDHWE.element_size()))

    def _attend(self, tokens_BDHWE: Tensor, padding_BN: Tensor | None, wrapped_BNA: Tensor | None) -> Tensor:
        batch, *grid, width = tokens_BDHWE.shape
        tokens_BNE = tokens_BDHWE.flatten(1, 3)
        qkv = self.qkv(tokens_BNE)
        if self.qkv_adapter is not None:
            qkv = qkv + self.qkv_adapter(tokens_BNE)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query_aug, key_aug = self._augment(query, key, grid, (padding_BN, wrapped_BNA))
        value_aug = F.pad(value, (0, query_aug.shape[-1] - value.shape[-1]))
        out = F.scaled_dot_product_attention(query_aug, key_aug, value_aug, scale=self.scale)[..., : value.shape[-1]]
        return self.proj(out.transpose(1, 2).flatten(2)).view(batch, *grid, width)

    def _augment(
        self, query: Tensor, key: Tensor, grid: list[int], masks: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        padding_BN, wrapped_BNA = masks
        queries, keys = [query], [key]
        coordinates = torch.meshgrid(*(torch.arange(size, device=query.device) for size in grid), indexing="ij")
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        for coordinate, size, table in zip(coordinates, grid, tables, strict=True):
            flat_N = coordinate.flatten()
            queries.append(relative_position(query, self.fit_table(table, size), size, flat_N) / self.scale)
            one_hot_NS = flat_N[:, None] == torch.arange(size, device=key.device)
            keys.append(one_hot_NS.to(key.dtype).expand(*key.shape[:2], -1, -1))
        if padding_BN is not None:
            queries.append(torch.ones_like(query[..., :1]))
            keys.append((padding_BN.to(key.dtype) * MASKED)[:, None, :, None].expand(-1, key.shape[1], -1, -1))
        if wrapped_BNA is not None:
            queries.append(_per_head(torch.cat((wrapped_BNA, ~wrapped_BNA), -1), query))
            keys.append(_per_head(torch.cat((~wrapped_BNA, wrapped_BNA), -1), key) * MASKED)
        missing = -sum(part.shape[-1] for part in queries) % 8  # fused GPU kernels want multiples of 8
        queries.append(query.new_zeros(*query.shape[:3], missing))
        keys.append(key.new_zeros(*key.shape[:3], missing))
        return torch.cat(queries, -1), torch.cat(keys, -1)


def _per_head(flags_BNA: Tensor, like_BhNe: Tensor) -> Tensor:
    return flags_BNA.to(like_BhNe.dtype)[:, None].expand(-1, like_BhNe.shape[1], -1, -1)


def partition_windows(
    tokens_BDHWE: Tensor, window: tuple[int, int, int], shift: tuple[int, int, int] = (0, 0, 0)
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Cut a token grid into windows, padding it at its far ends.

    Args:
        tokens_BDHWE: Tokens on any grid.
        window: Window size (depth, height, width) in tokens.
        shift: Tokens along each axis by which the windows are shifted; the grid is a ring then, as in Swin.

    Returns:
        Windows (B * windows, d, h, w, E); the padding mask (B * windows, d * h * w), None where nothing was padded; and
        along which axes a token came round the ring (B * windows, d * h * w, 3), None without a shift.
    """
    batch, *grid, _ = tokens_BDHWE.shape
    pads = [-size % side for size, side in zip(grid, window, strict=True)]
    padding = wrapped = None
    if any(pads):
        inside = tokens_BDHWE.new_zeros((1, *grid, 1), dtype=torch.bool)
        widths = (0, 0, 0, pads[2], 0, pads[1], 0, pads[0])
        tokens_BDHWE = F.pad(tokens_BDHWE, widths)
        padding = F.pad(inside, widths, value=True)
    if any(shift):
        back = [-step for step in shift]
        tokens_BDHWE = tokens_BDHWE.roll(back, (1, 2, 3))
        padding = None if padding is None else padding.roll(back, (1, 2, 3))
        wrapped = _cut(_came_round(tokens_BDHWE, shift), window).flatten(1, 3).repeat(batch, 1, 1)
    mask = None if padding is None else _cut(padding, window).flatten(1).repeat(batch, 1)
    return _cut(tokens_BDHWE, window), mask, wrapped


def _came_round(tokens_BDHWE: Tensor, shift: tuple[int, int, int]) -> Tensor:
    """Tell which positions of a rolled grid hold tokens from its other end, along each axis: (1, D, H, W, 3)."""
    grid = tokens_BDHWE.shape[1:4]
    axes = [
        torch.arange(size, device=tokens_BDHWE.device) >= size - step for size, step in zip(grid, shift, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]


def _cut(x_BDHWE: Tensor, window: tuple[int, int, int]) -> Tensor:
    split = x_BDHWE.unflatten(3, (-1, window[2])).unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3)


def join_windows(windows_BdhwE: Tensor, grid: tuple[int, int, int], shift: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Undo partition_windows: (B * windows, d, h, w, E) -> (B, *grid, E)."""
    window = windows_BdhwE.shape[1:4]
    counts = [-(-size // side) for size, side in zip(grid, window, strict=True)]
    split = windows_BdhwE.unflatten(0, (-1, *counts)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    whole = split.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    if any(shift):
        whole = whole.roll(shift, (1, 2, 3))
    return whole[:, : grid[0], : grid[1], : grid[2]]
