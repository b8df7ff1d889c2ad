"""Rare classes weigh more in the cross entropy while a training is young, and not in its scores."""

import math

import pytest
import torch
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch import nn

from sam3dnet.training.rare_classes import EXPONENT, FADED, RAREST, RareClasses, exponent_at


def labels_of(counts: dict[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    flat = torch.cat([torch.full((number,), float(label)) for label, number in counts.items()])
    return flat.view(1, 1, *shape)


@pytest.mark.parametrize("shape", [(10, 100), (10, 10, 10)])
def test_weights_are_powers_of_one_over_the_shares(shape):
    cross_entropy = RobustCrossEntropyLoss(ignore_index=3)
    rare = RareClasses(cross_entropy, 3)
    rare.exponent = 0.5
    rare.note(labels_of({0: 720, 1: 80, 2: 0, 3: 200}, shape))
    assert cross_entropy.weight.tolist() == pytest.approx([0.9**-0.5, 0.1**-0.5, RAREST**-0.5])
    rare.exponent = 0.0
    rare.note(labels_of({0: 1000}, shape))
    assert cross_entropy.weight.tolist() == [1.0, 1.0, 1.0]
    rare.weigh_equally()
    assert cross_entropy.weight is None


@pytest.mark.parametrize("shape", [(10, 100), (10, 10, 10)])
def test_a_region_weighs_as_much_as_without_weights_but_more_of_it_inside(shape):
    """All logits are 0, so that each voxel costs log 2; then those inside alone are wrong."""
    cross_entropy = nn.BCEWithLogitsLoss(reduction="none")
    rare = RareClasses(cross_entropy, 2)
    rare.exponent = 0.5
    ignored = labels_of({0: 500, 1: 500}, shape)
    target = torch.cat([labels_of({1: 50, 0: 950}, shape), labels_of({1: 5, 0: 995}, shape), ignored], 1)
    rare.note(target)
    valid = ignored == 0
    costs = cross_entropy(torch.zeros_like(target[:, :2]), target[:, :2]) * valid
    assert (costs.flatten(2).sum(2) / valid.sum()).tolist()[0] == pytest.approx([math.log(2)] * 2, rel=1e-5)
    first_inside, first_outside = costs[0, 0].flatten()[[0, 100]].tolist()
    assert first_inside / first_outside == pytest.approx((0.1 / 0.9) ** -0.5, rel=1e-5)
    second_inside, second_outside = costs[0, 1].flatten()[[0, 100]].tolist()
    assert second_inside / second_outside == pytest.approx((0.01 / 0.99) ** -0.5, rel=1e-5)
    rare.weigh_equally()
    assert cross_entropy.weight is None and cross_entropy.pos_weight is None


def test_shares_are_carried_from_batch_to_batch_and_into_another_training():
    first, second = RobustCrossEntropyLoss(), RobustCrossEntropyLoss()
    rare, going_on = RareClasses(first, 2), RareClasses(second, 2)
    batches = [labels_of({0: 8 - number, 1: number}, (2, 4)) for number in (1, 4, 0)]
    for one in (rare, going_on):
        one.exponent = 1.0
    for batch in batches[:2]:
        rare.note(batch)
    going_on.restore(rare.state())
    for one in (rare, going_on):
        one.note(batches[2])
    assert torch.equal(first.weight, second.weight)
    share = 0.95 * (0.95 * 1 / 8 + 0.05 * 4 / 8)
    assert first.weight.tolist() == pytest.approx([1 / (1 - share), 1 / share])


def test_weights_fade():
    assert exponent_at(0.0) == EXPONENT
    assert exponent_at(FADED / 2) == pytest.approx(EXPONENT / 2)
    assert exponent_at(FADED) == exponent_at(1.0) == 0.0


def test_a_state_from_before_classes_were_counted_starts_counting():
    rare = RareClasses(RobustCrossEntropyLoss(), 2)
    rare.restore({"seconds": 1.0})
    assert rare.state() == {}
