"""The budget of a training and its learning rate."""

import pytest

from sam3dnet.errors import PlanError
from sam3dnet.training.schedule import Budget, learning_rate_factor


def test_the_learning_rate_warms_up_and_ends_at_zero():
    factors = [learning_rate_factor(step / 1000) for step in range(1001)]
    top = factors.index(max(factors))
    assert 0 < factors[0] < 0.05
    assert top == 30
    assert factors[top] == pytest.approx(1)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[-1] == pytest.approx(0)


def test_epochs_are_counted():
    budget = Budget(4)
    budget.start()
    assert budget.fraction(1.5) == 0.375
    assert budget.fraction(3.99) < 1
    assert budget.fraction(4) == budget.fraction(5) == 1


def test_the_clock_wins_over_epochs_and_remembers_earlier_sessions():
    clock = iter([100.0, 130.0, 130.0, 190.0])
    budget = Budget(1, minutes=2, seconds_before=60.0, now=lambda: next(clock))
    assert budget.seconds() == 60.0
    budget.start()
    assert budget.fraction(epochs_done=99) == 0.75
    assert budget.seconds_left(0) == 30.0
    assert budget.fraction(0) == 1


def test_time_left_follows_the_epochs():
    clock = iter([0.0, 50.0])
    budget = Budget(10, now=lambda: next(clock))
    assert budget.seconds_left(0) is None
    budget.start()
    assert budget.seconds_left(2) == 200.0


@pytest.mark.parametrize(("epochs", "minutes", "message"), [(0, None, "at least 1, got 0"), (1, -2.0, "got -2.0")])
def test_impossible_lengths_are_refused(epochs, minutes, message):
    with pytest.raises(PlanError, match=message):
        Budget(epochs, minutes)
