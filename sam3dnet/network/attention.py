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
BYTES_AT_A_TIME, BYTES_AT_A_TIME_ON_CARD = 1 << 24, 1 << 28  # of augmented queries, keys and values
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
    beyond = max(0, size - 1 - centre)
    inner = table[max(0, centre - size + 1) : centre + size]
    if not beyond:
        return inner
    # rows by a clamped index would be one call, for which torch 2.11 compiles nothing on a card
    return torch.cat((table[:1].expand(beyond, -1), inner, table[-1:].expand(beyond, -1)))


def relative_position(query_BhNe: Tensor, fitted: Sequence[Tensor], row_NA: Tensor) -> Tensor:
    """Give q . R for every key coordinate along each axis.

    Args:
        query_BhNe: Queries of the tokens of a grid, the last axis fastest.
        fitted: Relative position table of each axis, 2 * size - 1 rows.
        row_NA: Rows of the joined tables, of `GridPositions`.

    Returns:
        (B, h, N, A): for each axis, entry k is the bias towards keys with coordinate k.
    """
    scores_BhNR = query_BhNe @ torch.cat(list(fitted)).to(query_BhNe.dtype).t()
    return scores_BhNR.gather(-1, row_NA.expand(*scores_BhNR.shape[:2], -1, -1))


class GridPositions:
    """Where the tokens of a grid lie: what attention needs to know of it, whatever they contain.

    Args:
        grid: Tokens (D, H, W), N in all; A = D + H + W.
        like: Tensor whose type and device it is for.

    Attributes:
        row_NA: For a query and a key's coordinate along an axis, the row of the joined relative position tables, which
            have 2 * size - 1 rows each.
        one_hot_1NA: Coordinates of the tokens along each axis, as one-hot vectors side by side.
    """

    def __init__(self, grid: Sequence[int], like: Tensor):
        keys = [torch.arange(size, device=like.device) for size in grid]
        coordinates = [axis.flatten()[:, None] for axis in torch.meshgrid(*keys, indexing="ij")]
        firsts = accumulate((2 * size - 1 for size in grid[:-1]), initial=0)
        sides = list(zip(coordinates, keys, grid, firsts, strict=True))
        self.row_NA = torch.cat([query - key + size - 1 + first for query, key, size, first in sides], 1)
        self.one_hot_1NA = torch.cat([query == key for query, key, _, _ in sides], 1)[None].to(like.dtype)


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
        self._positions: dict[tuple[Any, ...], GridPositions] = {}
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
        call = (qkv, grid, self._positions_of(grid, qkv), padding_BN, wrapped_BNA)
        learning = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # compiled, it is decided elsewhere
        if learning and self._augmented_bytes(tokens_BDHWE) >= BYTES_MADE_AGAIN:
            out = checkpoint(self._mix, *call, use_reentrant=False, preserve_rng_state=False, context_fn=keep_attention)
        else:
            out = self._mix(*call)
        return self.proj(out).view(batch, *grid, width)

    def _mix(
        self,
        qkv_BNE: Tensor,
        grid: list[int],
        positions: GridPositions,
        padding_BN: Tensor | None,
        wrapped_BNA: Tensor | None,
    ) -> Tensor:
        """Mix the values of the tokens: queries, keys and values (B, N, 3 * E) -> (B, N, E)."""
        query, key, value = qkv_BNE.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        fitted = [self.fit_table(table, size) / self.scale for table, size in zip(tables, grid, strict=True)]
        query_marks, key_marks = token_marks(positions.one_hot_1NA, padding_BN, wrapped_BNA)
        queries = [query, relative_position(query, fitted, positions.row_NA), query_marks]
        query_aug, key_aug = _with_marks(queries), _with_marks([key, key_marks])
        value_aug = F.pad(value, (0, query_aug.shape[-1] - value.shape[-1]))
        out = _attention(query_aug, key_aug, value_aug, self.scale)
        return out[..., : value.shape[-1]].transpose(1, 2).flatten(2)

    def _positions_of(self, grid: Sequence[int], like: Tensor) -> GridPositions:
        """Give the positions of a grid, computed the first time; compiled code computes them where it needs them."""
        if torch.compiler.is_compiling():
            return GridPositions(grid, like)
        key = (*grid, like.dtype, like.device)
        if key not in self._positions:
            with torch.inference_mode(False):  # what prediction meets first, training may need later
                self._positions[key] = GridPositions(grid, like)
        return self._positions[key]


def _attention(query_BhNe: Tensor, key_BhNe: Tensor, value_BhNe: Tensor, scale: float) -> Tensor:
    """Attend; in ONNX, whose runtimes store all scores, for so many queries at a time that these stay few."""
    if not torch.onnx.is_in_onnx_export():
        return F.scaled_dot_product_attention(query_BhNe, key_BhNe, value_BhNe, scale=scale)
    scores_a_query = math.prod(query_BhNe.shape[:2]) * key_BhNe.shape[-2] * query_BhNe.element_size()
    parts = query_BhNe.split(max(1, BYTES_AT_A_TIME // scores_a_query), -2)
    return torch.cat([F.scaled_dot_product_attention(part, key_BhNe, value_BhNe, scale=scale) for part in parts], -2)


def keep_attention() -> Any:
    """Keep what attention gave for the backward pass; its augmented queries, keys and values are made again."""
    return create_selective_checkpoint_contexts(FUSED_ATTENTION)


def token_marks(one_hot_1NA: Tensor, padding_BN: Tensor | None, wrapped_BNA: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give the entries of queries and keys that do not depend on their contents.

    Args:
        one_hot_1NA: Coordinates of the tokens, of `GridPositions`.
        padding_BN: As for Attention3D.forward.
        wrapped_BNA: As for Attention3D.forward.

    Returns:
        Entries that follow the relative position in queries (B or 1, N, .), and all that follow the key (B or 1, N, .):
        its coordinates, then a partner for each entry of the query.
    """
    like, tokens = one_hot_1NA, one_hot_1NA.shape[1]
    queries, keys = [like.new_zeros(1, tokens, 0)], [one_hot_1NA]
    if padding_BN is not None:
        queries.append(like.new_ones(1, tokens, 1))
        keys.append(padding_BN[..., None].to(like.dtype) * MASKED)
    if wrapped_BNA is not None:
        queries.append(torch.cat((wrapped_BNA, ~wrapped_BNA), -1).to(like.dtype))
        keys.append(torch.cat((~wrapped_BNA, wrapped_BNA), -1).to(like.dtype) * MASKED)
    return _side_by_side(queries), _side_by_side(keys)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Join (B or 1, N, .) along the last axis."""
    if len(parts) == 1:
        return parts[0]
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
