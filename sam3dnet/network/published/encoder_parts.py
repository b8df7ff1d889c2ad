"""3DSAM-adapter's image encoder, as published and corrected, as parts of ours; RefSAM3D shares the corrected one.

Axes in names: D H W tokens, E token width, e width of a head.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3dnet.network.adapters import ConvAdapter
from sam3dnet.network.attention import Attention3D
from sam3dnet.network.image_encoder import (
    BlockLayout,
    EncoderParts,
    EncoderSize,
    ImageEncoder3D,
    Neck3D,
    fitted_window,
)
from sam3dnet.network.published.patch_embedding import UpsampledPatchEmbed
from sam3dnet.network.tuning import DEFAULT_TUNING, ENTRANCE, find_tuning


def shifted_layout(size: EncoderSize, index: int, _token_grid: tuple[int, int, int]) -> BlockLayout:
    """Lay all blocks out in cubic windows (8^3 tokens for SAM's sizes), every even one shifted by half a window."""
    side = size.window[0]
    return BlockLayout((side, side, side), (side, side, side), shifted=index % 2 == 0)


def fitted_shifted_layout(size: EncoderSize, index: int, token_grid: tuple[int, int, int]) -> BlockLayout:
    """Do as `shifted_layout`, in windows that fit the token grid, see `fitted_window`."""
    layout = shifted_layout(size, index, token_grid)
    return replace(layout, window=fitted_window(layout.table_size, token_grid))


def published_layout(size: EncoderSize, index: int, token_grid: tuple[int, int, int]) -> BlockLayout:
    """Do as `shifted_layout`, with the relative tables at SAM's sizes, larger than a window, also along depth."""
    rows = (size.global_table or size.window[1]) if index in size.global_blocks else size.window[1]
    return replace(shifted_layout(size, index, token_grid), table_size=(rows, rows, rows))


def interpolate_relative_table(table: Tensor, size: int) -> Tensor:
    """Squeeze a relative position table (R, e) to 2 * size - 1 rows, as published: an offset changes its meaning."""
    return F.interpolate(table.t()[None], 2 * size - 1, mode="linear")[0].t()


def pool_position_table(table_HWE: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average an absolute position table (H, W, E) over the tokens of a grid: (*grid, E)."""
    return F.adaptive_avg_pool2d(table_HWE.permute(2, 0, 1), grid).permute(1, 2, 0)


def derive_depth_tables(encoder: ImageEncoder3D) -> None:
    """Set the relative position along depth to the mean of SAM's along height and width."""
    with torch.no_grad():
        for module in encoder.blocks.modules():
            if isinstance(module, Attention3D):
                module.rel_pos_d.copy_(0.5 * (module.rel_pos_h + module.rel_pos_w))


class RectifiedAdapter(ConvAdapter):
    """The spatial adapter as the official code has it: random at birth, and a ReLU on the residual branch.

    Args:
        width: Token width.
        bottleneck: Width of the branch.
    """

    def __init__(self, width: int, bottleneck: int):
        super().__init__(width, bottleneck)
        self.up.reset_parameters()

    def forward(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return tokens of the same shape (B, D, H, W, E)."""
        return tokens_BDHWE + F.relu(self.branch(tokens_BDHWE))


def corrected_parts(tuning: str) -> EncoderParts:
    """Give the parts of 3DSAM-adapter's encoder without its defects.

    All blocks attend within shifted windows that fit the grid. Patch embedding, adapters, depth tables and necks are
    those of our own encoder: SAM's features are whole at birth, and an offset of one token keeps SAM's meaning.

    Raises:
        PlanError: If there is no such tuning.
    """
    return EncoderParts(find_tuning(tuning), fitted_shifted_layout)


def as_published_parts(tuning: str) -> EncoderParts:
    """Give the parts of 3DSAM-adapter's encoder as published, defects and all.

    Raises:
        PlanError: If there is no such tuning.
    """
    chosen = find_tuning(tuning)
    if tuning == DEFAULT_TUNING:
        chosen = replace(chosen, modules={ENTRANCE: RectifiedAdapter})
    return EncoderParts(
        chosen,
        published_layout,
        patch_embed=UpsampledPatchEmbed,
        attention=partial(Attention3D, fit_table=interpolate_relative_table),
        neck=partial(Neck3D, zeros_around=True),
        resize_table=pool_position_table,
        after_loading=derive_depth_tables,
    )
