"""The choice of the encoder: by weights that can be had, by data, and on a CPU by the operations of a step."""

import math

import pytest

from sam3dnet.network.cost import training_operations
from sam3dnet.planning.encoder import SamWeights, choose_encoder
from sam3dnet.planning.operations import count_operations

HERE = SamWeights({"name": "sam_vit_b_01ec64.pth"})
LOST = SamWeights({"name": "sam_vit_b_01ec64.pth"}, missing="it could not be downloaded from far away: refused")


def choose(requested, weights, voxels=1e9, times=None):
    """Choose; give the decision and what weights were asked for."""
    asked = []

    def find(encoder, by_user):
        asked.append((encoder, by_user))
        return weights

    return choose_encoder(requested, voxels, find, lambda *_: times), asked


@pytest.mark.parametrize(
    ("requested", "weights", "voxels", "expected", "asked"),
    [
        ("auto", HERE, 1e9, ("vit_b", True), [("vit_b", False)]),
        ("auto", LOST, 1e7, ("small", False), [("vit_b", False)]),
        ("auto", LOST, 1e5, ("tiny", False), [("vit_b", False)]),
        ("vit_l", LOST, 1e5, ("vit_l", True), [("vit_l", True)]),
        ("small", HERE, 1e9, ("small", False), []),
    ],
)
def test_encoder_goes_by_weights_and_data(requested, weights, voxels, expected, asked):
    chosen, found = choose(requested, weights, voxels)
    assert (chosen.decision.value["encoder"], chosen.decision.value["pretrained"]) == expected
    assert found == asked
    assert chosen.weights == (weights.record if expected[1] else None)


def test_lost_weights_are_a_warning_that_says_what_the_plan_lost_and_why():
    chosen, _ = choose("auto", LOST)
    assert chosen.warning == chosen.decision.reason
    assert "'small' is trained whole" in chosen.warning
    assert "it would have been vit_b with SAM's weights: it could not be downloaded from far away" in chosen.warning
    asked, _ = choose("vit_h", LOST)
    assert asked.warning in asked.decision.reason
    assert "training needs them: it could not be downloaded" in asked.warning
    assert choose("auto", HERE)[0].warning is choose("tiny", LOST)[0].warning is None


def test_on_a_cpu_a_costly_encoder_is_not_even_looked_for():
    chosen, asked = choose("auto", HERE, times=4.1)
    assert chosen.decision.value == {"encoder": "small", "pretrained": False}
    assert asked == []
    assert "would cost 4.1 times the operations; --encoder vit_b takes it all the same" in chosen.decision.reason
    assert chosen.warning is None
    assert choose("auto", HERE, times=1.5)[0].decision.value["encoder"] == "vit_b"
    assert choose("auto", HERE, times=math.inf)[0].decision.value["encoder"] == "small"
    assert choose("vit_b", HERE, times=4.1)[0].decision.value["encoder"] == "vit_b"


def test_operations_of_a_convolution_and_a_product_are_counted_forward_and_backward():
    from torch import nn

    class Small(nn.Module):
        def __init__(self, frozen):
            super().__init__()
            self.mix, self.head = nn.Conv3d(2, 3, 1, bias=False), nn.Conv3d(3, 4, 1, bias=False)
            self.mix.requires_grad_(not frozen)

        def forward(self, x):
            return self.head(self.mix(x))

    voxels = 2 * 5 * 6 * 7
    first, second = 2 * voxels * 2 * 3, 2 * voxels * 3 * 4
    # Backward: the gradient of each kernel, and that of the second one's input.
    assert count_operations(lambda: Small(False), (2, 2, 5, 6, 7)) == first * 2 + second * 3
    assert count_operations(lambda: Small(True), (2, 2, 5, 6, 7)) == first + second * 2


def test_operations_of_a_planned_network_grow_with_the_batch_and_its_trained_part():
    arguments = {
        "encoder": "tiny",
        "patch_size": [8, 16, 12],
        "token_stride": [4, 4, 4],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    }
    one, two = (training_operations({**arguments, "pretrained": False}, 2, 3, batch) for batch in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.02)
    assert training_operations({**arguments, "pretrained": True}, 2, 3, 1) < one
    assert training_operations({**arguments, "pretrained": False, "prompts": True}, 2, 3, 1) > one
