"""How far a training has come, by epochs or by the clock, and the learning rate that belongs there."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, pi

from sam3dnet.errors import PlanError


def learning_rate_factor(fraction: float, warm_up: float = 0.03) -> float:
    """Give the factor on the base learning rate: linear warm-up, then half a cosine down to zero.

    Args:
        fraction: Part of the training that is done, 0 to 1.
        warm_up: Part of the training spent warming up.

    Returns:
        A factor between 0 and 1; never exactly 0 at the start, so that the first step counts.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < warm_up:
        return 0.01 + 0.99 * fraction / warm_up
    return 0.5 * (1 + cos(pi * (fraction - warm_up) / (1 - warm_up)))


@dataclass
class Budget:
    """The length of a training: a number of epochs, or minutes of wall-clock time.

    Attributes:
        epochs: Epochs to train, ignored where minutes is given.
        minutes: Wall-clock minutes; the schedule follows the clock. None: count epochs.
        seconds_before: Seconds spent in earlier sessions of the same training.
        now: The clock, in seconds.
    """

    epochs: int
    minutes: float | None = None
    seconds_before: float = 0.0
    now: Callable[[], float] = field(default=time.monotonic, repr=False)
    _started: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise PlanError(f"minutes of training: expected a number above 0, got {self.minutes}")
        if self.epochs < 1:
            raise PlanError(f"epochs of training: expected at least 1, got {self.epochs}")

    def start(self) -> None:
        """Start the clock."""
        self._started = self.now()

    def seconds(self) -> float:
        """Return the seconds trained so far, those of earlier sessions included."""
        return self.seconds_before + (0.0 if self._started is None else self.now() - self._started)

    def fraction(self, epochs_done: float) -> float:
        """Return the part that is done, 0 to 1, given the epochs done so far, parts of an epoch included."""
        done = epochs_done / self.epochs if self.minutes is None else self.seconds() / (60 * self.minutes)
        return min(done, 1.0)

    def seconds_left(self, epochs_done: float) -> float | None:
        """Estimate the seconds left; None before anything is done."""
        if self.minutes is not None:
            return max(60 * self.minutes - self.seconds(), 0.0)
        done = self.fraction(epochs_done)
        return self.seconds() * (1 - done) / done if done > 0 else None
