"""Tuning methods: what each puts into a block, what it trains, and that it starts as the identity."""

import math
import re

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from sam3dnet.errors import PlanError
from sam3dnet.network.parameters import count_parameters, tuned_of_sam
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.sam_weights import load_sam_weights
from sam3dnet.network.tuning import TUNINGS, encoder_part, find_tuning

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
NECKS = {f"necks.{i}.{part}" for i in range(4) for part in ("conv1.weight", "conv2.weight")}
NECKS |= {f"necks.{i}.{norm}.{what}" for i in range(4) for norm in ("norm1", "norm2") for what in ("weight", "bias")}
DEPTH = {"patch_embed.channel_mix", "patch_embed.depth_kernel_OK", "depth_pos_embed"}
NORMS = {f"{norm}.{what}" for norm in ("norm1", "norm2") for what in ("weight", "bias")}
LINEAR_PAIR = {"down.weight", "down.bias", "up.weight", "up.bias"}
CONV_ADAPTER = LINEAR_PAIR | {"conv.weight", "conv.bias"}
BLOCK = {  # what is trained of a block
    "spatial-adapter": {f"adapter.{name}" for name in CONV_ADAPTER} | NORMS | {"attn.rel_pos_d"},
    "adapter": {f"{place}.{name}" for place in ("attention_adapter", "mlp_adapter") for name in LINEAR_PAIR} | NORMS,
    "pro-tuning": {f"exit_adapter.{name}" for name in CONV_ADAPTER - {"conv.bias"}},
    "st-adapter": {f"adapter.{name}" for name in CONV_ADAPTER},
    "med-tuning": {f"adapter.{name}" for name in LINEAR_PAIR | {"spectrum.weight", "spectrum.bias"}}
    | {f"adapter.convs.{i}.{what}" for i in range(3) for what in ("weight", "bias")},
    "lora": {f"attn.qkv_adapter.{way}_{what}.weight" for way in ("down", "up") for what in ("query", "value")},
    "layernorm": NORMS,
    "frozen": set(),
}
# Of the adapters alone, ViT-B: two linear layers to and from a width of 384 are 590,976, the convolution is the rest.
ADAPTERS_VIT_B = {
    "spatial-adapter": 12 * (590_976 + 384 * 28),
    "adapter": 12 * 2 * (2 * 768 * 192 + 192 + 768),
    "pro-tuning": 12 * (590_976 + 384 * 9),
    "st-adapter": 12 * (590_976 + 384 * 4),
    "med-tuning": 12 * (590_976 + 384 * (10 + 26 + 4) + 384 * 6),
    "lora": 12 * 2 * (768 * 4 + 4 * 768),
    "layernorm": 0,
    "full": 0,
    "frozen": 0,
}


def make(tuning, *, encoder="tiny", pretrained=True, patch=(8, 12, 16), strides=STRIDES, deep_supervision=False):
    torch.manual_seed(0)
    stride = [math.prod(step[axis] for step in strides) for axis in range(3)]
    return SAM3D(
        1,
        2,
        deep_supervision,
        encoder=encoder,
        patch_size=patch,
        token_stride=stride,
        strides=strides,
        pretrained=pretrained,
        tuning=tuning,
    )


def expected_names(tuning, network):
    """The trained names of an image encoder of four blocks, from the tables above."""
    if tuning == "full":
        return {name for name, _ in network.image_encoder.named_parameters()}
    blocks = {f"blocks.{index}.{name}" for index in range(4) for name in BLOCK[tuning]}
    return NECKS | blocks | (set() if tuning == "frozen" else DEPTH)


def test_every_method_of_the_papers_is_there():
    assert set(TUNINGS) == {*BLOCK, "full"}
    with pytest.raises(PlanError, match="expected one of spatial-adapter, adapter"):
        find_tuning("bitfit")


@pytest.mark.parametrize("tuning", TUNINGS)
def test_one_step_changes_exactly_the_trained_names(tuning):
    network = make(tuning, deep_supervision=True)
    others = {name for name, _ in network.named_parameters() if not name.startswith("image_encoder.")}
    assert set(network.trainable_names()) - others == {f"image_encoder.{n}" for n in expected_names(tuning, network)}
    with torch.no_grad():  # what is zero at birth would hide the gradient of what lies before it
        for name, parameter in network.named_parameters():
            if re.search(r"adapter\.up", name) or "detail_to_tokens" in name:
                parameter.normal_(std=0.02)
    before = {name: value.clone() for name, value in network.named_parameters()}
    sum(level.square().sum() for level in network(torch.randn(2, 1, 8, 12, 16))).backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-2).step()
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(network.trainable_names())


@pytest.mark.parametrize("tuning", sorted(set(TUNINGS) - {"frozen"}))
def test_every_method_starts_as_the_identity(tuning):
    plain, tuned = make("frozen"), make(tuning)
    left_out = tuned.load_state_dict(plain.state_dict(), strict=False)
    assert not left_out.unexpected_keys
    assert all("adapter." in name for name in left_out.missing_keys)
    image = torch.randn(1, 1, 5, 9, 7)
    assert torch.allclose(tuned(image), plain(image), atol=1e-5)


@pytest.mark.parametrize("tuning", ["spatial-adapter", "med-tuning", "lora"])
def test_adapters_work_under_bf16_and_from_scratch(tuning):
    network = make(tuning, pretrained=False)
    assert set(network.trainable_names()) == {name for name, _ in network.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(1, 1, 5, 9, 7))
    assert torch.isfinite(logits).all()
    logits.float().square().sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if re.search(r"adapter\.up", n))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_parameters_of_vit_b(tuning):
    with torch.device("meta"):
        network = make(tuning, encoder="vit_b", patch=(128, 128, 128))
    counts = count_parameters(network)
    adapters = counts.get("image encoder: adapters")
    assert (adapters.tuned if adapters else 0) == ADAPTERS_VIT_B[tuning]
    assert counts["all"].tuned == sum(p.numel() for p in network.parameters() if p.requires_grad)
    parts = [name for name in counts if name.startswith("image encoder: ")]
    assert counts["image encoder"].tuned == sum(counts[name].tuned for name in parts)
    assert counts["image encoder"].total == sum(counts[name].total for name in parts)
    layer_norms, neck = 12 * 4 * 768, 787_456
    sams = {"full": 89_670_912, "spatial-adapter": layer_norms + neck, "adapter": layer_norms + neck}
    assert tuned_of_sam(network.image_encoder) == sams.get(tuning, neck + (layer_norms if tuning == "layernorm" else 0))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_sam_s_weights_load_beside_every_method(tuning, tmp_path):
    torch.manual_seed(0)
    official = ImageEncoderViT(
        img_size=64,
        embed_dim=48,
        depth=4,
        num_heads=3,
        use_rel_pos=True,
        global_attn_indexes=(1, 3),
        window_size=4,
        out_chans=32,
    )
    torch.save({f"image_encoder.{name}": value for name, value in official.state_dict().items()}, tmp_path / "sam.pth")
    network = make(tuning)
    load_sam_weights(network.image_encoder, tmp_path / "sam.pth")
    assert torch.equal(network.image_encoder.blocks[2].attn.qkv.weight, official.blocks[2].attn.qkv.weight)


def test_parts_are_told_apart_by_name():
    assert encoder_part("necks.0.norm1.weight") == "necks"
    assert encoder_part("blocks.3.norm1.weight") == "layer norms"
    assert encoder_part("blocks.3.attn.rel_pos_h") == "trunk"
