"""The model that segments becomes the one that the history of a dataset names, whenever that is another one."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.annotation.first_model import FirstModel
from sam3dnet.errors import Sam3dError
from sam3dnet.inference.economy import is_out_of_memory
from sam3dnet.model import Model
from sam3dnet.serving.hall import Hall

FIRST_PAUSE_S = 10.0  # after a model could not be loaded; twice as long after each further time
LONGEST_PAUSE_S = 600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """A model could not be loaded.

    Attributes:
        folder: Of it.
        why: A sentence.
        pause_s: Until it is tried again.
        at: When it failed, by the clock of the exchange.
    """

    folder: str | None
    why: str
    pause_s: float
    at: float


class ModelExchange:
    """Has the model segment that is wanted.

    Args:
        hall: Serves.
        folder: Of the model that it serves now; None for what stands in for one.
        wanted: Says the folder of the one that it should serve; None for what stands in for one.
        load: Loads a model folder.
        stand_in: Makes what stands in for a model.
        clock: Gives the time in seconds.

    Attributes:
        folder: Of the model that segments now; None for what stands in for one.
    """

    def __init__(
        self,
        hall: Hall,
        folder: str | None,
        wanted: Callable[[], str | None],
        load: Callable[[Path], Model],
        stand_in: Callable[[], Model | FirstModel],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = folder
        self._hall, self._wanted, self._load, self._stand_in, self._clock = hall, wanted, load, stand_in, clock
        self._turn = asyncio.Lock()
        self._failure: _Failure | None = None

    @property
    def problem(self) -> str | None:
        """Why the model that is wanted does not segment; None if it does, or will as soon as it is loaded."""
        failure, wanted = self._failure, self._wanted()
        if failure is None or failure.folder != wanted or wanted == self.folder:
            return None
        what = "there was no model, and nothing stands in for one" if wanted is None else f"{wanted} cannot be loaded"
        return f"{what}: {failure.why}"

    def try_again(self) -> None:
        """Do not wait until a model that could not be loaded is tried again."""
        self._failure = None

    async def follow(self) -> None:
        """Have the model that is wanted segment from now on; the one before does where it cannot be loaded.

        One that could not be loaded is tried again after a pause, if this is called then.
        """
        async with self._turn:
            while (wanted := self._wanted()) != self.folder and not self._rests(wanted):
                await self._follow(wanted)

    def _rests(self, wanted: str | None) -> bool:
        failure = self._failure
        return failure is not None and failure.folder == wanted and self._clock() < failure.at + failure.pause_s

    async def _follow(self, wanted: str | None) -> None:
        try:
            model = await self._hall.worker.run("the new model", self._make, wanted, is_long=True)
            if self._wanted() != wanted:
                return  # all has gone back while it was loaded
            self._hall.use(model)
        except Exception as problem:
            self._note(wanted, problem)
        else:
            self.folder, self._failure = wanted, None
            logger.info("from now on %s proposes", wanted or "what stands in for a model")
            return
        self._hall.release_cached()  # no longer inside of the exception, which holds what was loaded

    def _make(self, folder: str | None) -> Model | FirstModel:
        return self._stand_in() if folder is None else self._load(Path(folder))

    def _note(self, folder: str | None, problem: Exception) -> None:
        """Remember that a model cannot be loaded, and tell the log what it does not know yet."""
        why = _why(problem)
        before = self._failure if self._failure is not None and self._failure.folder == folder else None
        if before is None or before.why != why:
            logger.error("%s cannot be loaded: %s", folder or "what stands in for a model", why)
            logger.debug("details", exc_info=problem)
        pause_s = FIRST_PAUSE_S if before is None else min(2 * before.pause_s, LONGEST_PAUSE_S)
        self._failure = _Failure(folder, why, pause_s, self._clock())


def _why(problem: Exception) -> str:
    if is_out_of_memory(problem):
        return "the memory does not suffice for it"
    if isinstance(problem, Sam3dError):
        return str(problem)
    return f"{type(problem).__name__}: {problem}"
