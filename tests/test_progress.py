"""Progress: a bar on a terminal, lines elsewhere, nothing where nothing is wanted."""

import io
import logging
from collections.abc import Iterator

import pytest

from sam3dnet.preprocessing import progress
from sam3dnet.preprocessing.progress import Progress, format_seconds, hide_bars
from sam3dnet.training.progress import EpochProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands for the clock; every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress, "time", clock := Clock())
    return clock


@pytest.fixture
def hidden_bars() -> Iterator[None]:
    hide_bars(True)
    yield
    hide_bars(False)


def lines_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records]


def test_seconds_are_readable() -> None:
    assert [format_seconds(s) for s in (None, 59.6, 3661)] == ["?", "0:01:00", "1:01:01"]


def test_a_terminal_gets_a_bar_with_count_note_and_time_left() -> None:
    terminal = Terminal()
    with Progress(4, "verify", stream=terminal) as bar:
        for name in "abcd":
            bar.update(note=f"case {name}")
    last = terminal.getvalue().rstrip().rpartition("\r")[2]
    assert last.startswith("verify: 100%|")
    assert last.endswith("<00:00, 4/4 cases, case d]")


def test_elsewhere_there_are_lines_with_the_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress(40, "verify", stream=io.StringIO()) as bar:
        for _ in range(40):
            bar.update()
    lines = lines_of(caplog)
    assert lines[0] == "verify: 2/40 cases, 0:00:04 passed, 0:01:16 left"
    assert 2 < len(lines) < 6
    assert lines[-1].startswith("verify: 40/40 cases, ")
    assert lines[-1].endswith(" 0:00:00 left")


def test_what_ends_by_the_clock_has_no_more_time_left_than_that(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sam3dnet")
    with Progress(1000, "epoch 0", stream=io.StringIO()) as bar:
        for left in range(40, 0, -1):
            bar.update(seconds_left=left)
    first = lines_of(caplog)[0]
    hours, minutes, seconds = first.removesuffix(" left").rpartition(", ")[2].split(":")
    assert 3600 * int(hours) + 60 * int(minutes) + int(seconds) <= 40


def test_what_is_soon_over_needs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress(2, "verify", stream=io.StringIO()) as bar:
        bar.update(2)
    assert lines_of(caplog) == []


@pytest.mark.usefixtures("clock")
def test_nothing_is_shown_where_nothing_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    for stream in (terminal, io.StringIO()):
        with caplog.at_level(logging.INFO), Progress(9, "verify", show=False, stream=stream) as bar:
            bar.update(9)
    assert (terminal.getvalue(), lines_of(caplog)) == ("", [])


@pytest.mark.usefixtures("hidden_bars")
def test_quiet_hides_bars() -> None:
    with Progress(9, "verify", stream=(terminal := Terminal())) as bar:
        bar.update(9)
    assert terminal.getvalue() == ""


def test_an_unknown_total_has_no_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress(None, "download", "MiB", stream=io.StringIO()) as bar:
        bar.update(1.5)
        bar.update(1.5)
    assert lines_of(caplog)[0] == "download: 3 MiB, 0:00:04 passed, ? left"


@pytest.mark.usefixtures("clock")
def test_an_epoch_tells_loss_and_rate_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    epoch = EpochProgress(3, 20, io.StringIO())
    for _ in range(3):
        epoch.update(0.5, 61)
    epoch.close()
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("epoch 3: 2/20 iterations, loss 0.5000, ")
    assert "it/s, training ends in 0:01:01, " in line
