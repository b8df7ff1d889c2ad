"""Progress inside an epoch: loss, iterations a second, and the time left of the whole training."""

import time
from functools import partial
from typing import TextIO

from sam3dnet.preprocessing.progress import Progress, format_seconds

__all__ = ["EpochProgress", "format_seconds"]


class EpochProgress:
    """Shows the iterations of an epoch: a bar on a terminal, printed lines elsewhere.

    Args:
        epoch: Number of the epoch, from 0.
        iterations: Iterations in it.
        stream: Where the bar goes, standard error if None.
        show: False shows nothing.
    """

    def __init__(self, epoch: int, iterations: int, stream: TextIO | None = None, show: bool = True):
        # Printed and not logged: stock nnU-Net's commands, which use our trainer too, show what is printed.
        say = partial(print, flush=True)
        self._progress = Progress(
            iterations, f"epoch {epoch}", "iterations", say=say, leave=False, stream=stream, show=show
        )
        self._started = time.monotonic()
        self._done = 0

    def update(self, loss: float, seconds_left: float | None) -> None:
        """Count one iteration."""
        self._done += 1
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        note = f"loss {loss:.4f}, {rate:.2f} it/s, training ends in {format_seconds(seconds_left)}"
        self._progress.update(note=note, seconds_left=seconds_left)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.close()
