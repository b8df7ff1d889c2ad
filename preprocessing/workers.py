"""Run one function over many items, here or on a cluster, with a progress bar; none hangs, none hides another."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from pebble import ProcessExpired, ProcessPool

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cores import cores_of_job
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

_KILLED = (
    "its process was killed, alone too, most likely because memory ran out, or the file crashed its reader; look at "
    "the file, or run again on a machine with more memory"
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

    An item that kills its process is tried once more when all others are done, alone: it may have lacked memory.

    Attributes:
        num_processes: Calls at the same time; 0 makes them in this process.
    """

    num_processes: int

    def run(
        self, function: Callable[[Item], Result], items: Sequence[Item], folders: Sequence[Path] = ()
    ) -> "Run[Item, Result]":
        """Yield the outcomes, see `Workers`; all folders are those of this machine."""
        if self.num_processes <= 0:
            yield from _run_here(function, items)
            return
        killed: dict[int, Item] = {}
        with closing(_run_in_pool(function, dict(enumerate(items)), self.num_processes)) as run:
            for index, outcome in run:
                if isinstance(outcome.error, ProcessExpired):
                    killed[index] = outcome.item
                else:
                    yield index, outcome
        with closing(_run_in_pool(function, killed, 1)) as run:
            for index, outcome in run:
                is_killed = isinstance(outcome.error, ProcessExpired)
                yield index, replace(outcome, error=DatasetError(_KILLED)) if is_killed else outcome


def default_num_processes() -> int:
    """One process a core that this process may use, 8 at most."""
    return min(8, cores_of_job())


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers | int,
    description: str,
    progress: bool = True,
    folders: Sequence[Path] = (),
    unit: str = "cases",
) -> list[Outcome[Item, Result]]:
    """Call a function for each item; an item that fails costs itself alone.

    Args:
        function: Importable by name, as are its items and results, for it runs in other processes.
        items: One call each.
        workers: Who makes the calls; a number stands for so many processes of this machine, 0 for this process.
        description: Stands before the progress bar.
        progress: Show a progress bar.
        folders: Which the function reads or writes; all workers must see them.
        unit: What an item is called, in the plural.

    Returns:
        The outcomes, in the order of the items.

    Raises:
        DatasetError: If a cluster cannot do the work.
    """
    if not items:
        return []
    pool = LocalPool(workers) if isinstance(workers, int) else workers
    outcomes: dict[int, Outcome[Item, Result]] = {}
    with (
        Progress(len(items), description, unit, show=progress) as bar,
        closing(pool.run(function, items, folders)) as run,
    ):
        for index, outcome in run:
            outcomes[index] = outcome
            bar.update()
    return [outcomes[index] for index in range(len(items))]


def _run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> "Run[Item, Result]":
    for index, item in enumerate(items):
        try:
            outcome = Outcome(item, function(item), None)
        except Exception as error:
            outcome = Outcome(item, None, _logged(error))
        yield index, outcome


def _run_in_pool(
    function: Callable[[Item], Result], items: Mapping[int, Item], num_processes: int
) -> "Run[Item, Result]":
    if not items:
        return
    workers = min(num_processes, len(items))
    threads = max(1, default_num_processes() // workers)
    # Spawned, since a fork of a process with threads, such as torch's, may hang.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPool(workers, context=spawn, initializer=_limit_threads, initargs=(threads,))
    try:
        indices: dict[Future[Result], int] = {
            pool.schedule(function, args=[item]): index for index, item in items.items()
        }
        for future in as_completed(indices):
            error = future.exception()
            index = indices[future]
            yield index, Outcome(items[index], None if error else future.result(), _logged(error) if error else None)
    finally:  # nobody waits for what is still at work: Ctrl-C ends it at once
        pool.stop()
        pool.join()


def _logged(error: BaseException) -> Any:
    logger.debug("a case failed", exc_info=error)
    return error


def _limit_threads(threads: int) -> None:
    """Let the processes share the cores, and die of Ctrl-C without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
