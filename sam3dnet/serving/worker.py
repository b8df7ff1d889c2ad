"""One thread for the network: whatever computes on the device waits for its turn here.

What takes long, such as the segmentation of an image, lets what is short go first, also in between: a click need not
wait until somebody else's large image is segmented.
"""

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from sam3dnet.errors import Sam3dError

logger = logging.getLogger(__name__)

LONGEST_END_S = 20.0

Result = TypeVar("Result")
Owner = TypeVar("Owner")


class ClosedError(Sam3dError):
    """The server ends."""


@dataclass(frozen=True, eq=False)
class _Task:
    """Something to be done."""

    future: "Future[Any]"
    function: Callable[..., Any]
    arguments: tuple[object, ...]


class NetworkWorker:
    """Runs functions one after the other, in their order but short ones first; what can wait comes in between.

    Attributes:
        around_short: Makes what is entered while something short runs, and left after it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._short: deque[_Task] = deque()
        self._long: deque[_Task] = deque()
        self._spare: deque[tuple[weakref.ref[Any], Callable[[Any], bool]]] = deque()
        self._unfinished = 0
        self.around_short: Callable[[], AbstractContextManager[None]] = nullcontext
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    async def run(
        self, what: str, function: Callable[..., Result], *arguments: object, is_long: bool = False
    ) -> Result:
        """Run a function when its turn comes, and give what it returns or raise what it raises.

        Args:
            what: Its name for the log, which tells how many are before it.
            function: Any; a long one calls `breathe` from time to time.
            arguments: Of the function.
            is_long: Whether others need not wait for its end.
        """
        ahead = self.ahead(is_long)
        if ahead:
            logger.info("%s waits for its turn, %d before it", what, ahead)
        return await asyncio.wrap_future(self.submit(function, *arguments, is_long=is_long))

    def submit(self, function: Callable[..., Result], *arguments: object, is_long: bool = False) -> "Future[Result]":
        """Have a function run when its turn comes."""
        task = _Task(Future(), function, arguments)
        task.future.add_done_callback(self._finished)
        with self._changed:
            self._unfinished += 1
            (self._long if is_long else self._short).append(task)
            self._changed.notify()
        return task.future

    def ahead(self, is_long: bool) -> int:
        """How many functions would be run before one that came now."""
        with self._changed:
            return self._unfinished if is_long else len(self._short)

    @property
    def unfinished(self) -> int:
        """How many functions run or wait."""
        return self._unfinished

    def breathe(self) -> None:
        """Run what is short and waits; for functions that take long, which call it in the thread of the network.

        Raises:
            ClosedError: If nobody waits for the end any more.
        """
        while True:
            with self._changed:
                if self._is_closed:
                    raise ClosedError("the server ends")
                task = self._short.popleft() if self._short else None
            if task is None:
                return
            with self.around_short():
                _run(task)

    def in_spare_time(self, owner: Owner, step: Callable[[Owner], bool]) -> None:
        """Call a function while nothing waits, again for as long as it returns True and its owner is alive."""
        with self._changed:
            self._spare.append((weakref.ref(owner), step))
            self._changed.notify()

    @property
    def has_spare_work(self) -> bool:
        """Whether there is something left for spare time."""
        return bool(self._spare)

    def close(self) -> None:
        """Begin nothing more, and wait for what runs to end, which for what takes long is soon."""
        with self._changed:
            self._is_closed = True
            left = [*self._short, *self._long]
            for waiting in (self._short, self._long, self._spare):
                waiting.clear()
            self._changed.notify()
        for task in left:
            task.future.cancel()
        self._thread.join(LONGEST_END_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._short or self._long or self._spare or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    return
                short = self._short.popleft() if self._short else None
                task = short or (self._long.popleft() if self._long else None)
            if short is not None:
                with self.around_short():
                    _run(short)
            elif task is not None:
                _run(task)
            else:
                self._use_spare_time()
            del task, short  # it may hold an image

    def _use_spare_time(self) -> None:
        """Do one step of what came first."""
        with self._changed:
            if not self._spare:
                return
            first = self._spare[0]
        owner, step = first
        alive = owner()
        try:
            has_more = alive is not None and step(alive)
        except (Sam3dError, RuntimeError, MemoryError) as problem:  # the same comes up where it is asked for
            logger.debug("nothing is prepared any more: %s", problem)
            has_more = False
        with self._changed:
            if not has_more and self._spare and self._spare[0] is first:
                self._spare.popleft()

    def _finished(self, _: object) -> None:
        with self._changed:
            self._unfinished -= 1


def _run(task: _Task) -> None:
    if not task.future.set_running_or_notify_cancel():
        return
    try:
        result = task.function(*task.arguments)
    except BaseException as problem:
        task.future.set_exception(problem)
        del task  # which the problem's traceback would keep, and the image with it
    else:
        task.future.set_result(result)
