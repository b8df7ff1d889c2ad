import gc

import pytest
import torch
from torch import nn

from sam3dnet.planning.memory import LiveBytes, fake_network, segmentation_loss, training_bytes

FLOAT = 4


def total(output):
    return output.sum()


def test_a_linear_layer_costs_what_one_counts_by_hand():
    weight, image = 35 * FLOAT, 3 * 7 * FLOAT
    # The worst moment is the end of the backward pass: image, loss, its gradient (expanded, so one number), gradient.
    peak = image + FLOAT + FLOAT + weight
    assert training_bytes(lambda: nn.Linear(7, 5, bias=False), (3, 7), loss=total) == 3 * weight + peak


@pytest.mark.parametrize("states", [0, 1, 2])
def test_the_optimiser_keeps_so_many_tensors_a_trained_parameter(states):
    def measured(n):
        return training_bytes(lambda: nn.Linear(7, 5), (3, 7), loss=total, optimizer_states_per_parameter=n)

    assert measured(states) == measured(0) + states * 40 * FLOAT


def test_frozen_parameters_have_neither_gradient_nor_optimiser_state():
    def make(frozen):
        network = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        network[0].requires_grad_(not frozen)
        return network

    trained, frozen = (training_bytes(lambda f=f: make(f), (1, 6), loss=total) for f in (False, True))
    saved = 3 * 36 * FLOAT
    kept_for_the_frozen_gradient = trained - frozen - saved
    assert 0 <= kept_for_the_frozen_gradient <= 2 * 6 * FLOAT


def test_parameters_shared_by_two_layers_count_once():
    def make():
        first, second = nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False)
        second.weight = first.weight
        return nn.Sequential(first, second)

    weight = 50 * 50 * FLOAT
    # Once as parameter, twice for the optimiser; two gradients while they are added, where apart it is six and two.
    assert training_bytes(make, (1, 50), loss=total) < 6.5 * weight


def test_activations_kept_for_the_backward_pass_are_counted_once_each():
    # Each ReLU keeps its own output alone, which is also the next one's input.
    def measured(depth):
        return training_bytes(lambda: nn.Sequential(Scale(), *[nn.ReLU() for _ in range(depth)]), (1, 1000), loss=total)

    assert measured(9) - measured(5) == 4 * 1000 * FLOAT


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor


class First(nn.Module):
    """A parameter at the entrance, so that everything behind it is kept for the backward pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, x_BCZYX):
        return [self.head(torch.relu(self.norm(self.conv(x_BCZYX))))]


def test_memory_grows_with_batch_and_size_by_what_is_kept():
    one, two, four = (training_bytes(First, (batch, 2, 5, 6, 7)) for batch in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    kept = (2 + 4 + 4 + 4 + 3) * 5 * 6 * 7 * FLOAT
    assert two - one > kept


def test_fake_tensors_count_as_real_ones_do():
    with LiveBytes() as real:
        image = torch.zeros(2, 2, 5, 6, 7)
        network = First().train()
        before = real.live
        segmentation_loss(network(image)).backward()
    fake = training_bytes(First, (2, 2, 5, 6, 7), optimizer_states_per_parameter=0)
    assert real.peak == fake
    assert before < fake


def test_mixed_precision_takes_less():
    shape = (1, 2, 16, 17, 18)
    assert training_bytes(First, shape, autocast=torch.bfloat16) < training_bytes(First, shape)


def test_a_network_that_looks_at_its_weights_is_built_for_real():
    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(7, 5, bias=False)
            self.register_buffer("mean", torch.zeros(11))
            if torch.count_nonzero(self.layer.weight):
                nn.init.zeros_(self.layer.weight)

        def forward(self, x):
            return self.layer(x)

    plain = training_bytes(lambda: nn.Linear(7, 5, bias=False), (3, 7), loss=total)
    assert training_bytes(Curious, (3, 7), loss=total) == plain + 11 * FLOAT


def test_no_contents_are_allocated():
    def make():
        return nn.Linear(10**6, 10**6)

    with fake_network(make) as network:
        assert network.weight.untyped_storage().nbytes() == 4 * 10**12
    assert training_bytes(make, (1, 10**6), loss=total) > 16 * 10**12


@pytest.mark.parametrize("was_on", [True, False])
def test_a_trace_leaves_python_s_collector_as_it_was(was_on):
    def fail(_output):
        raise ZeroDivisionError

    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        training_bytes(lambda: nn.Linear(7, 5), (3, 7), loss=total)
        assert gc.isenabled() == was_on
        with pytest.raises(ZeroDivisionError):
            training_bytes(lambda: nn.Linear(7, 5), (3, 7), loss=fail)
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()
