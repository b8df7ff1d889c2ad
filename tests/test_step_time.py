"""The estimated seconds of a step: what is counted, of which kind, and in what proportion."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3dnet.check.networks import own_arguments
from sam3dnet.network.cost import training_seconds, training_work
from sam3dnet.planning import step_time
from sam3dnet.planning.memory import training_bytes
from sam3dnet.planning.step_time import (
    ATTENTION,
    CONVOLUTION,
    DEPTHWISE,
    OTHER,
    PRODUCT,
    Rate,
    StepWork,
    Work,
)

ARCH = {
    "encoder": "tiny",
    "patch_size": [8, 16, 12],
    "token_stride": [4, 4, 4],
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "pretrained": False,
}


class Small(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.mix, self.head = nn.Conv3d(2, 4, 1, bias=False), nn.Conv3d(4, 4, 1, bias=False)
        self.mix.requires_grad_(not frozen)

    def forward(self, x):
        return self.head(self.mix(x))


def test_operations_of_convolutions_are_counted_forward_and_backward():
    voxels = 2 * 5 * 6 * 7
    first, second = 2 * voxels * 2 * 4, 2 * voxels * 4 * 4
    # Backward: the gradient of each kernel, and that of the second one's input.
    for frozen, expected in ((False, first * 2 + second * 3), (True, first + second * 2)):
        noted = StepWork()
        training_bytes(partial(Small, frozen), (2, 2, 5, 6, 7), watch=noted)
        work = noted.work
        assert work[CONVOLUTION].operations == expected
        assert work[CONVOLUTION].calls == (3 if frozen else 4)
        assert DEPTHWISE not in work


def test_bytes_are_those_read_and_written_and_views_are_free():
    with FakeTensorMode(), StepWork() as noted:
        x = torch.empty(2, 3)
        assert noted.work[OTHER] == Work(1, 0, 0)
        flat = x.flatten().unflatten(0, (3, 2)).detach()
        assert noted.work[OTHER].bytes == 0
        flat + flat
        assert noted.work[OTHER].bytes == 3 * 24
        x[:1].expand(4, 3) * 2  # of what is read again and again, once
        assert noted.work[OTHER] == Work(noted.work[OTHER].calls, 0, 3 * 24 + 12 + 48)
        x.add_(1)
        assert noted.work[OTHER].bytes == 3 * 24 + 12 + 48 + 2 * 24


def test_kinds():
    assert step_time.kind_of("convolution", [(1, 4, 5, 5, 5), (4, 1, 3, 3, 3)]) == DEPTHWISE
    assert step_time.kind_of("convolution", [(1, 1, 5, 5, 5), (4, 1, 3, 3, 3)]) == CONVOLUTION
    assert step_time.kind_of("convolution_backward", [(1, 4, 5, 5, 5), (1, 4, 5, 5, 5), (4, 1, 3, 3, 3)]) == DEPTHWISE
    assert step_time.kind_of("_scaled_dot_product_flash_attention_for_cpu", [(1, 2, 9, 8)] * 3) == ATTENTION
    assert step_time.kind_of("addmm", [(3,), (2, 4), (4, 3)]) == PRODUCT
    assert step_time.kind_of("native_layer_norm", [(2, 3)]) == OTHER
    assert set(training_work({**ARCH, "prompts": True}, 1, 2, 1)) == set(step_time.RATES)


def test_seconds_add_up():
    assert Rate(10.0, 5.0, 0.5).seconds(Work(calls=4, operations=20, bytes=15)) == 2 + 3 + 2
    seconds = step_time.seconds_of({OTHER: Work(1, 0, 10**9), PRODUCT: Work(1, 10**9, 0)})
    parts = [step_time.RATES[OTHER].seconds(Work(1, 0, 10**9)), step_time.RATES[PRODUCT].seconds(Work(1, 10**9, 0))]
    assert seconds == pytest.approx(sum(parts))


def test_seconds_of_a_planned_network_grow_with_batch_trained_part_and_prompts():
    two, four, eight = (training_seconds(ARCH, 2, 3, batch) for batch in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.05)
    assert training_seconds({**ARCH, "pretrained": True}, 2, 3, 2) < two
    asked = training_seconds({**ARCH, "prompts": True}, 2, 3, 2)
    assert asked > two
    large = {**ARCH, "patch_size": [16, 48, 48]}
    thick = {**large, "token_stride": [1, 4, 4], "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2]]}
    assert training_seconds(thick, 2, 3, 2) > 2 * training_seconds(large, 2, 3, 2)  # four times the tokens


@pytest.mark.parametrize(
    ("spacing_mm", "second", "fitted"),
    [(None, [1, 2, 2], False), ((1.5, 1.0, 1.0), [2, 2, 2], True), ((3.0, 1.0, 1.0), [1, 2, 2], True)],
)
def test_networks_to_be_measured_have_the_levels_of_a_plan(spacing_mm, second, fitted):
    arguments = own_arguments((16, 32, 32), (4, 8, 8), "tiny", False, spacing_mm)
    assert arguments["strides"][1] == second
    assert ("features" in arguments) == ("kernels" in arguments) == fitted
