"""The published systems: parameter counts, any input, what is trained, and how each answers its prompts."""

import re

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from sam3dnet.errors import PlanError, PromptError
from sam3dnet.network.parameters import count_parameters, tuned_of_sam
from sam3dnet.network.patch_embedding import PatchEmbed3D
from sam3dnet.network.prompt_decoder import class_margin
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.network.published.adapter3dsam import Adapter3DSAM
from sam3dnet.network.published.encoder_parts import fitted_shifted_layout, interpolate_relative_table, published_layout
from sam3dnet.network.published.medsam3d import MedSAM3D
from sam3dnet.network.published.patch_embedding import UpsampledPatchEmbed
from sam3dnet.network.published.refsam3d import RefSAM3D
from sam3dnet.network.sam_weights import load_sam_weights
from sam3dnet.network.segmentation import ENCODER_SIZES
from sam3dnet.prompts.types import Box, ClassPrompts, Point

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
STRIDE = (2, 4, 4)
DEAD = re.compile(r"prompt_encoder\.blocks\.\d\.(tokens_to_image|norm2)\.")  # published, but never called
PUBLISHED = {"fidelity": "as-published"}
NETWORKS = {
    "corrected": (Adapter3DSAM, {}),
    "corrected, clicks": (Adapter3DSAM, {"prompts": True}),
    "as published": (Adapter3DSAM, PUBLISHED),
    "as published, clicks": (Adapter3DSAM, {"prompts": True, **PUBLISHED}),
    "refsam3d": (RefSAM3D, {}),
    "3dmedsam": (MedSAM3D, {}),
}
CLICK = ClassPrompts(points=(Point((1.0, 4.0, 9.0)),))
TWO_CLICKS = ClassPrompts(points=(Point((1.0, 4.0, 9.0)), Point((5.0, 2.0, 11.0), positive=False)))


def make(name, channels=1, classes=2, *, deep_supervision=True, strides=STRIDES, stride=STRIDE, **options):
    torch.manual_seed(0)
    network_class, settings = NETWORKS[name]
    arguments = {"encoder": "tiny", "patch_size": (6, 12, 16), "token_stride": stride, "strides": strides}
    return network_class(channels, classes, deep_supervision, **{**arguments, **settings, **options})


def make_vit_b(name, **options):
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    options = {"encoder": "vit_b", "patch_size": (128, 128, 128), "pretrained": True, **options}
    with torch.device("meta"):
        return make(name, stride=(4, 4, 4), strides=strides, **options)


def test_the_corrected_decoder_has_as_many_channels_at_full_resolution_as_nnunet():
    assert [head.in_channels for head in make_vit_b("corrected").decoder.seg_layers] == [128, 32]


