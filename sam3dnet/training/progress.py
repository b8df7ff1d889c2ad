"""Progress inside an epoch: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


def format_seconds(seconds: float | None) -> str:
    """Write seconds as h:mm:ss, or "?" where they are unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class EpochProgress:
    """Shows loss, iterations a second and the time left of the whole training.

    Args:
        epoch: Number of the epoch, from 0.
        iterations: Iterations in it.
        stream: Where to write; a bar if it is a terminal, a line every half minute otherwise.
    """

    def __init__(self, epoch: int, iterations: int, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._epoch = epoch
        self._iterations = iterations
        self._started = self._last_line = time.monotonic()
        self._done = 0
        self._bar: Any = None
        if self._stream.isatty():
            self._bar = tqdm(total=iterations, desc=f"epoch {epoch}", unit="it", file=self._stream, leave=False)

    def update(self, loss: float, seconds_left: float | None) -> None:
        """Count one iteration."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.4f}, training ends in {format_seconds(seconds_left)}", refresh=False
            )
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = self._done / (now - self._started)
            print(
                f"epoch {self._epoch}  {self._done}/{self._iterations}  loss {loss:.4f}  {rate:.2f} it/s  "
                f"training ends in {format_seconds(seconds_left)}",
                file=self._stream,
                flush=True,
            )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
