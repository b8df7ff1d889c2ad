"""SAM's image encoder over volumes: tokens, position, blocks with adapters, four levels of features.

Axes in names: B batch, C channels, z y x voxels, D H W tokens, E token width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam3dnet.network.attention import Attention3D, join_windows, partition_windows
from sam3dnet.network.layers import Conv3d, PointwiseConv, repeat_outer
from sam3dnet.network.linear import Linear
from sam3dnet.network.patch_embedding import PatchEmbed3D
from sam3dnet.network.tuning import (
    AFTER_ATTENTION,
    AFTER_MLP,
    DEFAULT_TUNING,
    ENTRANCE,
    EXIT,
    QKV,
    TUNINGS,
    Tuning,
    encoder_part,
)

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class EncoderSize:
    """The dimensions of an encoder.

    Attributes:
        width: Token width.
        depth: Number of blocks.
        heads: Attention heads.
        global_blocks: Blocks that attend over the whole grid; the others attend within windows.
        window: Window (depth, height, width) in tokens.
        adapter_width: Bottleneck of the adapters.
        neck_width: Channels of each level that leaves the encoder.
        global_table: Tokens a side that the relative tables of global blocks cover; None: the token grid.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: tuple[int, int, int]
    adapter_width: int
    neck_width: int
    global_table: int | None = None

    def level_blocks(self) -> tuple[int, ...]:
        """Return the four blocks, counted from 0, after which a level leaves the encoder; -1 for before the first."""
        return tuple(self.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))


@dataclass(frozen=True)
class BlockLayout:
    """Which tokens a block attends to.

    Attributes:
        window: Window (depth, height, width) in tokens, None for attention over the whole grid.
        table_size: Tokens along (depth, height, width) that the relative position tables cover.
        shifted: Whether the windows are shifted by half their size, as in every other block of Swin.
    """

    window: tuple[int, int, int] | None
    table_size: tuple[int, int, int]
    shifted: bool = False


def sam_layout(size: EncoderSize, index: int, token_grid: tuple[int, int, int]) -> BlockLayout:
    """Lay a block out as SAM does: most within windows, a few over the whole grid."""
    if index not in size.global_blocks:
        return BlockLayout(size.window, size.window)
    side = size.global_table
    return BlockLayout(None, (token_grid[0], side, side) if side else token_grid)


def fitted_layout(size: EncoderSize, index: int, token_grid: tuple[int, int, int]) -> BlockLayout:
    """Lay a block out as SAM does, in windows that fit the token grid, see `fitted_window`."""
    layout = sam_layout(size, index, token_grid)
    return layout if layout.window is None else replace(layout, window=fitted_window(layout.window, token_grid))


