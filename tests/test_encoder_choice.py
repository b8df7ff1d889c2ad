"""The choice of the encoder: by weights that can be had, by data, and on a CPU by the seconds of a step."""

import math

import pytest

from sam3dnet.planning.encoder import SamWeights, choose_encoder

HERE = SamWeights({"name": "sam_vit_b_01ec64.pth"})
LOST = SamWeights({"name": "sam_vit_b_01ec64.pth"}, missing="it could not be downloaded from far away: refused")


def choose(requested, weights, voxels=1e9, times=None, needs_transformer=False):
    """Choose; give the decision and what weights were asked for."""
    asked = []

    def find(encoder, by_user):
        asked.append((encoder, by_user))
        return weights

    return choose_encoder(requested, voxels, find, lambda *_: times, needs_transformer), asked


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
    assert "gained nothing over convolutions alone (--encoder none)" in chosen.warning
    assert "convolutions alone" not in choose("auto", LOST, needs_transformer=True)[0].warning
    assert "it would have been vit_b with SAM's weights: it could not be downloaded from far away" in chosen.warning
    asked, _ = choose("vit_h", LOST)
    assert asked.warning in asked.decision.reason
    assert "training needs them: it could not be downloaded" in asked.warning
    assert choose("auto", HERE)[0].warning is choose("tiny", LOST)[0].warning is None


def test_on_a_cpu_a_costly_encoder_is_not_even_looked_for():
    chosen, asked = choose("auto", HERE, times=4.1)
    assert chosen.decision.value == {"encoder": "none", "pretrained": False}
    assert asked == []
    reason = chosen.decision.reason
    assert "trained from scratch its blocks cost more than they gain; --encoder small takes them" in reason
    assert "would take 4.1 times as long as one of small, on a CPU; --encoder vit_b takes it all the same" in reason
    assert chosen.warning is None
    assert choose("auto", HERE, times=1.5)[0].decision.value["encoder"] == "vit_b"
    assert choose("auto", HERE, times=math.inf)[0].decision.value["encoder"] == "none"
    assert choose("auto", LOST, times=1.5)[0].decision.value["encoder"] == "none"
    assert choose("vit_b", HERE, times=4.1)[0].decision.value["encoder"] == "vit_b"


@pytest.mark.parametrize(("voxels", "encoder"), [(1e9, "small"), (1e5, "tiny")])
def test_networks_that_need_a_transformer_have_a_small_one_on_a_cpu(voxels, encoder):
    chosen, _ = choose("auto", HERE, voxels, times=4.1, needs_transformer=True)
    assert chosen.decision.value == {"encoder": encoder, "pretrained": False}
    assert "is trained whole from scratch" in chosen.decision.reason
