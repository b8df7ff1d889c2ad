"""Networks of several folds: what all folds have alike, such as a frozen encoder, is loaded and kept once."""

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def names_that_differ(weights: Sequence[Weights]) -> frozenset[str]:
    """Name the weights that are not the same in all folds."""
    first, *others = weights
    return frozenset(
        name for name, value in first.items() if not all(torch.equal(value, other[name]) for other in others)
    )


@torch.no_grad()
def load_into(network: nn.Module, weights: Weights, names: Collection[str]) -> None:
    """Copy the weights of these names into a network, in place."""
    there = network.state_dict()
    for name in names:
        there[name].copy_(weights[name])


def networks_of_folds(network: nn.Module, weights: Sequence[Weights], differing: Collection[str]) -> list[nn.Module]:
    """Make a network for each fold; they share the tensors of all that does not differ, also with the network given.

    Args:
        network: With the weights of any of the folds.
        weights: Of each fold.
        differing: Names of the weights that are not the same in all folds.
    """
    shared = [value for name, value in _tensors(network) if name not in differing]
    networks = []
    for of_fold in weights:
        mine = copy.deepcopy(network, {id(value): value for value in shared})
        load_into(mine, of_fold, differing)
        networks.append(mine)
    return networks


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """List parameters and buffers under all their names."""
    return [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
