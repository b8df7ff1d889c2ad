"""What networks do on a card, which this machine need not have: types, devices, copies and kernels."""

import json
import math
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from fake_card import CARD, Recorder, card_autocast, on_fake_card
from test_methods import ARCH, CHOICES

from sam3dnet.network import segmentation
from sam3dnet.network.cost import TrainedNetwork
from sam3dnet.network.segmentation import SegmentationNetwork, locate_network
from sam3dnet.network.target_device import traced_for
from sam3dnet.network.tuning import TUNINGS
from sam3dnet.planning.memory import LiveBytes, as_on_card, fake_network
from sam3dnet.planning.methods import METHODS, MethodChoice

BATCH, PATCH = 2, (16, 32, 48)
# Tried with torch 2.14 and 2.15; 2.6 asks the driver for tensors that have no contents.
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14), reason="needs a torch that fakes a card, such as 2.14"
)
FOURS = {"token_stride": [4, 4, 4], "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}
SETTINGS = {
    **{name: (choice, {}) for name, choice in CHOICES.items()},
    **{f"tuned by {tuning}": (MethodChoice(tuning=tuning), {"pretrained": True}) for tuning in TUNINGS},
    "frozen in bf16": (MethodChoice(), {"pretrained": True, "half_frozen": True}),
    "recomputed": (MethodChoice(), {"pretrained": True, "checkpointing": True}),
    "small, 960 tokens": (MethodChoice(), {"encoder": "small", "token_stride": [2, 8, 8], **FOURS}),
    "heads of 64, global": (MethodChoice(), {"encoder": "vit_b", "pretrained": True, **FOURS}),
    "without prompts": (MethodChoice(prompts=False), {}),
    **{name: (MethodChoice(name), {}) for name, method in METHODS.items() if method.peer and name != "network"},
}
OURS = [name for name, (choice, _) in SETTINGS.items() if choice.method.peer is None]
PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm")
# Float32 at voxels, on purpose: the image, and the margin that prompts correct, which ends up in the loss.
IN_FLOAT32 = {
    *("empty", "zeros", "zeros_like", "clone", "detach", "_to_copy", "unsqueeze", "expand", "stack"),
    *("index", "index_put_", "logsumexp", "sub", "add", "clamp", "div"),
}


def maker(name):
    choice, changes = SETTINGS[name]
    arch_kwargs = {**ARCH, "patch_size": list(PATCH), **choice.network_options(regions=False), **changes}
    if choice.method.peer:
        arch_kwargs["encoder"] = "none"
    arch_kwargs = json.loads(json.dumps(arch_kwargs))

    def make():
        network = locate_network(choice.method.network_class)(1, 2, True, **arch_kwargs)
        return TrainedNetwork(network, arch_kwargs.get("prompts", False))

    return make


def run(network, device="cpu"):
    return network.train()(torch.empty(BATCH, 1, *PATCH, device=device))


@cache
def record(name, dtype=torch.bfloat16):
    with on_fake_card(maker(name)) as network, card_autocast(dtype) as attention, Recorder() as recorder:
        outputs = run(network, CARD)
    return recorder, attention, outputs


@pytest.mark.filterwarnings("ignore")  # those of the imports of other packages' networks
@pytest.mark.parametrize("name", SETTINGS)
def test_every_network_runs_on_a_card_and_stays_there(name):
    recorder, _, outputs = record(name)
    assert {output.device for output in outputs} == {CARD}
    assert outputs[0].shape == (BATCH, 2, *PATCH)
    strangers = {call for call, inputs, _ in recorder.calls for i in inputs if i.device != CARD and i.ndim > 1}
    assert not strangers, f"tensors of more than one axis that are not on the card go into {strangers}"


@pytest.mark.parametrize("name", OURS)
def test_products_convolutions_and_instance_norms_are_in_half_precision(name):
    recorder, _, outputs = record(name)
    assert {output.dtype for output in outputs[: -1 if SETTINGS[name][0].answers_prompts else None]} == {torch.bfloat16}
    assert set(recorder.types_of("native_batch_norm", "native_group_norm")) == {torch.bfloat16}
    assert not recorder.types_of("native_group_norm")
    in_float32 = [(call, made[0]) for call, _, made in recorder.calls if made[0].dtype == torch.float32]
    assert {call for call, made in in_float32 if is_at_voxels(made)} <= IN_FLOAT32
    products = [made.shape for call, made in in_float32 if call in PRODUCTS]
    of_kernels = 5 if "patch_embed.depth_kernel_OK" in parameter_names(name) else 0
    of_spectra = 4 if SETTINGS[name][0].tuning == "med-tuning" and SETTINGS[name][1].get("pretrained") else 0
    assert len(products) <= of_kernels + of_spectra


def is_at_voxels(x):
    """Tell activations at full resolution from kernels, tokens and prompts."""
    return x.shape[-3:] == PATCH and x.shape[0] == BATCH


def test_half_precision_may_be_fp16(monkeypatch):
    monkeypatch.setattr(segmentation, "better_half", lambda device: nullcontext())  # which would ask the card
    recorder, _, outputs = record("SAM3DPlans", torch.float16)
    assert outputs[0].dtype == torch.float16
    assert set(recorder.types_of("native_batch_norm", "convolution")) == {torch.float16}


def parameter_names(name):
    with torch.device("meta"):
        return {key.partition("image_encoder.")[2] for key, _ in maker(name)().named_parameters()}


@pytest.mark.parametrize("name", OURS)
def test_nothing_at_voxels_is_copied_into_another_order(name):
    recorder, _, _ = record(name)
    copies = [
        (call, tuple(inputs[0].shape), inputs[0].stride(), made[0].stride())
        for call, inputs, made in recorder.calls
        if call in ("clone", "_to_copy") and is_at_voxels(made[0]) and made[0].numel() > BATCH * math.prod(PATCH)
        if inputs[0].stride() != made[0].stride() and 0 not in inputs[0].stride()  # a phrase a class repeats the image
    ]
    assert not copies


@pytest.mark.parametrize("name", ["SAM3DPlans", "small, 960 tokens", "heads of 64, global", "without prompts"])
def test_no_table_is_read_by_an_index_and_nothing_by_a_clamped_one(name):
    """Torch 2.11 compiles no clamped index for a card, and the gradient of what is read so is added up in any order."""
    recorder, _, _ = record(name)
    read = [inputs[0] for call, inputs, _ in recorder.calls if call in ("index", "_unsafe_index")]
    assert not [tuple(x.shape) for x in read if x.requires_grad and x.ndim < 5]  # clicks look at volumes
    assert "replication_pad3d" not in {call for call, _, _ in recorder.calls}


@pytest.mark.parametrize("name", OURS)
def test_attention_takes_a_fused_kernel(name):
    recorder, attention, _ = record(name)
    assert attention.head_widths
    assert not recorder.types_of("_softmax", "_safe_softmax")


def test_heads_stay_within_the_flash_kernel_up_to_192_tokens_along_the_axes_together():
    _, attention, _ = record("heads of 64, global")
    assert max(attention.head_widths) == 64 + 24  # 4 + 8 + 12 tokens
    assert max(attention.head_widths) <= 256


@pytest.mark.parametrize("name", OURS)
def test_the_planner_traces_what_the_card_runs(name):
    with on_fake_card(maker(name)) as network, card_autocast():
        on_card = kept_by_forward(network, CARD)
    with traced_for("cuda"), fake_network(maker(name)) as network, as_on_card(), torch.autocast("cpu", torch.bfloat16):
        traced = kept_by_forward(network, "cpu")
    assert traced == pytest.approx(on_card, rel=0.03)


def kept_by_forward(network, device):
    counter = LiveBytes()
    counter.ignore(iter([*network.parameters(), *network.buffers()]))
    with counter:
        outputs = run(network, device)
        assert outputs
        return counter.live


def test_kernels_are_ordered_for_the_device_that_a_network_comes_to():
    network = maker("SAM3DPlans")().network
    assert isinstance(network, SegmentationNetwork)
    kernel = network.detail_stem.levels[1][0].conv.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d) and not kernel.is_contiguous()
    moved = network.to("meta").detail_stem.levels[1][0].conv.weight
    assert moved.is_contiguous()
