"""One thread for the network: whatever computes on the device waits for its turn here."""

import asyncio
import logging
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sam3dnet.errors import Sam3dError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Owner = TypeVar("Owner")


class NetworkWorker:
    """Runs one function after the other, in the order in which they came, and in between what can wait."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[object, ...]] | None]
        self._waiting = queue.SimpleQueue()
        self._unfinished = 0
        self._counting = threading.Lock()
        self._spare: deque[tuple[weakref.ref[Any], Callable[[Any], bool]]] = deque()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    async def run(self, what: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function when its turn comes, and give what it returns or raise what it raises.

        Args:
            what: Its name for the log, which tells how many are before it.
            function: Any.
            arguments: Of the function.
        """
        if self._unfinished:
            logger.info("%s waits for its turn, %d before it", what, self._unfinished)
        return await asyncio.wrap_future(self.submit(function, *arguments))

    def submit(self, function: Callable[..., Result], *arguments: object) -> "Future[Result]":
        """Have a function run when its turn comes."""
        future: Future[Result] = Future()
        with self._counting:
            self._unfinished += 1
        future.add_done_callback(self._finished)
        self._waiting.put((future, function, arguments))
        return future

    @property
    def unfinished(self) -> int:
        """How many functions run or wait."""
        return self._unfinished

    def in_spare_time(self, owner: Owner, step: Callable[[Owner], bool]) -> None:
        """Call a function while nothing waits, again for as long as it returns True and its owner is alive."""
        self._spare.append((weakref.ref(owner), step))
        self._waiting.put(None)  # wakes the thread

    def close(self) -> None:
        """Begin nothing more; what runs is finished."""
        self._spare.clear()
        while True:
            try:
                left = self._waiting.get_nowait()
            except queue.Empty:
                break
            if left is not None:
                left[0].cancel()
        self._waiting.put((_END, _nothing, ()))

    def _work(self) -> None:
        while True:
            try:
                task = self._waiting.get(block=not self._spare)
            except queue.Empty:
                self._use_spare_time()
                continue
            if task is None:
                continue
            if task[0] is _END:
                return
            _run(*task)
            del task  # it may hold an image

    def _use_spare_time(self) -> None:
        """Do one step of what came first."""
        try:
            owner, step = self._spare[0]
        except IndexError:
            return
        alive = owner()
        try:
            has_more = alive is not None and step(alive)
        except (Sam3dError, RuntimeError, MemoryError) as problem:  # the same comes up where it is asked for
            logger.debug("nothing is prepared any more: %s", problem)
            has_more = False
        if not has_more and self._spare and self._spare[0][0] is owner:
            self._spare.popleft()

    def _finished(self, _: object) -> None:
        with self._counting:
            self._unfinished -= 1


_END: Future[Any] = Future()


def _nothing() -> None:
    pass


def _run(future: "Future[Any]", function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    except BaseException as problem:
        future.set_exception(problem)
    else:
        future.set_result(result)
