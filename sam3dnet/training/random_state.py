"""The state of all random generators that a training draws from, as a checkpoint keeps it."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the state of the random generators of Python, numpy and torch as plain values and tensors."""
    version, keys, position = random.getstate()
    kind, words, *rest = np.random.get_state()  # the loaders of nnU-Net draw from numpy's global generator
    return {
        "python": [version, list(keys), position],
        "numpy": [kind, [int(word) for word in words], *rest],
        "torch": torch.get_rng_state(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random generators to a state that random_state returned."""
    version, keys, position = state["python"]
    random.setstate((version, tuple(keys), position))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, np.array(words, np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
