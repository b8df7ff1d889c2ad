"""The network: shapes for any input, what is tuned, and what one step changes."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch.nn import functional

from sam3dnet.errors import PlanError
from sam3dnet.network import attention
from sam3dnet.network.cost import training_cost
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.segmentation import ENCODER_SIZES
from sam3dnet.prompts.types import ClassPrompts, Point

STRIDES = {
    (4, 4, 4): [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    (2, 8, 4): [[1, 1, 1], [1, 2, 1], [1, 2, 2], [2, 2, 2]],
    (1, 4, 4): [[1, 1, 1], [1, 2, 2], [1, 2, 2]],
    (16, 16, 16): [[1, 1, 1], *[[2, 2, 2]] * 4],
}


def make(stride=(4, 4, 4), channels=1, classes=3, patch=(8, 12, 16), **options):
    torch.manual_seed(0)
    return SAM3D(
        channels,
        classes,
        options.pop("deep_supervision", True),
        encoder=options.pop("encoder", "tiny"),
        patch_size=patch,
        token_stride=stride,
        strides=STRIDES[stride],
        **options,
    )


@pytest.mark.parametrize("stride", list(STRIDES))
@pytest.mark.parametrize(("channels", "classes", "batch"), [(1, 3, 2), (4, 2, 1)])
@pytest.mark.parametrize("shape", [(8, 12, 16), (5, 6, 7), (1, 9, 33), (2, 20, 3)])
def test_every_input_gives_logits_of_its_own_size(stride, channels, classes, batch, shape):
    network = make(stride, channels, classes)
    logits = network(torch.randn(batch, channels, *shape))
    assert logits[0].shape == (batch, classes, *shape)
    assert len(logits) == len(STRIDES[stride]) - 1
    assert all(torch.isfinite(level).all() for level in logits)


@pytest.mark.parametrize("shape", [(8, 12, 16), (5, 6, 7)])
def test_without_a_transformer_there_are_convolutions_alone(shape):
    network = make(encoder="none", prompts=True)
    assert not len(network.image_encoder.blocks)
    features = network.features(torch.randn(1, 1, *shape))
    assert features.logits[0].shape == (1, 3, *shape)
    batch = PromptBatch.of([Query(0, 1, ClassPrompts((Point((2, 3, 4)),)))], shape)
    margin = torch.zeros(1, *shape)
    (features.logits[0].mean() + network.prompted(features, batch, margin).mean()).backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(name.startswith(("decoder.seg_layers", "prompt_decoder")) for name in unused)


def test_deep_supervision_follows_the_strides_and_can_be_switched_off():
    network = make((2, 8, 4))
    image = torch.randn(1, 1, 4, 16, 8)
    assert [tuple(level.shape[2:]) for level in network(image)] == [(4, 16, 8), (4, 8, 8), (4, 4, 4)]
    finest = network(image)[0]
    network.decoder.deep_supervision = False
    assert torch.equal(network(image), finest)


def test_batch_entries_do_not_see_each_other():
    network = make().eval()
    pair = torch.randn(2, 1, 9, 10, 11)
    together, alone = network(pair)[0], network(pair[1:])[0]
    assert torch.allclose(together[1:], alone, atol=1e-5)


@pytest.mark.parametrize("pretrained", [True, False])
def test_one_step_changes_exactly_the_trainable_names(pretrained):
    network = make(pretrained=pretrained)
    with torch.no_grad():  # what is zero at birth would hide the gradient of what lies before it
        for name, parameter in network.named_parameters():
            if "adapter.up" in name or "detail_to_tokens" in name:
                parameter.normal_(std=0.02)
    before = {name: value.clone() for name, value in network.named_parameters()}
    trainable = [p for p in network.parameters() if p.requires_grad]
    sum(level.square().sum() for level in network(torch.randn(2, 1, 8, 12, 16))).backward()
    torch.optim.SGD(trainable, 1e-2).step()
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(network.trainable_names())


def test_frozen_names_are_sam_s_trunk():
    network = make(pretrained=True)
    frozen = {name for name, _ in network.named_parameters()} - set(network.trainable_names())
    block = {
        "attn.qkv.weight",
        "attn.qkv.bias",
        "attn.proj.weight",
        "attn.proj.bias",
        "attn.rel_pos_h",
        "attn.rel_pos_w",
        "mlp.lin1.weight",
        "mlp.lin1.bias",
        "mlp.lin2.weight",
        "mlp.lin2.bias",
    }
    expected = {f"image_encoder.blocks.{index}.{part}" for index in range(4) for part in block}
    expected |= {f"image_encoder.{part}" for part in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")}
    assert frozen == expected


def test_frozen_vit_b_has_the_parameters_of_sam():
    with torch.device("meta"):
        size = ENCODER_SIZES["vit_b"]
        official = ImageEncoderViT(
            img_size=1024,
            embed_dim=768,
            depth=12,
            num_heads=12,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=size.global_blocks,
            window_size=14,
        )
    assert sum(p.numel() for p in official.parameters()) == 89_670_912
    network = make(encoder="vit_b", pretrained=True, patch=(64, 1024, 1024), stride=(16, 16, 16))
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    norms_and_neck = 12 * 4 * 768 + sum(p.numel() for p in official.neck.parameters())
    assert frozen == 89_670_912 - norms_and_neck


def test_checkpointing_changes_no_gradient():
    plain, saving = make(), make(checkpointing=True)
    image = torch.randn(1, 1, 8, 12, 16)
    for network in (plain, saving):
        network(image)[0].square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-5), name


@pytest.mark.filterwarnings("ignore")  # those of torch's compiler
@pytest.mark.parametrize(
    ("checkpointing", "deep_supervision", "bytes_at_a_time"), [(False, True, 1 << 24), (True, False, 1)]
)
def test_compiles_without_graph_breaks(monkeypatch, checkpointing, deep_supervision, bytes_at_a_time):
    monkeypatch.setattr(attention, "BYTES_AT_A_TIME", bytes_at_a_time)
    network = make(checkpointing=checkpointing, deep_supervision=deep_supervision)
    image = torch.randn(2, 1, 5, 6, 7)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    found, expected = (made(image)[0] if deep_supervision else made(image) for made in (compiled, network))
    assert torch.allclose(found, expected, atol=1e-5)
    found.sum().backward()
    assert network.detail_to_tokens.weight.grad.abs().sum() > 0


def test_bf16_stays_finite():
    network = make()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(2, 1, 5, 6, 7))[0]
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("patch", "windows"), [((16, 12, 16), [(4, 3, 4)]), ((20, 24, 8), [(3, 3, 2)] * 4)])
def test_windows_that_fit_hold_hardly_any_padding(monkeypatch, patch, windows):
    attended = []
    attend = attention.Attention3D.forward

    def forward(self, tokens_BDHWE, *masks):
        attended.append(tokens_BDHWE.shape[:4])
        return attend(self, tokens_BDHWE, *masks)

    monkeypatch.setattr(attention.Attention3D, "forward", forward)
    fitted, before = (make(patch=patch, fitted_windows=fits).eval() for fits in (True, False))
    assert before.load_state_dict(fitted.state_dict()) is not None
    image = torch.randn(1, 1, *patch)
    logits = fitted(image)[0]
    assert attended[0] == (len(windows), *windows[0])  # of the first block, which attends within windows
    assert attended[1] == (1, *(voxels // 4 for voxels in patch))
    same = torch.allclose(logits, before(image)[0], atol=1e-5)
    assert same == (len(windows) == 1)  # where all is in one window already


def test_flat_kernels_leave_planes_alone():
    flat = [[1, 3, 3], [1, 3, 3], [3, 3, 3]]
    thick, whole = (make((1, 4, 4), patch=(6, 16, 16), kernels=kernels).eval() for kernels in (flat, None))
    image = torch.randn(1, 1, 6, 16, 16)
    changed = image.clone()
    changed[:, :, 5] += 1
    for network, expected in ((thick, True), (whole, False)):
        above = [network.detail_stem.levels[0][0].conv(one)[:, :, 4] for one in (image, changed)]
        assert torch.equal(*above) == expected
        assert network(image)[0].shape == (1, 3, 6, 16, 16)
    assert sum(p.numel() for p in thick.parameters()) < sum(p.numel() for p in whole.parameters())
    with pytest.raises(PlanError, match="kernels: 2 for 3 levels; give one for each of the strides"):
        make((1, 4, 4), kernels=flat[1:])


def test_features_of_each_level_are_the_plans():
    as_before, fitted = (make((1, 4, 4), patch=(6, 16, 16), features=features).eval() for features in (None, [16, 24]))
    for network, widths in ((as_before, [16, 32]), (fitted, [16, 24])):
        image = torch.randn(1, 1, 6, 16, 16)
        assert [level.shape[1] for level in network.features(image).pyramid] == widths
        assert network(image)[0].shape == (1, 3, 6, 16, 16)
    with pytest.raises(PlanError, match="features: 3 for 2 levels above the tokens; give one for each"):
        make((1, 4, 4), features=[16, 24, 40])


def test_the_network_learns_one_case():
    torch.manual_seed(0)
    network = make(classes=2)
    image = torch.randn(1, 1, 8, 12, 16) * 0.3
    target = torch.zeros(1, 8, 12, 16, dtype=torch.long)
    target[:, 2:6, 3:8, 5:12] = 1
    image += 0.5 * target[:, None]
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(60):
        loss = sum(
            functional.cross_entropy(
                level, functional.interpolate(target[:, None].float(), level.shape[2:])[:, 0].long()
            )
            for level in network(image)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = network(image)[0].argmax(1)
    dice = 2 * (found * target).sum() / (found.sum() + target.sum())
    assert dice > 0.95


def test_unknown_encoder_and_wrong_strides_are_refused():
    with pytest.raises(PlanError, match="expected one of none, tiny, small, vit_b"):
        make(encoder="vit_x")
    with pytest.raises(PlanError, match="multiply to"):
        SAM3D(1, 2, encoder="tiny", patch_size=(8, 8, 8), token_stride=(4, 4, 8), strides=STRIDES[4, 4, 4])


def test_cost_grows_with_the_batch_and_needs_no_kernel():
    arch = {"encoder": "vit_b", "patch_size": (64, 96, 96), "token_stride": (16, 16, 16), "pretrained": True}
    arch["strides"] = STRIDES[16, 16, 16]
    one, two = (training_cost(arch, 1, 2, batch) for batch in (1, 2))
    weights = 4 * sum(p.numel() for p in SAM3D(1, 2, True, **arch).parameters())
    assert weights < one < two < 2 * one
    assert weights < training_cost(arch, 1, 2, 2, device="cuda") < two


@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_get_tokens_whose_channels_lie_together(channels):
    network = make(channels=channels)
    seen = []
    for block in network.image_encoder.blocks:
        block.register_forward_hook(lambda _block, args, out: seen.extend((args[0], out)))
    network(torch.zeros(2, channels, 8, 12, 16))
    assert seen
    assert all(tokens.is_contiguous() for tokens in seen)


@pytest.mark.parametrize("for_a_card", [True, False])
def test_the_cost_for_a_card_is_traced_with_as_much_attention_at_a_time_as_there(monkeypatch, for_a_card):
    arch = {"encoder": "tiny", "patch_size": [16, 24, 32], "token_stride": [4, 4, 4], "strides": STRIDES[4, 4, 4]}
    taken = []
    attend = attention.Attention3D._attend
    monkeypatch.setattr(attention, "BYTES_AT_A_TIME", 1)
    monkeypatch.setattr(attention.Attention3D, "_attend", lambda *args: taken.append(len(args[1])) or attend(*args))
    training_cost(arch, 1, 3, 2, device="cuda" if for_a_card else "cpu")
    assert (max(taken) > 1) is for_a_card


def test_the_cost_of_training_holds_the_prompts():
    arch = {"encoder": "tiny", "patch_size": [16, 24, 32], "token_stride": [4, 4, 4], "strides": STRIDES[4, 4, 4]}
    without, with_prompts = (training_cost({**arch, "prompts": prompts}, 1, 3, 2) for prompts in (False, True))
    parameters = sum(p.numel() * 4 for p in make(prompts=True).prompt_decoder.parameters())
    assert with_prompts > without + 4 * parameters
