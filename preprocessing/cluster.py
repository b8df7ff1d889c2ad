"""The workers of a Dask cluster that runs already: they take the cases in place of processes of this machine.

They read and write the same files as this machine, under the same paths. A case whose worker dies goes to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.workers import Item, Outcome, Result, Run

SECONDS_TO_WAIT = 10  # for a scheduler, then for its first worker
_PACKAGE = "sam3dnet"


def cluster_at(scheduler: str | None, num_processes: int | None) -> AbstractContextManager[DaskCluster | None]:
    """Connect to a cluster, or to none without --scheduler.

    Raises:
        DatasetError: If --workers is given too, or, on entering, no scheduler answers at the address.
    """
    if scheduler is None:
        return nullcontext()
    if num_processes is not None:
        raise DatasetError("--workers: not with --scheduler, whose workers do the work")
    return open_cluster(scheduler)


@contextmanager
def open_cluster(address: str) -> Iterator[DaskCluster]:
    """Connect to the scheduler of a running Dask cluster.

    Args:
        address: Such as "tcp://10.0.0.5:8786".

    Raises:
        DatasetError: If Dask is not installed, or no scheduler answers at the address.
    """
    try:
        from distributed import Client
    except ImportError:
        raise DatasetError("a cluster needs Dask; type: pip install sam3dnet[cluster]") from None
    try:
        # Asked first, in a thread for there may be a loop in this one: a Client that fails to connect stays around
        # half made, and when it is collected at a bad moment the next one waits for it forever.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _require_answer(address)).result()
        client = Client(address, timeout=SECONDS_TO_WAIT, set_as_default=False)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DatasetError(
            f"no Dask scheduler answers at {address!r} within {SECONDS_TO_WAIT} s ({reason}); give the address "
            "that `dask scheduler` prints, such as tcp://10.0.0.5:8786"
        ) from error
    with client:
        yield DaskCluster(client)


async def _require_answer(address: str) -> None:
    from distributed import Security
    from distributed.core import rpc

    security = Security().get_connection_args("client")
    async with rpc(address, timeout=SECONDS_TO_WAIT, connection_args=security) as server:
        identity = await asyncio.wait_for(server.identity(), SECONDS_TO_WAIT)
    if identity.get("type") != "Scheduler":
        raise ValueError(f"a {identity.get('type')} answers")


class DaskCluster:
    """Runs a function over items on the workers of a Dask cluster, which have one thread each (see `Workers`).

    Args:
        client: A `distributed.Client`.
    """

    def __init__(self, client: Any):
        self._client = client

    def run(
        self, function: Callable[[Item], Result], items: Sequence[Item], folders: Sequence[Path] = ()
    ) -> Run[Item, Result]:
        """Yield the outcomes; an item that is alone to blame for the death of several workers costs itself alone.

        Raises:
            DatasetError: If there is no worker, one of them cannot do the work, or the scheduler ends.
        """
        from distributed import CancelledError, as_completed

        needs = _Needs(version(_PACKAGE), tuple(folders))
        self._require_fit(needs)
        futures = self._client.map(partial(_call, function, needs), list(items), pure=False)
        open_items = dict(zip(futures, enumerate(items), strict=True))
        try:
            for future in as_completed(list(open_items), loop=self._client.loop):
                index, item = open_items.pop(future)
                outcome: Outcome[Item, Result] = _outcome(item, future)
                future.release()  # or it would be computed again when its worker dies later
                yield index, outcome
        except CancelledError as error:
            done = len(items) - len(open_items) - 1
            raise DatasetError(
                f"the Dask scheduler was lost after {done} of {len(items)} cases; start it and run again (finished "
                "cases are kept)"
            ) from error
        finally:
            self._give_up(list(open_items))

    def call_on_each(self, function: Callable[[], object]) -> None:
        """Call a quick function on every worker, also on one that is at work; errors there count for nothing."""
        if self._client.status == "running":
            self._client.run(function, on_error="ignore")

    def _give_up(self, futures: list[Any]) -> None:
        """Have nobody begin what is left; what is at work ends, for a thread cannot be stopped."""
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)

    def _require_fit(self, needs: _Needs) -> None:
        from distributed import TimeoutError as DaskTimeoutError

        try:
            self._client.wait_for_workers(1, timeout=SECONDS_TO_WAIT)
        except DaskTimeoutError:
            message = "the Dask scheduler has no workers; start some with `dask worker ADDRESS --nthreads 1`"
            raise DatasetError(message) from None
        answers = {"the scheduler": self._ask_scheduler(needs)}
        workers = self._client.run(_unmet, needs, on_error="return")
        answers |= {f"worker {address}": workers[address] for address in sorted(workers)}
        unfit = [
            f"  {who}: {_unable(answer, needs) if isinstance(answer, Exception) else answer}"
            for who, answer in answers.items()
            if answer is not None
        ]
        if unfit:
            raise DatasetError("\n".join(["the Dask cluster cannot do the work:", *unfit]))

    def _ask_scheduler(self, needs: _Needs) -> str | Exception | None:
        """Ask it too, for it reads the calls that it passes on."""
        try:
            return self._client.run_on_scheduler(_other_version, needs)
        except Exception as error:  # whatever prevents it from answering
            return error


@dataclass(frozen=True)
class _Needs:
    """What a worker must have: the same version of this package, and the folders of the work."""

    version: str
    folders: tuple[Path, ...]


def _other_version(needs: _Needs) -> str | None:
    own = version(_PACKAGE)
    return None if own == needs.version else f"has {_PACKAGE} {own}, not {needs.version}; install that there"


def _unmet(needs: _Needs, dask_worker: Any) -> str | None:
    """Say what this worker lacks."""
    threads = dask_worker.state.nthreads
    if other := _other_version(needs):
        return other
    if threads != 1:
        return f"has {threads} threads; start it with --nthreads 1, and several on a machine with --nworkers"
    missing = [str(folder) for folder in needs.folders if not folder.is_dir()]
    if missing:
        return f"sees no folder {' and no '.join(missing)}; put the data where all machines see them, under one path"
    return None


def _unable(error: Exception, needs: _Needs) -> str:
    return f"cannot run {_PACKAGE} ({type(error).__name__}: {error}); install version {needs.version} there"


def _call(function: Callable[[Item], Result], needs: _Needs, item: Item) -> Result:
    """Call the function on a worker, which may have come after the others were asked what they have."""
    from distributed import get_worker

    unmet = _unmet(needs, get_worker())
    if unmet is not None:
        raise DatasetError(f"worker {get_worker().address} {unmet}")
    return function(item)


def _outcome(item: Item, future: Any) -> Outcome[Item, Result]:
    from distributed import CancelledError, KilledWorker

    try:
        return Outcome(item, future.result(), None)
    except CancelledError:
        raise
    except KilledWorker:
        message = "several workers died one after the other that held it, most likely because memory ran out"
        return Outcome(item, None, DatasetError(message))
    except Exception as error:
        return Outcome(item, None, error)