def fitted_window(window: tuple[int, int, int], token_grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Share the tokens of each axis evenly among as many windows as there must be, so that little padding is needed.

    11 tokens give two windows of 6, and not of 8, which would be padded to 16.

    Args:
        window: The largest there may be, in tokens.
        token_grid: Tokens to share.
    """
    depth, height, width = (-(-tokens // -(-tokens // side)) for tokens, side in zip(token_grid, window, strict=True))
    return depth, height, width


class TransformerBlock3D(nn.Module):
    """Attention (windowed or global) and MLP, each with a residual connection, and places for adapters.

    Args:
        size: Dimensions of the encoder.
        layout: Which tokens attend to each other.
        parts: Makes the attention, and the adapters of the tuning method.
    """

    def __init__(self, size: EncoderSize, layout: BlockLayout, parts: "EncoderParts"):
        super().__init__()

        def place(name: str) -> nn.Module | None:
            return parts.tuning.make(name, size.width, size.adapter_width)

        self.layout = layout
        self.adapter = place(ENTRANCE) or nn.Identity()
        self.norm1 = nn.LayerNorm(size.width, eps=LAYER_NORM_EPS)
        self.attn = parts.attention(size.width, size.heads, layout.table_size, place(QKV))
        self.attention_adapter = place(AFTER_ATTENTION) or nn.Identity()
        self.norm2 = nn.LayerNorm(size.width, eps=LAYER_NORM_EPS)
        self.mlp = nn.ModuleDict(
            {"lin1": Linear(size.width, 4 * size.width), "lin2": Linear(4 * size.width, size.width)}
        )
        self.mlp_adapter = place(AFTER_MLP) or nn.Identity()
        self.exit_adapter = place(EXIT) or nn.Identity()

    def forward(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return tokens of the same shape (B, D, H, W, E)."""
        tokens_BDHWE = self.adapter(tokens_BDHWE)
        tokens_BDHWE = tokens_BDHWE + self.attention_adapter(self._attend(self.norm1(tokens_BDHWE)))
        hidden = self.mlp["lin2"](F.gelu(self.mlp["lin1"](self.norm2(tokens_BDHWE))))
        return self.exit_adapter(tokens_BDHWE + self.mlp_adapter(hidden))

    def _attend(self, tokens_BDHWE: Tensor) -> Tensor:
        grid = (tokens_BDHWE.shape[1], tokens_BDHWE.shape[2], tokens_BDHWE.shape[3])
        if self.layout.window is None:
            return self.attn(tokens_BDHWE)
        sides = [min(side, size) for side, size in zip(self.layout.window, grid, strict=True)]
        # a window as large as the grid sees everything already
        steps = [
            side // 2 if self.layout.shifted and side < size else 0 for side, size in zip(sides, grid, strict=True)
        ]
        shift = (steps[0], steps[1], steps[2])
        windows, padding, wrapped = partition_windows(tokens_BDHWE, (sides[0], sides[1], sides[2]), shift)
        return join_windows(self.attn(windows, padding, wrapped), grid, shift)


class LayerNormChannels(nn.LayerNorm):
    """Layer norm over the channels of (B, C, D, H, W)."""

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the normalised volume, same shape."""
        return super().forward(x_BCDHW.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class Neck3D(nn.Module):
    """SAM's neck (1x1 convolution, norm, 3x3 convolution, norm) with a depth of three slices in the second convolution.

    The depth is padded by repeating the outer slices and starts as a mean, so a volume that is constant along depth
    gives SAM's own features in every slice.

    Args:
        width: Token width.
        channels: Channels out.
        zeros_around: Whether the depth is padded by zeros instead.
    """

    def __init__(self, width: int, channels: int, zeros_around: bool = False):
        super().__init__()
        self.zeros_around = zeros_around
        self.conv1 = PointwiseConv(width, channels, bias=False)
        self.norm1 = LayerNormChannels(channels, eps=LAYER_NORM_EPS)
        self.conv2 = Conv3d(channels, channels, 3, padding=(0, 1, 1), bias=False)
        self.norm2 = LayerNormChannels(channels, eps=LAYER_NORM_EPS)

    def forward(self, x_BEDHW: Tensor) -> Tensor:
        """Return (B, channels, D, H, W)."""
        hidden = self.norm1(self.conv1(x_BEDHW))
        if self.zeros_around:
            padded = F.pad(hidden, (0, 0, 0, 0, 1, 1))
        else:
            padded = repeat_outer(hidden, [(1, 1), (0, 0), (0, 0)])
        return self.norm2(self.conv2(padded))


def resize_position_table(table_HWE: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample an absolute position table (H, W, E) to another grid of tokens, (*grid, E), with antialiasing."""
    resized = F.interpolate(table_HWE.permute(2, 0, 1)[None], grid, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0)


def keep_start(_encoder: "ImageEncoder3D") -> None:
    """Leave what SAM does not have at its initial values."""


@dataclass(frozen=True)
class EncoderParts:
    """What an encoder is made of.

    Attributes:
        tuning: What is put into the blocks, and what is trained.
        layout: (dimensions, index of the block, token grid) -> which tokens the block attends to.
        patch_embed: (image channels, token width, token stride) -> module from an image to tokens (B, E, D, H, W).
        attention: (token width, heads, size of the tables, adapter of queries, keys and values) -> module.
        neck: (token width, channels) -> module from tokens (B, E, D, H, W) to a level.
        resize_table: (position table (H, W, E), grid) -> table (*grid, E).
        after_loading: Called after SAM's weights were loaded; sets what derives from them.
    """

    tuning: Tuning = TUNINGS[DEFAULT_TUNING]
    layout: Callable[[EncoderSize, int, tuple[int, int, int]], BlockLayout] = sam_layout
    patch_embed: Callable[[int, int, tuple[int, int, int]], nn.Module] = PatchEmbed3D
    attention: Callable[[int, int, tuple[int, int, int], nn.Module | None], nn.Module] = Attention3D
    neck: Callable[[int, int], nn.Module] = Neck3D
    resize_table: Callable[[Tensor, tuple[int, int]], Tensor] = resize_position_table
    after_loading: Callable[["ImageEncoder3D"], None] = keep_start


class ImageEncoder3D(nn.Module):
    """Turn a volume into four levels of features on the token grid.

    Args:
        size: Dimensions of the encoder.
        input_channels: Channels of the image.
        token_grid: Tokens (depth, height, width) of a training patch; other grids work too.
        token_stride: Voxels a token covers along (z, y, x).
        parts: What it is made of.
    """

    def __init__(
        self,
        size: EncoderSize,
        input_channels: int,
        token_grid: tuple[int, int, int],
        token_stride: tuple[int, int, int],
        parts: EncoderParts | None = None,
    ):
        super().__init__()
        self.size = size
        self.token_stride = token_stride
        self.parts = parts or EncoderParts()
        self.checkpointing = False
        self.patch_embed = self.parts.patch_embed(input_channels, size.width, token_stride)
        self.pos_embed = nn.Parameter(torch.zeros(1, *token_grid[1:], size.width))
        self.depth_pos_embed = nn.Parameter(torch.zeros(token_grid[0], size.width))
        layouts = [self.parts.layout(size, index, token_grid) for index in range(size.depth)]
        self.blocks = nn.ModuleList(TransformerBlock3D(size, layout, self.parts) for layout in layouts)
        self.necks = nn.ModuleList(self.parts.neck(size.width, size.neck_width) for _ in range(4))

    def trained_names(self) -> list[str]:
        """Return the names of the parameters that the tuning method trains."""
        names = [name for name, _ in self.named_parameters()]
        return [name for name in names if encoder_part(name) in self.parts.tuning.trained]

    def forward(self, x_BCzyx: Tensor, detail_BEDHW: Tensor | None = None) -> list[Tensor]:
        """Encode a volume.

        Args:
            x_BCzyx: Image, any size.
            detail_BEDHW: Features that are added to the tokens of the patch embedding.

        Returns:
            Four levels (B, neck_width, D, H, W), shallow first.
        """
        embedded_BEDHW = self.patch_embed(x_BCzyx)
        if detail_BEDHW is not None:
            embedded_BEDHW = embedded_BEDHW + detail_BEDHW
        # each token's channels beside one another: otherwise every norm and linear layer copies
        tokens_BDHWE = embedded_BEDHW.permute(0, 2, 3, 4, 1).contiguous() + self._position(embedded_BEDHW.shape[2:])
        leaving = self.size.level_blocks()
        levels = [neck(_channels_first(tokens_BDHWE)) for neck in self.necks[: leaving.count(-1)]]
        for index, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                tokens_BDHWE = checkpoint(block, tokens_BDHWE, use_reentrant=False)
            else:
                tokens_BDHWE = block(tokens_BDHWE)
            for _ in range(leaving.count(index)):
                levels.append(self.necks[len(levels)](_channels_first(tokens_BDHWE)))
        return levels

    def _position(self, grid: tuple[int, int, int]) -> Tensor:
        in_plane_HWE: Tensor = self.pos_embed[0]
        depth_DE: Tensor = self.depth_pos_embed
        if in_plane_HWE.shape[:2] != grid[1:]:
            in_plane_HWE = self.parts.resize_table(in_plane_HWE, (grid[1], grid[2]))
        if depth_DE.shape[0] != grid[0]:
            depth_DE = F.interpolate(depth_DE.t()[None], grid[0], mode="linear")[0].t()
        return in_plane_HWE[None] + depth_DE[:, None, None]


def _channels_first(tokens_BDHWE: Tensor) -> Tensor:
    return tokens_BDHWE.permute(0, 4, 1, 2, 3)
