"""Run a command and say what it cost: wall seconds, CPU seconds, peak memory of it and of all its children."""

import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PAGE_BYTES = resource.getpagesize()


@dataclass
class Load:
    """What a command cost. Memory is sampled, so a peak shorter than the sampling interval can be missed.

    `peak_mib` is the command's own peak of resident memory (the kernel's count), `peak_tree_mib` the largest sum over
    the command and its children. The values with `until_mark` end when the mark (a file) appeared.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    peak_tree_mib: float = 0.0
    wall_seconds_until_mark: float | None = None
    cpu_seconds_until_mark: float | None = None
    peak_mib_until_mark: float | None = None
    peak_tree_mib_until_mark: float | None = None
    returncode: int = 0

    def as_dict(self) -> dict:
        """Return the values, rounded, for JSON."""
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def mark(self) -> None:
        """Keep the values of now as those until the mark."""
        self.wall_seconds_until_mark = self.wall_seconds
        self.cpu_seconds_until_mark = self.cpu_seconds
        self.peak_mib_until_mark = self.peak_mib
        self.peak_tree_mib_until_mark = self.peak_tree_mib


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # the process has ended meanwhile
            parents[int(entry.name)] = int(fields[1])
    return parents


def process_tree(pid: int) -> list[int]:
    """Return the process and all its descendants that live now."""
    parents = _parents()
    tree = [pid] if pid in parents else []
    for member in tree:  # grows while it is walked
        tree.extend(child for child, parent in parents.items() if parent == member)
    return tree


def _own_memory_mib(pid: int) -> float:
    """Return the proportional set size, which counts pages shared by n processes as 1/n each."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def _peak_resident_mib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")) / 1024


def _cpu_seconds(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended meanwhile; its parent accounts for it
        ticks += sum(int(n) for n in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _watch(pid: int, load: Load, marked: Callable[[], bool], ended: threading.Event, interval_seconds: float) -> None:
    start = time.monotonic()
    while not ended.wait(interval_seconds):
        tree = process_tree(pid)
        load.wall_seconds = time.monotonic() - start
        load.cpu_seconds = max(load.cpu_seconds, _cpu_seconds(tree))
        load.peak_mib = max(load.peak_mib, _peak_resident_mib(pid))
        load.peak_tree_mib = max(load.peak_tree_mib, sum(map(_own_memory_mib, tree)))
        if load.wall_seconds_until_mark is None and marked():
            load.mark()


def run_measured(
    command: Sequence[str],
    log_file: Path,
    environment: Mapping[str, str],
    mark_file: Path | None = None,
    interval_seconds: float = 1.0,
) -> Load:
    """Run `command` to its end, its output going to `log_file`.

    Args:
        command: Program and arguments.
        log_file: Written anew.
        environment: The whole environment of the command.
        mark_file: When this file appears, the values so far are kept as those `until_mark`.
        interval_seconds: How often memory is looked at.

    Returns:
        The load; a failed command is told by its `returncode`.
    """
    load = Load()
    ended = threading.Event()
    start = time.monotonic()
    with open(log_file, "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=dict(environment))
        marked = (lambda: mark_file.exists()) if mark_file else (lambda: False)
        watcher = threading.Thread(
            target=_watch, args=(process.pid, load, marked, ended, interval_seconds), daemon=True
        )
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        finally:
            ended.set()
            watcher.join()
    process.returncode = load.returncode = os.waitstatus_to_exitcode(status)
    load.wall_seconds = time.monotonic() - start
    load.cpu_seconds = usage.ru_utime + usage.ru_stime
    return load
