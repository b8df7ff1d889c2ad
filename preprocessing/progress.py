"""How far a job has come and the time left: a bar on a terminal, a line of the log now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BEFORE_FIRST_LINE = 2.0
SECONDS_BETWEEN_LINES = 30.0
_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"

_bars_hidden = False


def hide_bars(hidden: bool) -> None:
    """Show no bars from now on, as --quiet asks; lines still go to the log."""
    global _bars_hidden
    _bars_hidden = hidden


def format_seconds(seconds: float | None) -> str:
    """Write seconds as h:mm:ss, or "?" where they are unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class Progress:
    """Shows what is done, of how much, and the time left.

    On a terminal it is a bar on standard error. Elsewhere it is a line after two seconds, then every half minute, and
    at the end of all that took longer than two seconds.

    Args:
        total: How much there is to do; None if that is unknown.
        description: Stands before it.
        unit: What is counted, in the plural.
        show: False shows nothing.
        say: Takes a line where there is no terminal; None for the log.
        leave: Whether the bar stays when all is done.
        stream: Where the bar goes, standard error if None.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str = "cases",
        *,
        show: bool = True,
        say: Callable[[str], object] | None = None,
        leave: bool = True,
        stream: TextIO | None = None,
    ):
        stream = stream or sys.stderr
        self._total, self._description, self._unit = total, description, unit
        self._say = say or logger.info
        self._done = 0.0
        self._note = ""
        self._seconds_left: float | None = None
        self._started = time.monotonic()
        self._next_line = self._started + SECONDS_BEFORE_FIRST_LINE
        self._lines = show and not stream.isatty()
        self._bar: Any = None
        if show and stream.isatty() and not _bars_hidden:
            self._bar = tqdm(total=total, desc=description, bar_format=_BAR_FORMAT, file=stream, leave=leave)
            self._refresh()

    def update(self, done: float = 1, note: str | None = None, seconds_left: float | None = None) -> None:
        """Add what was done, parts of a unit too.

        Args:
            done: How much.
            note: The text at the end; None leaves the one before.
            seconds_left: After which all ends, done or not; None if it does not.
        """
        self._done += done
        self._seconds_left = seconds_left
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._refresh()
            self._bar.update(done)
        elif self._lines and time.monotonic() >= self._next_line:
            self._line()

    def close(self) -> None:
        """Leave the bar as it is, or write the last line of what took long."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and time.monotonic() - self._started >= SECONDS_BEFORE_FIRST_LINE:
            self._line()
        self._bar, self._lines = None, False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refresh(self) -> None:
        self._bar.set_postfix_str(", ".join(filter(None, (self._count(), self._note))), refresh=False)

    def _count(self) -> str:
        of = "" if self._total is None else f"/{self._total:,}"
        return f"{int(self._done + 1e-6):,}{of} {self._unit}"

    def _line(self) -> None:
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        elapsed = time.monotonic() - self._started
        left = None
        if self._total and self._done:
            left = max(0.0, elapsed * (self._total - self._done) / self._done)
            left = left if self._seconds_left is None else min(left, self._seconds_left)
        times = f"{format_seconds(elapsed)} passed, {format_seconds(left)} left"
        self._say(f"{self._description}: " + ", ".join(filter(None, (self._count(), self._note, times))))
