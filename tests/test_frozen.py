"""Frozen means free: what is not tuned has neither gradient nor optimiser state, and keeps nothing for the backward."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sam3dnet.network.published.adapter3dsam import Adapter3DSAM
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.tuning import TUNINGS
from sam3dnet.planning.memory import training_bytes
from sam3dnet.training.optimizer import build_optimizer

PATCH = (8, 12, 16)
ARGUMENTS = {
    "encoder": "tiny",
    "patch_size": PATCH,
    "token_stride": (4, 4, 4),
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "pretrained": True,
}


@contextmanager
def kept_storages(kept):
    """Note the storage of every tensor that is kept for the backward pass."""

    def note(tensor):
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield


def make(network_class=SAM3D, **options):
    torch.manual_seed(0)
    network = network_class(1, 3, True, **ARGUMENTS, **options)
    with torch.no_grad():  # adapters are zero at birth, and then pass no gradient on
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("tuning", TUNINGS)
def test_frozen_weights_have_neither_gradient_nor_optimiser_state(tuning):
    network = make(tuning=tuning)
    optimizer = build_optimizer(network, pretrained=True)
    sum(level.square().mean() for level in network(torch.randn(1, 1, *PATCH))).backward()
    optimizer.step()
    tuned = set(network.trainable_names())
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (name in tuned), name
        assert (parameter in optimizer.state) == (name in tuned), name


def test_frozen_linear_layers_keep_no_input():
    block = make().image_encoder.blocks[0]
    inputs, kept = {}, []
    layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, **block.mlp, "down": block.adapter.down}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _layer, given, _out, name=name: inputs.update({name: given[0].detach()}))
    tokens = torch.randn(1, 4, 4, 4, 48, requires_grad=True)
    with kept_storages(kept):
        out = block(tokens)
    # The inputs live until here, so that no other storage can have taken the place of one.
    known = {name for name, tensor in inputs.items() if tensor.untyped_storage().data_ptr() in kept}
    assert known == {"down"}  # the adapter is trained: its input is needed
    out.sum().backward()
    assert all(layer.weight.grad is None for name, layer in layers.items() if name != "down")


def test_below_the_first_tuned_layer_nothing_is_kept():
    encoder = make(Adapter3DSAM, tuning="frozen").image_encoder
    kept = []
    with kept_storages(kept):
        tokens = encoder.patch_embed(torch.randn(1, 1, *PATCH)).permute(0, 2, 3, 4, 1)
        for block in encoder.blocks:
            tokens = block(tokens)
        assert not kept
        encoder.necks[3](tokens.permute(0, 4, 1, 2, 3))
    assert kept


def test_the_later_the_first_tuned_block_the_less_is_kept():
    def kept_bytes(first):
        encoder = make(Adapter3DSAM, tuning="frozen").image_encoder
        if first is not None:
            encoder.blocks[first].requires_grad_(True)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            encoder(torch.randn(1, 1, *PATCH))
        return sum(sizes)

    none, early, late = kept_bytes(None), kept_bytes(0), kept_bytes(3)
    assert none < late
    assert late - none < (early - none) / 2


def test_recomputed_blocks_keep_their_input_alone():
    plain, recomputed = [], []
    for checkpointing, kept in ((False, plain), (True, recomputed)):
        encoder = make(checkpointing=checkpointing).image_encoder
        tokens = torch.randn(1, 1, *PATCH)
        with kept_storages(kept):
            encoder(tokens)
    assert len(recomputed) < len(plain) / 2


def test_frozen_weights_may_be_stored_in_half():
    whole, half = make(), make(half_frozen=True)
    stored = {name for name, p in half.named_parameters() if p.dtype == torch.bfloat16}
    linear = (".attn.qkv.", ".attn.proj.", ".mlp.lin")
    assert stored == {name for name in whole.state_dict() if any(mark in name for mark in linear)}
    assert not stored & set(half.trainable_names())
    image = torch.randn(1, 1, *PATCH)
    half.load_state_dict(whole.state_dict())
    for one, other in zip(whole(image), half(image), strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1 * float(one.detach().std()))
    sum(level.square().mean() for level in half(image)).backward()
    assert all(p.grad is not None for p in half.parameters() if p.requires_grad)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_storing_in_half_needs_less_memory(autocast):
    def measured(half_frozen):
        return training_bytes(
            lambda: SAM3D(1, 3, True, **ARGUMENTS | {"encoder": "vit_b"}, half_frozen=half_frozen),
            (1, 1, *PATCH),
            autocast=autocast,
        )

    frozen = 12 * 12 * 768**2  # numbers in the linear layers of twelve blocks
    saved = measured(False) - measured(True)
    assert saved > (3.5 if autocast else 1.8) * frozen


def test_a_frozen_linear_layer_of_a_module_that_is_trained_whole_keeps_its_input():
    layer = nn.Linear(5, 7)
    kept = []
    given = torch.randn(3, 5)
    with kept_storages(kept):
        layer(given)
    assert given.untyped_storage().data_ptr() in kept  # the hook sees what is kept
