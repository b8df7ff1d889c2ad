"""Run checks one by one; whatever happens in one is a line of its own, and the others run all the same."""

import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO

import torch

from sam3dnet.check.registry import find_check
from sam3dnet.check.report import Report
from sam3dnet.check.result import CheckResult, Skipped, skipped
from sam3dnet.check.setting import Setting
from sam3dnet.preprocessing.progress import hide_bars

LAST_CHARACTERS = 4000  # of what was printed

logger = logging.getLogger(__name__)


def run_checks(names: Sequence[str], setting: Setting, report: Report) -> None:
    """Run checks by name and put their lines into a report, which is written after each."""
    for name in names:
        report.start(name)
        for line in run_check(name, setting):
            logger.info("%-8s %s (%.1f s)", line.status, line.label, line.seconds)
            report.add(line)
        release_memory()
    report.finish()


def run_check(name: str, setting: Setting) -> Iterator[CheckResult]:
    """Run one check, and give its lines as they come.

    One that raises gives a failed line with the reason, after the lines that it gave before; `Skipped` gives one that
    is skipped. What is printed and logged meanwhile is kept for the failed lines.
    """
    lines = _lines_of(name, setting)
    while True:
        start, output = time.perf_counter(), StringIO()
        with warnings.catch_warnings(record=True) as given, _captured(output):
            warnings.simplefilter("default")
            line = _next_line(name, lines)
        if line is None:
            return
        said = dict.fromkeys(f"{warning.category.__name__}: {warning.message}" for warning in given)
        shown = output.getvalue()[-LAST_CHARACTERS:] if line.status == "failed" else None
        yield replace(line, seconds=time.perf_counter() - start, warnings=tuple(said), output=shown)


def _lines_of(name: str, setting: Setting) -> Iterator[CheckResult]:
    yield from find_check(name)(setting)


def _next_line(name: str, lines: Iterator[CheckResult]) -> CheckResult | None:
    try:
        return next(lines, None)
    except Skipped as reason:
        return skipped(name, "", str(reason))
    except Exception as error:  # whatever it is, the other checks run
        return CheckResult(name, "", "failed", message=one_line(error), traceback=traceback.format_exc())


def one_line(error: Exception) -> str:
    """Give the kind of an error and the first line that says something."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def release_memory() -> None:
    """Give back what a card's allocator keeps, if the card still answers."""
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        logger.debug("the card does not answer any more: %s", error)


@contextmanager
def _captured(output: StringIO) -> Iterator[None]:
    """Write what is printed, and what sam3dnet logs, to a buffer alone; no bars."""
    package = logging.getLogger("sam3dnet")
    before = package.handlers, package.propagate, package.level
    package.handlers, package.propagate = [logging.StreamHandler(output)], False
    package.setLevel(logging.INFO)
    hide_bars(True)
    try:
        with redirect_stdout(output):
            yield
    finally:
        hide_bars(False)
        package.handlers, package.propagate = before[:2]
        package.setLevel(before[2])
