"""A process beside this one that gives way: of low priority, stopped while something is more urgent, and never alone.

It ends with the process that started it, however that ends: what it reads from comes to its end. Where it could not
notice, since it was stopped just then, the next one to start finds it by its record and ends it.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole

NICENESS = 10
LONGEST_END_S = 20.0
LINES_TOLD = 12  # of its log, where it failed


class BackgroundProcess:
    """A Python module that runs beside this process.

    Args:
        module: What runs, with `give_way` called first.
        arguments: Of its command line.
        log: File for what it prints; begun anew.
        record: File by which a process that was left is found; see `end_left`.
        environment: Variables, beside those of this process.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, record: Path, environment: dict[str, str] | None = None
    ):
        self.log, self._record = log, record
        self._urgent, self._changing = 0, threading.Lock()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for this process, which ends the other
            )
        with suppress(psutil.NoSuchProcess):
            created = psutil.Process(self._process.pid).create_time()
            write_json(record, {"pid": self._process.pid, "created": created})

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end, and give its exit status; None if that takes longer."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it rest until the block ends; blocks may overlap."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changing:
            before, self._urgent = self._urgent, self._urgent + change
            if bool(before) == bool(self._urgent):
                return
            for process in _with_children(self._process.pid):
                with suppress(psutil.Error):
                    process.suspend() if self._urgent else process.resume()

    def end(self) -> None:
        """End it at once."""
        _end(_with_children(self._process.pid))
        self._process.wait(LONGEST_END_S)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._record.unlink(missing_ok=True)

    def last_lines(self) -> str:
        """Give the last lines that it printed."""
        return last_lines(self.log)


def last_lines(log: Path) -> str:
    """Give the last lines of a file; nothing where there is none."""
    with suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_TOLD:])
    return ""


def end_left(record: Path) -> None:
    """End a process that was left by one that is no more; the record says which."""
    content = read_json_if_whole(record) or {}
    with suppress(psutil.Error, KeyError, TypeError, ValueError):
        process = psutil.Process(int(content["pid"]))
        if process.create_time() == content["created"]:
            _end(_with_children(process.pid))
    record.unlink(missing_ok=True)


def give_way() -> None:
    """Take a low priority, and end when the process that started this one has ended; for the module that runs."""
    with suppress(psutil.Error, OSError):
        psutil.Process().nice(NICENESS if os.name == "posix" else psutil.BELOW_NORMAL_PRIORITY_CLASS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    with suppress(OSError, ValueError):
        while os.read(sys.stdin.fileno(), 1):  # not by sys.stdin, whose lock processes that fork would inherit
            pass
    for process in reversed(_with_children(os.getpid())[1:]):
        with suppress(psutil.Error):
            process.kill()
    os._exit(1)


def _with_children(pid: int) -> list[psutil.Process]:
    """Give a process and all that it has started; nothing where it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, LONGEST_END_S)