def wake(network):
    """Fill what is zero at birth, which hides the gradient of what lies before it."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if re.search(r"adapter\.up|from_image\.proj|rel_pos", name):
                parameter.normal_(std=0.1)
    return network


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "classes", "batch", "shape"), [(1, 3, 2, (6, 12, 16)), (4, 2, 1, (5, 9, 7))])
def test_every_input_gives_logits_of_its_own_size(name, channels, classes, batch, shape):
    network = make(name, channels, classes)
    image = torch.randn(batch, channels, *shape)
    logits = network(image)
    halved = [shape[0], -(-shape[1] // 2), -(-shape[2] // 2)]
    assert [list(level.shape) for level in logits] == [[batch, classes, *shape], [batch, classes, *halved]]
    network.decoder.deep_supervision = False
    assert torch.allclose(network(image), logits[0], atol=1e-6)
    assert torch.isfinite(logits[0]).all()


@pytest.mark.parametrize("name", ["corrected", "refsam3d", "3dmedsam", "as published"])
@pytest.mark.parametrize(("stride", "steps"), [((1, 4, 4), [[1, 2, 2], [1, 2, 2]]), ((16, 16, 16), [[2, 2, 2]] * 4)])
def test_other_token_strides_work_too(name, stride, steps):
    logits = make(name, strides=[[1, 1, 1], *steps], stride=stride)(torch.randn(1, 1, 3, 17, 20))
    assert logits[0].shape == (1, 2, 3, 17, 20)
    assert len(logits) == len(steps)


def test_as_published_has_exactly_the_published_parameters():
    counts = count_parameters(make_vit_b("as published, clicks"))
    tuned = {name: count.tuned for name, count in counts.items()}
    assert tuned["image encoder: adapters"] == 7_220_736
    assert tuned["image encoder: necks"] == 7_868_416
    assert tuned["image encoder: depth convolution"] == 13_056
    assert tuned["image encoder: depth table"] == 24_576
    assert tuned["image encoder: layer norms"] == 36_864
    assert tuned["image encoder: depth relative position"] == 46_336
    assert tuned["image encoder: trunk"] == 0
    assert tuned["image encoder"] == 15_209_984
    assert tuned["decoder"] == 7_088_256
    assert tuned["prompt encoder"] == 3_164_160
    assert tuned["all"] == 25_462_400
    assert count_parameters(make_vit_b("as published"))["all"].tuned == 15_209_984 + 7_088_256


def test_other_tuning_methods_of_the_published_network():
    counts = count_parameters(make_vit_b("as published", tuning="st-adapter"))
    parts = ("adapters", "depth convolution", "depth table")
    assert sum(counts[f"image encoder: {part}"].tuned for part in parts) == 7_147_776
    full = make_vit_b("as published", tuning="full")
    assert tuned_of_sam(full.image_encoder) == 89_670_912
    pro = count_parameters(make_vit_b("as published", tuning="pro-tuning"))
    assert round(sum(pro[f"image encoder: {part}"].tuned for part in parts) / 1e6, 2) == 7.17  # as published


@pytest.mark.parametrize("name", ["corrected, clicks", "refsam3d", "3dmedsam"])
def test_vit_l_and_vit_h_can_be_built(name):
    for encoder in ("vit_l", "vit_h"):
        counts = count_parameters(make_vit_b(name, encoder=encoder))
        assert 0 < counts["all"].tuned < counts["image encoder: trunk"].total


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_changes_exactly_the_trainable_names(name):
    network = wake(make(name, pretrained=True))
    before = {key: value.clone() for key, value in network.named_parameters()}
    prompter = ask(TWO_CLICKS, 1) if "clicks" in name else None
    result = network(torch.randn(2, 1, 6, 12, 16), prompter)
    logits, corrections = result if prompter else (result, torch.zeros(()))
    (sum(level.square().sum() for level in logits) + corrections.square().sum()).backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-3).step()
    changed = {key for key, value in network.named_parameters() if not torch.equal(value, before[key])}
    # a bias of the keys adds the same to every score, so its gradient is rounding
    left = set(network.trainable_names()) - changed
    assert left - {key for key in left if key.endswith(".key.bias")} == {
        key for key in before if DEAD.search(key) and not key.endswith(".key.bias")
    }
    assert changed <= set(network.trainable_names())
    frozen = {key for key in before if key not in network.trainable_names()}
    marks = r"patch_embed\.proj\.|pos_embed$|\.attn\.(qkv|proj)\.|rel_pos_[hw]|\.mlp\.lin"
    expected = {key for key in before if key.startswith("image_encoder.") and re.search(marks, key)}
    assert frozen == expected - {"image_encoder.depth_pos_embed"}


def ask(prompts, class_index):
    """Return a prompter that asks for a class of the last image."""

    def prompter(network, features):
        logits = features.logits[0]
        batch = PromptBatch.of([Query(len(logits) - 1, class_index, prompts)], logits.shape[2:])
        return network.prompted(features, batch, class_margin(logits[-1:].detach(), batch.class_Q, regions=False))

    return prompter


@pytest.mark.parametrize("name", ["corrected, clicks", "as published, clicks"])
def test_a_click_changes_the_answer_wherever_the_previous_margin_was(name):
    network = wake(make(name, classes=3)).eval()
    image = torch.randn(2, 1, 5, 9, 13)
    features = network.features(image)
    batch = PromptBatch.of([Query(1, 2, CLICK)], (5, 9, 13))
    margin = class_margin(features.logits[0][1:], batch.class_Q, regions=False)
    correction = network.prompted(features, batch, margin)
    assert correction.shape == (1, 5, 9, 13)
    assert correction.abs().max() > 1e-3
    spoiled = margin + torch.randn_like(margin)
    again = network.prompted(features, batch, spoiled)
    looks_at_the_margin = name.startswith("corrected")
    assert torch.allclose(spoiled + again, margin + correction, atol=1e-4) != looks_at_the_margin
    agreeing = network.prompted(features, batch, torch.full_like(margin, 3.0))
    without = class_margin(features.logits[0][1:], batch.class_Q, regions=False)
    assert torch.allclose(agreeing + 3.0, without, atol=1e-4) == looks_at_the_margin


def test_corrected_prompts_start_without_effect_and_know_place_polarity_and_class():
    network = make("corrected, clicks", classes=3).eval()
    image = torch.randn(1, 1, 5, 9, 13)
    assert network(image, ask(CLICK, 1))[1].abs().max() < 1e-5
    wake(network)
    flat = torch.zeros(1, 1, 5, 9, 13)
    answers = [
        network(flat, ask(ClassPrompts(points=(Point(at, positive),)), index))[1]
        for at, positive, index in (((1, 4, 9), True, 1), ((1, 4, 9), False, 1), ((3, 4, 1), True, 1))
    ]
    box = network(flat, ask(ClassPrompts(boxes=(Box((1, 2, 3), (3, 5, 6)),)), 1))[1]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (answers[one] - answers[other]).abs().max() > 1e-4
    assert (box - answers[0]).abs().max() > 1e-4


def test_as_published_a_negative_click_cannot_be_said():
    network = make("as published, clicks").eval()
    image = torch.randn(1, 1, 6, 12, 16)
    negative = ClassPrompts(points=(Point((5, 2, 11), positive=False),))
    assert network(image, ask(negative, 1))[1].abs().max() < 1e-4
    assert torch.allclose(network(image, ask(CLICK, 1))[1], network(image, ask(TWO_CLICKS, 1))[1], atol=1e-5)


def test_without_prompt_encoder_prompts_are_refused():
    image = torch.randn(1, 1, 5, 9, 13)
    with pytest.raises(PlanError, match="without --no-prompts"):
        make("corrected")(image, ask(CLICK, 1))
    with pytest.raises(PlanError, match="answers text, not clicks"):
        make("refsam3d")(image, ask(CLICK, 1))
    with pytest.raises(PlanError, match="after the abstract, answers no prompts"):
        make("3dmedsam")(image, ask(CLICK, 1))


def test_unknown_fidelity_is_refused():
    with pytest.raises(PlanError, match="expected one of corrected, as-published"):
        make("corrected", fidelity="perfect")


def test_the_published_patch_embedding_equals_ours_but_for_its_random_depth():
    torch.manual_seed(0)
    published, ours = UpsampledPatchEmbed(1, 12, (2, 4, 4)), PatchEmbed3D(1, 12, (2, 4, 4))
    ours.proj.load_state_dict(published.proj.state_dict())
    image = torch.randn(2, 1, 4, 8, 12)
    assert not torch.allclose(published(image), ours(image), atol=1e-2)
    torch.nn.init.constant_(published.depth_conv.weight, 1 / 16)
    torch.nn.init.zeros_(published.depth_conv.bias)
    assert torch.allclose(published(image), ours(image), atol=1e-5)


def official_encoder(**options):
    """SAM's own encoder in the size "tiny", with tables that are not zero."""
    torch.manual_seed(1)
    sizes = {"embed_dim": 48, "depth": 4, "num_heads": 3, "out_chans": 32, "mlp_ratio": 4}
    encoder = ImageEncoderViT(
        use_rel_pos=True, norm_layer=lambda n: torch.nn.LayerNorm(n, eps=1e-6), **sizes, **options
    )
    for name, parameter in encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder.eval()


