"""Answers to clicks give what was asked for, as far as the network has proved that it may."""

from math import exp, inf
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam3dnet.network.earlier_weights import REACH, completed
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.reach import REACHES, nearness, restrained
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.prompts.types import Point
from sam3dnet.training.prompt_training import PromptTraining
from sam3dnet.training.reaching import FAR_REACHES, ReachJudge, choose_reach
from sam3dnet.training.target_classes import Classes

SHAPE = (3, 40, 24)
CLASSES = Classes((1, 2), False, None, (3.0, 1.0, 1.0), (2, 8, 8))
NO_ANSWER = SimpleNamespace(class_Q=torch.empty(0), hard_dice_counts=lambda: (torch.empty(0), torch.empty(0)))
ARCHITECTURE = {
    "encoder": "tiny",
    "patch_size": [4, 16, 16],
    "token_stride": [2, 4, 8],
    "strides": [[1, 1, 1], [1, 2, 4], [2, 2, 2]],
    "prompts": True,
}


def test_nearness_is_a_gaussian_around_the_nearest_click_in_the_window_or_not():
    near = nearness([Point((1, 5, 3)), Point((1, 50, 3))], SHAPE, (1.0, 4.0, 2.0))
    assert near.shape == SHAPE
    assert near[1, 5, 3] == 1
    assert float(near[2, 9, 5]) == pytest.approx(exp(-0.5 * 3), rel=1e-5)
    assert float(near[1, 39, 3]) == pytest.approx(exp(-0.5 * (11 / 4) ** 2), rel=1e-5)


@pytest.mark.parametrize(("said", "least", "most"), [((True, True), 0, 2), ((False,), -2, 0), ((True, False), -2, 2)])
def test_nothing_is_added_or_taken_that_was_not_asked_for(said, least, most):
    correction = torch.tensor([-2.0, 2.0]).expand(3, 40, 2)
    clicks = [Point((0, 1, 0), positive) for positive in said]
    allowed = restrained(correction, clicks, (inf,) * 3)
    assert (allowed.min(), allowed.max()) == (least, most)
    limited = restrained(correction, clicks, (2.0, 2.0, 2.0))
    assert torch.allclose(limited, allowed * nearness(clicks, (3, 40, 2), (2.0, 2.0, 2.0)))


class Careless:
    """Gives what was missed around a click, or removes what was false, and all that is farther than `knows` voxels is
    wrong."""

    def __init__(self, truth_zyx, knows):
        self.truth = torch.from_numpy(truth_zyx)
        self.knows = knows

    def prompted(self, features, batch, margin_Qzyx):
        is_click = batch.polarity_QP[0] >= 0
        if not is_click.any():
            return torch.zeros_like(margin_Qzyx)
        away = (torch.arange(SHAPE[1]) - batch.points_QP3[0][is_click][:, 1:2]).abs().amin(0)
        right = torch.where(self.truth, 40.0, -40.0)
        return torch.where(away[None, :, None] <= self.knows, right, -right)[None]


def judged(knows, missed=slice(10, 20)):
    """What a judge finds of class 2, of which a part is missed."""
    target = torch.zeros(1, 1, *SHAPE)
    target[0, 0, :, 5:35, 4:20] = 2
    logits = torch.nn.functional.one_hot(target[:, 0].long(), 3).permute(0, 4, 1, 2, 3) * 10.0
    logits[0, 2, :, missed] = -10.0
    features = ImageFeatures(torch.zeros(1, 1, 1, 1, 1), (), (logits,))
    network = Careless((target[0, 0] == 2).numpy(), knows)
    rng = np.random.default_rng(0)
    return sum(ReachJudge(target, CLASSES, 3, rng)(network, features) for _ in range(20))


def test_a_network_that_is_right_everywhere_is_not_limited_and_one_that_is_careless_is():
    everywhere, nearby = judged(100), judged(4)
    assert everywhere.shape == (3, len(REACHES), 2)
    assert not everywhere[:2].any()  # class 1 is not in the patch
    assert choose_reach(everywhere) == [inf, inf, inf]
    assert choose_reach(nearby)[2] < inf
    dice = nearby[2, :, 0] / nearby[2, :, 1]
    assert dice[0] < dice.max() - 0.005


def test_a_right_mask_is_asked_nothing_about():
    assert not judged(100, slice(0, 0)).any()


def test_the_best_reach_is_chosen_and_of_equal_ones_the_longest():
    counts = np.zeros((3, len(REACHES), 2))
    counts[1:, :, 0], counts[1:, :, 1] = 900, 1000
    counts[2, 2:, 0] = 905
    assert choose_reach(counts) == [inf, inf, REACHES[2]]
    assert choose_reach(counts, FAR_REACHES) == [inf, inf, inf]
    counts[2, 1:, 0] = 910
    assert choose_reach(counts, FAR_REACHES) == [inf, inf, REACHES[1]]


@pytest.mark.parametrize("validates_on_seen", [False, True])
def test_patches_that_were_trained_on_limit_the_reach_less(validates_on_seen):
    prompts = PromptTraining(CLASSES, 3, validates_on_seen=validates_on_seen)
    counts = np.zeros((3, len(REACHES), 2))
    counts[1:, :, 1], counts[1:, -1, 0] = 1000, 900
    network = SAM3D(1, 3, **ARCHITECTURE)
    prompts.conclude_epoch([(NO_ANSWER, counts)], network)
    assert network.reaching.reach_K.tolist() == [inf, *([inf] * 2 if validates_on_seen else [pytest.approx(0.25)] * 2)]


def test_the_reach_goes_with_the_weights():
    network, other = (SAM3D(1, 3, **ARCHITECTURE) for _ in range(2))
    assert network.reach(2) == (inf, inf, inf)
    network.reaching.reach_K[2] = 0.5
    assert network.reach(2) == (1.0, 2.0, 4.0)
    other.load_state_dict(network.state_dict())
    assert other.reach(2) == (1.0, 2.0, 4.0)
    assert REACH not in SAM3D(1, 3, **{**ARCHITECTURE, "prompts": False}).state_dict()


def test_weights_from_before_there_was_a_reach_have_none():
    network = SAM3D(1, 3, **ARCHITECTURE)
    state = network.state_dict()
    del state[REACH]
    network.load_state_dict(completed(state, network.state_dict()))
    assert network.reach(1) == (inf, inf, inf)
    assert completed({}, {}) == {}
