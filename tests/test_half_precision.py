"""What half precision on a card does to values: computed here on a CPU, in the types that a card would take."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from test_methods import ARCH

from sam3dnet.inference.windows import predict_slabs
from sam3dnet.network.prompt_decoder import class_margin
from sam3dnet.network.prompt_encoder import PromptBatch, Query, sample_at
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.target_device import traced_for
from sam3dnet.planning import memory
from sam3dnet.planning.memory import as_on_card, segmentation_loss
from sam3dnet.prompts.types import Box, ClassPrompts, Point
from sam3dnet.training.prompting import PromptAnswer

SHAPE = (8, 16, 24)
# bf16 has 8 significant bits: one rounding is at most 1/256 of a value, and a network rounds hundreds of times.
LOGITS, LOSS = 0.05, 0.01


@contextmanager
def card_types(dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, traced_for("cuda"), as_on_card(), torch.autocast("cpu", dtype):
        patch.setattr(memory, "HALF_ON_CARDS", ())  # a CPU has no kernel for it
        yield


@pytest.fixture(scope="module")
def network() -> SAM3D:
    torch.manual_seed(3)
    network = SAM3D(1, 3, True, **{**ARCH, "patch_size": SHAPE}, prompts=True)
    with torch.no_grad():
        for parameter in network.parameters():  # adapters are zero at birth, and would hide what lies before them
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(scope="module")
def image_BCzyx() -> torch.Tensor:
    torch.manual_seed(4)
    coarse = torch.randn(2, 1, 2, 4, 6)
    return torch.nn.functional.interpolate(coarse, SHAPE, mode="trilinear") + 0.3 * torch.randn(2, 1, *SHAPE)


QUERIES = [
    Query(0, 2, ClassPrompts((Point((3.0, 8.25, 20.5)), Point((6.0, 15.0, 2.0), positive=False)))),
    Query(1, 1, ClassPrompts(boxes=(Box((2.0, 4.0, 9.0), (5.0, 12.0, 15.0)),), mask=np.ones(SHAPE, bool))),
]


def run(network, image_BCzyx, dtype):
    """Return logits, margins after prompts, and the loss."""
    with card_types(dtype), torch.no_grad():
        features = network.features(image_BCzyx)
        batch = PromptBatch.of(QUERIES, SHAPE)
        logits = features.logits[0].float()
        before_Qzyx = class_margin(logits[[0, 1]], batch.class_Q, regions=False)
        margin_Qzyx = before_Qzyx + network.prompted(features, batch, before_Qzyx)
        truth = torch.zeros(2, *SHAPE, dtype=torch.bool)
        truth[:, 2:5, 4:10, 10:16] = True
        answer = PromptAnswer(margin_Qzyx, truth, torch.ones_like(truth), batch.class_Q)
        return logits, margin_Qzyx, segmentation_loss(features.logits) + answer.loss(), features


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_clicks_and_losses_are_those_of_float32(network, image_BCzyx, dtype):
    logits, margin, loss, _ = run(network, image_BCzyx, None)
    half_logits, half_margin, half_loss, features = run(network, image_BCzyx, dtype)
    assert features.logits[0].dtype == dtype
    for half, single in ((half_logits, logits), (half_margin, margin)):
        spread = single.std()
        assert spread > 0.05
        assert (half - single).abs().max() < 8 * LOGITS * spread
        assert (half - single).pow(2).mean().sqrt() < LOGITS * spread
    assert half_loss.dtype == torch.float32
    assert float(half_loss) == pytest.approx(float(loss), rel=LOSS)


def test_prompts_change_as_much_in_half_precision(network, image_BCzyx):
    logits, margin, _, _ = run(network, image_BCzyx, None)
    half_logits, half_margin, _, _ = run(network, image_BCzyx, torch.bfloat16)
    rows = torch.tensor([2, 1])
    change = margin - class_margin(logits, rows, regions=False)
    half_change = half_margin - class_margin(half_logits, rows, regions=False)
    assert change.std() > 0.02
    assert torch.corrcoef(torch.stack((change.flatten(), half_change.flatten())))[0, 1] > 0.99


def test_clicks_read_their_own_voxel_however_far_out_it_lies():
    ramp = torch.arange(512.0).expand(1, 1, 2, 2, 512)
    at = torch.tensor([[[0.0, 1.0, 3.0], [1.0, 0.0, 255.0], [0.0, 0.0, 510.0]]])
    one_hot = torch.nn.functional.one_hot(torch.tensor([3, 255, 510]), 512).float().sum(0)
    with card_types(torch.bfloat16):
        seen = sample_at((ramp * 0 + one_hot).bfloat16(), at, (2, 2, 512))
    assert torch.equal(seen.float().flatten(), torch.ones(3))


def test_patch_kernel_is_folded_without_rounding(network):
    kernel = network.image_encoder.patch_embed.fused_kernel()
    with card_types(torch.bfloat16):
        assert torch.equal(network.image_encoder.patch_embed.fused_kernel(), kernel)


def test_windows_are_averaged_in_single_precision():
    patch, image = (4, 6, 8), torch.zeros(1, 9, 13, 21)
    steps = torch.tensor([1.0, 1 + 2**-7])  # neighbours in bf16, whose mean it cannot hold
    calls = iter(range(10_000))

    def alternate(windows_BCZYX: torch.Tensor) -> torch.Tensor:
        value = steps[next(calls) % 2]
        return value.expand(len(windows_BCZYX), 2, *patch).to(torch.bfloat16)

    slabs = list(predict_slabs([lambda: alternate], image, patch, 2, step_size=0.5))
    logits = torch.cat(slabs, 1)
    assert logits.dtype == torch.float32
    assert ((logits >= steps[0]) & (logits <= steps[1])).all()
    assert logits.unique().numel() > 50


def test_a_constant_stays_one_through_all_windows_in_half_precision():
    value = torch.tensor(3.140625)  # exact in bf16
    patch = (4, 6, 8)

    def constant(windows_BCZYX: torch.Tensor) -> torch.Tensor:
        return value.expand(len(windows_BCZYX), 2, *patch).to(torch.bfloat16)

    logits = torch.cat(list(predict_slabs([lambda: constant] * 3, torch.zeros(1, 9, 13, 21), patch, 2)), 1)
    torch.testing.assert_close(logits, value.expand_as(logits), rtol=1e-5, atol=0)
