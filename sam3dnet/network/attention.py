"""SAM's attention with decomposed relative position, in three dimensions and in one fused dot product.

Axes in names: B batch (or batch times windows), h heads, N tokens = D * H * W, E token width, e width of a head.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from sam3dnet.network.linear import Linear
from sam3dnet.network.target_device import device_type

FitTable = Callable[[Tensor, int], Tensor]
MASKED = -1e4  # before scaling; finite, so that bf16 and fp16 stay free of NaN
BYTES_AT_A_TIME, BYTES_AT_A_TIME_ON_CARD = 1 << 24, 1 << 26  # of augmented queries, keys and values
BYTES_MADE_AGAIN = 1 << 23  # of the same; more are made again in the backward pass, fewer are not worth the detour
FUSED_ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


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


def relative_position(query_BhNe: Tensor, fitted: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Give q . R for every key coordinate along each axis.

    Args:
        query_BhNe: Queries of the tokens of a grid, the last axis fastest.
        fitted: Relative position table of each axis, 2 * size - 1 rows.
        grid: Tokens (D, H, W).

    Returns:
        (B, h, N, D + H + W): for each axis, entry k is the bias towards keys with coordinate k.
    """
    rows = torch.cat(list(fitted)).to(query_BhNe.dtype)
    starts = [0, *accumulate(table.shape[0] for table in fitted[:-1])]
    offsets = [
        coordinate_N[:, None] - torch.arange(size, device=rows.device)[None] + size - 1 + start
        for coordinate_N, size, start in zip(coordinates(grid, rows.device), grid, starts, strict=True)
    ]
    scores_BhNR = query_BhNe @ rows.t()
    return scores_BhNR.gather(-1, torch.cat(offsets, 1).expand(*scores_BhNR.shape[:2], -1, -1))


def coordinates(grid: Sequence[int], device: torch.device) -> list[Tensor]:
    """Give the coordinates of each token along each axis of a grid, (N,) each, the last axis fastest."""
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    return [axis.flatten() for axis in axes]


class Attention3D(nn.Module):
    """Multi-head self-attention over a 3D grid of tokens; names and meaning of the weights are SAM's.

    SAM's bias q.R_h + q.R_w, here with q.R_d, is itself a dot product: the scores towards each row, column and slice
    are appended to the query and the key's one-hot coordinates to the key, so that scaled_dot_product_attention does
    the rest and no N x N bias is stored. Padding is masked the same way, by one more entry. For the backward pass the
    queries, keys and values are kept as they were before, where that saves memory.

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
        limit = BYTES_AT_A_TIME if device_type(tokens_BDHWE) == "cpu" else BYTES_AT_A_TIME_ON_CARD
        few = max(1, limit // self._augmented_bytes(tokens_BDHWE[:1]))
        if few >= len(tokens_BDHWE):
            return self._attend(tokens_BDHWE, padding_BN, wrapped_BNA)
        count = -(-len(tokens_BDHWE) // few)
        parts = [
            [None] * count if whole is None else whole.split(few) for whole in (tokens_BDHWE, padding_BN, wrapped_BNA)
        ]
        return torch.cat([self._attend(*call) for call in zip(*parts, strict=True)])

    def _augmented_bytes(self, tokens_BDHWE: Tensor) -> int:
        """Give the bytes of all augmented queries, keys and values."""
        augmented = self.heads * (tokens_BDHWE.shape[-1] // self.heads + sum(tokens_BDHWE.shape[1:4]))
        return 3 * math.prod(tokens_BDHWE.shape[:4]) * augmented * tokens_BDHWE.element_size()

    def _attend(self, tokens_BDHWE: Tensor, padding_BN: Tensor | None, wrapped_BNA: Tensor | None) -> Tensor:
        batch, *grid, width = tokens_BDHWE.shape
        tokens_BNE = tokens_BDHWE.flatten(1, 3)
        qkv = self.qkv(tokens_BNE)
        if self.qkv_adapter is not None:
            qkv = qkv + self.qkv_adapter(tokens_BNE)
        call = (qkv, grid, padding_BN, wrapped_BNA)
        learning = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # compiled, it is decided elsewhere
        if learning and self._augmented_bytes(tokens_BDHWE) >= BYTES_MADE_AGAIN:
            out = checkpoint(self._mix, *call, use_reentrant=False, preserve_rng_state=False, context_fn=keep_attention)
        else:
            out = self._mix(*call)
        return self.proj(out).view(batch, *grid, width)

    def _mix(self, qkv_BNE: Tensor, grid: list[int], padding_BN: Tensor | None, wrapped_BNA: Tensor | None) -> Tensor:
        """Mix the values of the tokens: queries, keys and values (B, N, 3 * E) -> (B, N, E)."""
        query, key, value = qkv_BNE.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        fitted = [self.fit_table(table, size) / self.scale for table, size in zip(tables, grid, strict=True)]
        query_marks, key_marks = token_marks(grid, key, padding_BN, wrapped_BNA)
        queries = [query, relative_position(query, fitted, grid), query_marks]
        query_aug, key_aug = _with_marks(queries), _with_marks([key, key_marks])
        value_aug = F.pad(value, (0, query_aug.shape[-1] - value.shape[-1]))
        out = F.scaled_dot_product_attention(query_aug, key_aug, value_aug, scale=self.scale)
        return out[..., : value.shape[-1]].transpose(1, 2).flatten(2)


def keep_attention() -> Any:
    """Keep what attention gave for the backward pass; its augmented queries, keys and values are made again."""
    return create_selective_checkpoint_contexts(FUSED_ATTENTION)


def token_marks(
    grid: Sequence[int], like: Tensor, padding_BN: Tensor | None, wrapped_BNA: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Give the entries of queries and keys that do not depend on their contents.

    Args:
        grid: Tokens (D, H, W).
        like: Tensor whose type and device they have.
        padding_BN: As for Attention3D.forward.
        wrapped_BNA: As for Attention3D.forward.

    Returns:
        Entries that follow the relative position in queries (B or 1, N, .), and all that follow the key (B or 1, N, .):
        its coordinates as one-hot vectors, then a partner for each entry of the query.
    """
    tokens = math.prod(grid)
    one_hot = [
        axis_N[:, None] == torch.arange(size, device=like.device)
        for axis_N, size in zip(coordinates(grid, like.device), grid, strict=True)
    ]
    queries, keys = [like.new_zeros(1, tokens, 0)], [torch.cat(one_hot, 1)[None].to(like.dtype)]
    if padding_BN is not None:
        queries.append(like.new_ones(1, tokens, 1))
        keys.append(padding_BN[..., None].to(like.dtype) * MASKED)
    if wrapped_BNA is not None:
        queries.append(torch.cat((wrapped_BNA, ~wrapped_BNA), -1).to(like.dtype))
        keys.append(torch.cat((~wrapped_BNA, wrapped_BNA), -1).to(like.dtype) * MASKED)
    return _side_by_side(queries), _side_by_side(keys)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Join (B or 1, N, .) along the last axis."""
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, -1, -1) for part in parts], -1)


def _with_marks(parts: list[Tensor]) -> Tensor:
    """Join (B, h, N, .) and, last, marks (B or 1, N, .) that all heads share; fused GPU kernels want multiples of 8."""
    *own, marks = parts
    missing = -sum(part.shape[-1] for part in parts) % 8
    if missing:  # torch 2.6 compiles no padding by nothing of nothing
        marks = F.pad(marks, (0, missing))
    marks = marks[:, None].expand(*own[0].shape[:2], -1, -1)
    return torch.cat([*own, marks], -1)


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