@pytest.mark.parametrize("name", ["corrected", "refsam3d"])
def test_corrected_features_are_sam_s_at_birth(name, tmp_path):
    """On a grid as large as one window SAM's encoder with attention to all is the counterpart."""
    official = official_encoder(img_size=64, global_attn_indexes=(0, 1, 2, 3), window_size=4)
    torch.save({f"image_encoder.{n}": value for n, value in official.state_dict().items()}, tmp_path / "sam.pth")
    network = make(name, pretrained=True, patch_size=(6, 16, 16))
    load_sam_weights(network.image_encoder, tmp_path / "sam.pth")
    slice_BCyx = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        upsampled = torch.nn.functional.interpolate(slice_BCyx, (64, 64), mode="bilinear")
        expected = official(upsampled.expand(-1, 3, -1, -1))
        found = network.image_encoder(slice_BCyx[:, :, None].expand(-1, -1, 6, -1, -1))[-1]
    for depth in range(3):
        assert torch.allclose(found[:, :, depth], expected, atol=1e-4)


def test_as_published_tables_are_derived_from_sam_s(tmp_path):
    official = official_encoder(img_size=128, global_attn_indexes=(1, 3), window_size=4)
    torch.save({f"image_encoder.{n}": value for n, value in official.state_dict().items()}, tmp_path / "sam.pth")
    network = make("as published", pretrained=True, patch_size=(6, 16, 16))
    load_sam_weights(network.image_encoder, tmp_path / "sam.pth")
    attention = network.image_encoder.blocks[0].attn
    assert torch.allclose(attention.rel_pos_d, 0.5 * (attention.rel_pos_h + attention.rel_pos_w))
    assert torch.equal(attention.rel_pos_h, official.blocks[0].attn.rel_pos_h)
    pooled = official.pos_embed[0, :2, :2].mean((0, 1))
    assert torch.allclose(network.image_encoder.pos_embed[0, 0, 0], pooled, atol=1e-6)
    assert (network.image_encoder.depth_pos_embed == 1).all()


