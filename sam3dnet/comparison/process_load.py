"""Run a command and say what it cost: wall seconds, CPU seconds, peak memory of it and of all its children."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Load:
    """What a command and all its children cost. It is sampled, so a peak shorter than the interval can be missed.

    Attributes:
        wall_seconds: From start to end.
        cpu_seconds: Of all processes together.
        peak_mib: Largest sum of resident memory; pages that n processes share count 1/n each where the system tells.
        until_mark: The same until a mark (a file) appeared; None if it did not.
        returncode: Of the command.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    until_mark: "Load | None" = None
    returncode: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the values, rounded, for JSON."""
        return _rounded(asdict(self))


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, dict) else round(value, 2) if isinstance(value, float) else value
        for key, value in values.items()
    }


def process_tree(pid: int) -> list[psutil.Process]:
    """Return the process and all its descendants that live now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory_mib(process: psutil.Process) -> float:
    try:
        memory = process.memory_full_info()
        return float(getattr(memory, "pss", memory.uss)) / 2**20
    except psutil.Error:  # it has ended meanwhile, or is not ours to look at
        return 0.0


def _cpu_seconds(process: psutil.Process) -> float:
    """Return the time of a process and of those children that have ended."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.Error:
        return 0.0


def _watch(pid: int, load: Load, marked: Callable[[], bool], ended: threading.Event, interval_seconds: float) -> None:
    start = time.monotonic()
    while not ended.wait(interval_seconds):
        tree = process_tree(pid)
        load.wall_seconds = time.monotonic() - start
        load.cpu_seconds = max(load.cpu_seconds, sum(map(_cpu_seconds, tree)))
        load.peak_mib = max(load.peak_mib, sum(map(_memory_mib, tree)))
        if load.until_mark is None and marked():
            load.until_mark = replace(load)


def run_measured(
    command: Sequence[str],
    log_file: Path,
    environment: Mapping[str, str],
    mark_file: Path | None = None,
    interval_seconds: float = 1.0,
) -> Load:
    """Run a command to its end, its output going to a log.

    Args:
        command: Program and arguments.
        log_file: Written anew.
        environment: The whole environment of the command.
        mark_file: When this file appears, the values so far are kept apart.
        interval_seconds: How often the processes are looked at.

    Returns:
        The load; a failed command is told by its `returncode`.
    """
    load = Load()
    ended = threading.Event()
    start = time.monotonic()
    with open(log_file, "w") as log:
        process = psutil.Popen(list(command), stdout=log, stderr=log, env=dict(environment))
        marked = (lambda: mark_file.exists()) if mark_file else (lambda: False)
        watcher = threading.Thread(
            target=_watch, args=(process.pid, load, marked, ended, interval_seconds), daemon=True
        )
        watcher.start()
        try:
            load.returncode = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            ended.set()
            watcher.join()
    load.wall_seconds = time.monotonic() - start
    return load
