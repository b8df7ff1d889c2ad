"""Run one function over many items, here or on a cluster, with a progress bar; none hangs, none hides another."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.progress import Progress

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Run: TypeAlias = "Generator[tuple[int, Outcome[Item, Result]], None, None]"

# Read when numpy, torch and ITK are imported.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    # nnU-Net's resampling asks for four threads, whatever the other variables say.
    "OMP_THREAD_LIMIT",
)


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What came of one item: a result, or the error that it raised."""

    item: Item
    result: Result | None
    error: Exception | None


class Workers(Protocol):
    """What runs a function over items: processes of this machine, or a cluster (`DaskCluster`)."""

    def run(
        self, function: Callable[[Item], Result], items: Sequence[Item], folders: Sequence[Path] = ()
    ) -> "Run[Item, Result]":
        """Yield the index and the outcome of each item as soon as it is there; closing it gives up what is left.

        Args:
            function: Importable by name, as are its items and results.
            items: One call each.
            folders: Which the function reads or writes; absolute.

        Raises:
            DatasetError: If the work as a whole cannot go on.
        """
        ...


@dataclass(frozen=True)
class LocalPool:
    """Processes of this machine, made for each run.

    Attributes:
        num_processes: Calls at the same time; 0 makes them in this process.
        retry_alone_when_killed: When a process is killed, go on with one item at a time; an item that kills its
            process even then costs itself alone.
    """

    num_processes: int
    retry_alone_when_killed: bool = False

    def run(
        self, function: Callable[[Item], Result], items: Sequence[Item], folders: Sequence[Path] = ()
    ) -> "Run[Item, Result]":
        """Yield the outcomes, see `Workers`; all folders are those of this machine.

        Raises:
            DatasetError: If a process was killed, most often for want of memory, and `retry_alone_when_killed` is not
                set.
        """
        if self.num_processes <= 0:
            yield from _run_here(function, items)
            return
        unfinished = dict(enumerate(items))
        try:
            with closing(_run_in_pool(function, items, self.num_processes)) as run:
                for index, outcome in run:
                    del unfinished[index]
                    yield index, outcome
        except BrokenProcessPool as error:
            if not self.retry_alone_when_killed:
                raise DatasetError(_killed(len(items) - len(unfinished), len(items), self.num_processes)) from error
            yield from _run_each_alone(function, unfinished)


def default_num_processes() -> int:
    """One process a core that this process may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers | int,
    description: str,
    progress: bool = True,
    retry_alone_when_killed: bool = False,
    folders: Sequence[Path] = (),
) -> list[Outcome[Item, Result]]:
    """Call a function for each item; an item that fails costs itself alone.

    Args:
        function: Importable by name, as are its items and results, for it runs in other processes.
        items: One call each.
        workers: Who makes the calls; a number stands for so many processes of this machine, 0 for this process.
        description: Stands before the progress bar.
        progress: Show a progress bar.
        retry_alone_when_killed: Of these processes, see `LocalPool`.
        folders: Which the function reads or writes; all workers must see them.

    Returns:
        The outcomes, in the order of the items.

    Raises:
        DatasetError: If a process was killed, most often for want of memory, and `retry_alone_when_killed` is not set,
            or a cluster cannot do the work.
    """
    if not items:
        return []
    pool = LocalPool(workers, retry_alone_when_killed) if isinstance(workers, int) else workers
    outcomes: dict[int, Outcome[Item, Result]] = {}
    with Progress(len(items), description, show=progress) as bar, closing(pool.run(function, items, folders)) as run:
        for index, outcome in run:
            outcomes[index] = outcome
            bar.update()
    return [outcomes[index] for index in range(len(items))]


def _killed(finished: int, total: int, num_processes: int) -> str:
    return (
        f"a worker process was killed after {finished} of {total} cases, most likely because memory ran out with "
        f"{min(num_processes, total)} at work; run again with fewer processes (finished cases are kept)"
    )


def _run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> "Run[Item, Result]":
    for index, item in enumerate(items):
        try:
            outcome = Outcome(item, function(item), None)
        except Exception as error:
            outcome = Outcome(item, None, _logged(error))
        yield index, outcome


def _run_in_pool(function: Callable[[Item], Result], items: Sequence[Item], num_processes: int) -> "Run[Item, Result]":
    pool = _make_pool(min(num_processes, len(items)))
    try:
        indices: dict[Future[Result], int] = {pool.submit(function, item): i for i, item in enumerate(items)}
        for future in as_completed(indices):
            yield indices[future], _outcome(items[indices[future]], future)
    except BaseException:
        _kill_workers(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_each_alone(function: Callable[[Item], Result], items: Mapping[int, Item]) -> "Run[Item, Result]":
    """Run one item after the other in a process that is replaced when an item kills it."""
    pool: ProcessPoolExecutor | None = None
    try:
        for index, item in items.items():
            pool = pool or _make_pool(1)
            try:
                outcome = _outcome(item, pool.submit(function, item))
            except BrokenProcessPool:
                message = "its process was killed, most likely because memory ran out, or the file crashed its reader"
                outcome = Outcome(item, None, DatasetError(message))
                pool.shutdown()
                pool = None
            yield index, outcome
    except BaseException:
        if pool is not None:
            _kill_workers(pool)
        raise
    finally:
        if pool is not None:
            pool.shutdown()


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    """Wait for no result that nobody wants any more: Ctrl-C ends the work at once."""
    for process in list((pool._processes or {}).values()):
        process.kill()


def _make_pool(workers: int) -> ProcessPoolExecutor:
    """Make a pool of spawned processes; a fork of a process with threads, such as torch's, may hang."""
    threads = max(1, default_num_processes() // workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _limit_threads, (threads,))


def _outcome(item: Item, future: "Future[Result]") -> Outcome[Item, Result]:
    try:
        return Outcome(item, future.result(), None)
    except BrokenProcessPool:
        raise
    except Exception as error:
        return Outcome(item, None, _logged(error))


def _logged(error: Exception) -> Exception:
    logger.debug("a case failed", exc_info=error)
    return error


def _limit_threads(threads: int) -> None:
    """Let the processes share the cores, and die of Ctrl-C without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