def test_interpolated_tables_change_the_meaning_of_an_offset():
    table = torch.arange(-13.0, 14)[:, None]  # each row says its own offset
    squeezed = interpolate_relative_table(table, 8).flatten()
    assert squeezed[7] == 0
    assert squeezed[8].item() == pytest.approx(1.8)


def test_3dmedsam_takes_sam_s_weights_but_for_the_patch_kernel(tmp_path):
    official = official_encoder(img_size=64, global_attn_indexes=(1, 3), window_size=4)
    torch.save({f"image_encoder.{n}": value for n, value in official.state_dict().items()}, tmp_path / "sam.pth")
    network = make("3dmedsam", pretrained=True)
    load_sam_weights(network.image_encoder, tmp_path / "sam.pth")
    assert torch.equal(network.image_encoder.blocks[1].mlp["lin1"].weight, official.blocks[1].mlp.lin1.weight)
    assert "image_encoder.patch_embed.to_tokens.weight" in network.trainable_names()


def embeddings(phrases, words=3, width=6):
    torch.manual_seed(3)
    text = torch.randn(phrases, words, width)
    text[0, 2:] = 0  # a phrase of fewer words
    return text


def test_refsam3d_decodes_every_phrase_by_itself():
    text = embeddings(3)
    network = make("refsam3d", classes=3, text=text.tolist(), deep_supervision=False).eval()
    image = torch.randn(2, 1, 5, 9, 7)
    with torch.no_grad():
        every = network(image)
        network.ask_for(text[1:2])
        assert torch.allclose(network(image), every[:, 1:2], atol=1e-5)
        network.ask_for(torch.cat((text, torch.zeros(3, 2, 6)), 1))  # rows of zeros are no words
        assert torch.allclose(network(image), every, atol=1e-5)
        assert not torch.allclose(every[:, 0], every[:, 1], atol=1e-3)
    assert "text_KLT" not in network.state_dict()


def test_refsam3d_without_clip_learns_its_classes_and_knows_no_words():
    network = make("refsam3d", classes=2)
    assert "text_KLT" in network.trainable_names()
    with pytest.raises(PromptError, match="no words; plan again with --clip-weights"):
        network.ask_for(embeddings(2))
    with pytest.raises(PromptError, match="width 6, this model's 5"):
        make("refsam3d", text=embeddings(2, width=5).tolist()).ask_for(embeddings(2))
    with pytest.raises(PlanError, match="3 phrases for 2 outputs"):
        make("refsam3d", text=embeddings(3).tolist())


@pytest.mark.parametrize(
    ("grid", "window"),
    [((32, 32, 32), (8, 8, 8)), ((11, 9, 9), (6, 5, 5)), ((17, 8, 3), (6, 8, 3)), ((1, 7, 16), (1, 7, 8))],
)
def test_corrected_windows_share_the_grid_evenly(grid, window):
    size = ENCODER_SIZES["vit_b"]
    for index in range(4):
        layout, published = fitted_shifted_layout(size, index, grid), published_layout(size, index, grid)
        assert layout.window == window
        assert layout.shifted == published.shifted
        for tokens, side, largest in zip(grid, window, published.window, strict=True):
            assert -(-tokens // side) == -(-tokens // largest)  # as many windows
            assert -(-tokens // side) * side < tokens + -(-tokens // side)  # less than a token of padding a window
