"""Attention: SAM's decomposed relative position inside the fused dot product, and windows without leaks."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from sam3dnet.network import attention
from sam3dnet.network.attention import (
    Attention3D,
    GridPositions,
    fit_relative_table,
    join_windows,
    partition_windows,
    relative_position,
)
from sam3dnet.planning.memory import LiveBytes


def materialised(module: Attention3D, tokens: torch.Tensor) -> torch.Tensor:
    """The same attention with an N x N bias, written out."""
    batch, *grid, width = tokens.shape
    query, key, value = (
        module.qkv(tokens.flatten(1, 3)).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    )
    where = torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(-1, 3)
    bias = torch.zeros(batch, module.heads, len(where), len(where), dtype=tokens.dtype)
    for axis, table in enumerate((module.rel_pos_d, module.rel_pos_h, module.rel_pos_w)):
        offset = where[:, None, axis] - where[None, :, axis]
        bias = bias + torch.einsum("bhne,nke->bhnk", query, table[offset + table.shape[0] // 2])
    weights = (query @ key.transpose(-1, -2) * module.scale + bias).softmax(-1)
    return module.proj((weights @ value).transpose(1, 2).flatten(2)).view(batch, *grid, width)


def random_attention(table_size, width=12, heads=3):
    torch.manual_seed(0)
    module = Attention3D(width, heads, table_size).double()
    for table in (module.rel_pos_d, module.rel_pos_h, module.rel_pos_w):
        torch.nn.init.normal_(table)
    return module


def test_equals_a_materialised_bias():
    module = random_attention((5, 6, 7))
    tokens = torch.randn(2, 3, 4, 5, 12, dtype=torch.float64)
    assert torch.allclose(module(tokens), materialised(module, tokens), atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_windows_a_few_at_a_time_give_the_same_and_the_same_gradient(monkeypatch, masked):
    module = random_attention((3, 4, 5))
    tokens = torch.randn(5, 3, 4, 5, 12, dtype=torch.float64, requires_grad=True)
    padding = torch.rand(5, 60) < 0.2 if masked else None
    wrapped = torch.rand(5, 60, 3) < 0.5 if masked else None
    found = []
    for limit in (1 << 30, 1):
        monkeypatch.setattr(attention, "BYTES_AT_A_TIME", limit)
        out = module(tokens, padding, wrapped)
        found.append((out, *torch.autograd.grad(out.square().sum(), (tokens, module.rel_pos_d))))
    for whole, by_window in zip(*found, strict=True):
        torch.testing.assert_close(whole, by_window)


@pytest.mark.parametrize("half", [False, True], ids=["double", "bf16"])
@pytest.mark.parametrize("outer", [False, True], ids=["alone", "in a checkpointed block"])
def test_what_is_made_again_for_the_backward_pass_is_what_it_was(monkeypatch, outer, half):
    module = random_attention((3, 4, 5))
    tokens = torch.randn(4, 3, 4, 5, 12, dtype=torch.float64)
    if half:
        module, tokens = module.float(), tokens.float()
    arguments = (tokens.requires_grad_(), torch.rand(4, 60) < 0.2, torch.rand(4, 60, 3) < 0.5)
    made, found = [], []
    keep = attention.keep_attention
    monkeypatch.setattr(attention, "keep_attention", lambda: made.append(1) or keep())
    for limit in (1 << 30, 0):
        monkeypatch.setattr(attention, "BYTES_MADE_AGAIN", limit)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = checkpoint(module, *arguments, use_reentrant=False) if outer else module(*arguments)
        found.append((out, *torch.autograd.grad(out.square().sum(), (tokens, *module.parameters()))))
        assert bool(made) == (limit == 0)
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


def test_what_is_made_again_is_not_kept(monkeypatch):
    kept = []
    for limit in (1 << 60, 0):
        monkeypatch.setattr(attention, "BYTES_MADE_AGAIN", limit)
        with FakeTensorMode(), LiveBytes() as counter:
            tokens = torch.empty(8, 8, 8, 8, 96, requires_grad=True)
            out = Attention3D(96, 12, (8, 8, 8)).requires_grad_(False)(tokens)
            assert out.requires_grad
            kept.append(counter.live)
    plain, again = kept
    augmented = 4096 * 12 * (8 + 3 * 8) * 4  # bytes of all queries, and of all keys, and of all values
    assert plain - again > 2 * augmented


def test_a_step_takes_a_quarter_of_what_a_materialised_bias_takes():
    peaks = []
    with FakeTensorMode():
        tokens = torch.empty(8, 8, 8, 8, 96, requires_grad=True)
        for written_out in (False, True):
            module = Attention3D(96, 12, (8, 8, 8)).requires_grad_(False)
            counter = LiveBytes()
            with counter:
                out = materialised(module, tokens) if written_out else module(tokens)
                out.sum().backward()
            peaks.append(counter.peak)
    assert 4 * peaks[0] < peaks[1]


def test_equals_sam_on_one_slice():
    module = random_attention((1, 5, 6))
    official = Attention(12, 3, use_rel_pos=True, input_size=(5, 6)).double()
    official.load_state_dict({name: value for name, value in module.state_dict().items() if name != "rel_pos_d"})
    tokens = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    assert torch.allclose(module(tokens[:, None])[:, 0], official(tokens), atol=1e-10)


def test_relative_tables_keep_the_meaning_of_an_offset():
    table = torch.arange(7.0)[:, None]
    assert fit_relative_table(table, 2).flatten().tolist() == [2, 3, 4]
    assert fit_relative_table(table, 5).flatten().tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 6]
    tables = [fit_relative_table(table, size) for size in (1, 3, 2)]
    query = torch.ones(1, 1, 6, 1)
    scores = relative_position(query, tables, GridPositions((1, 3, 2), query).row_NA)[0, 0]
    assert scores[:, 0].tolist() == [3] * 6
    assert scores[::2, 1:4].tolist() == scores[1::2, 1:4].tolist() == [[3, 2, 1], [4, 3, 2], [5, 4, 3]]
    assert scores[:, 4:].tolist() == [[3, 2], [4, 3]] * 3


@pytest.mark.parametrize("grid", [(4, 4, 4), (5, 6, 7), (1, 3, 9), (2, 1, 1)])
@pytest.mark.parametrize("window", [(2, 3, 4), (4, 4, 4), (1, 1, 1)])
def test_windows_come_back_whole(grid, window):
    tokens = torch.randn(2, *grid, 3)
    windows, mask, wrapped = partition_windows(tokens, window)
    assert wrapped is None
    assert torch.equal(join_windows(windows, grid), tokens)
    padded = any(size % side for size, side in zip(grid, window, strict=True))
    assert (mask is not None) == padded
    if mask is not None:
        assert (~mask).sum() == 2 * grid[0] * grid[1] * grid[2]


def test_padding_is_not_attended_to():
    module = random_attention((4, 4, 4))
    tokens = torch.randn(1, 3, 4, 2, 12, dtype=torch.float64)
    windows, mask, _ = partition_windows(tokens, (4, 4, 4))
    inside = join_windows(module(windows, mask), (3, 4, 2))
    assert torch.allclose(inside, module(tokens), atol=1e-10)
    loud = windows.masked_fill(mask.view(1, 4, 4, 4, 1), 7.0)
    assert torch.equal(join_windows(module(loud, mask), (3, 4, 2)), inside)


def test_shifted_windows_see_what_their_unshifted_neighbours_cut_apart():
    """Rolled windows with a mask equal windows that are cut out of the grid at the shift, one by one."""
    module = random_attention((2, 4, 2))
    tokens = torch.randn(2, 3, 7, 4, 12, dtype=torch.float64)
    shift = (0, 2, 1)
    windows, mask, wrapped = partition_windows(tokens, (2, 4, 2), shift)
    found = join_windows(module(windows, mask, wrapped), (3, 7, 4), shift)
    expected = torch.empty_like(tokens)
    for z in ((0, 2), (2, 3)):
        for y in ((0, 2), (2, 6), (6, 7)):
            for x in ((0, 1), (1, 3), (3, 4)):
                part = (slice(None), slice(*z), slice(*y), slice(*x))
                expected[part] = module(tokens[part])
    assert torch.allclose(found, expected, atol=1e-10)
    assert not torch.allclose(found, module(tokens))


def test_a_grid_that_was_met_in_prediction_can_be_trained_on():
    module = random_attention((3, 4, 5))
    tokens = torch.randn(2, 3, 4, 5, 12, dtype=torch.float64)
    with torch.inference_mode():
        expected = module(tokens)
    out = module(tokens)
    out.sum().backward()
    assert torch.equal(out.detach(), expected)
    assert module.rel_pos_d.grad.any()


def test_what_is_known_of_a_grid_is_computed_once_for_each_grid_and_type(monkeypatch):
    made = []
    original = attention.GridPositions.__init__
    monkeypatch.setattr(
        attention.GridPositions, "__init__", lambda self, grid, like: (made.append(grid), original(self, grid, like))[0]
    )
    module = random_attention((3, 4, 5))
    for grid in ((3, 4, 5), (2, 4, 5), (3, 4, 5)):
        tokens = torch.randn(2, *grid, 12, dtype=torch.float64)
        assert torch.allclose(module(tokens), materialised(module, tokens), atol=1e-10)
    module.float()(torch.randn(2, 3, 4, 5, 12))
    assert [tuple(grid) for grid in made] == [(3, 4, 5), (2, 4, 5), (3, 4, 5)]
