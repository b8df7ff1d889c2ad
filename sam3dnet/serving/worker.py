"""One thread for the network: whatever computes on the device waits for its turn here."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class NetworkWorker:
    """Runs one function after the other, in the order in which they came."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._unfinished = 0

    async def run(self, what: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function when its turn comes, and give what it returns or raise what it raises.

        Args:
            what: Its name for the log, which tells how many are before it.
            function: Any.
            arguments: Of the function.
        """
        if self._unfinished:
            logger.info("%s waits for its turn, %d before it", what, self._unfinished)
        self._unfinished += 1
        running = self._thread.submit(function, *arguments)
        running.add_done_callback(self._finished)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Begin nothing more; what runs is finished."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _finished(self, _: object) -> None:
        self._unfinished -= 1
