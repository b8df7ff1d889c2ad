"""The page's requests about a dataset that is annotated: accept, skip, train, go back; and what goes on beside them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sam3dnet.annotation.history import Accepted, Event, TrainingEnded, in_words
from sam3dnet.annotation.judging import Proposal
from sam3dnet.annotation.project import AnnotationProject, Order
from sam3dnet.errors import Sam3dError
from sam3dnet.model import Model
from sam3dnet.serving.casework import CaseWork
from sam3dnet.serving.hall import Hall

logger = logging.getLogger(__name__)

WATCH_S = 2.0
MOST_EVENTS = 50  # of the history, in the page

Result = TypeVar("Result")


class Annotating:
    """A project in the page.

    Args:
        project: What is annotated; this is the only one to speak to it from now on.
        hall: Serves the project's images with its model, which is exchanged when another one has been trained.
        load: Loads a model folder.
        every: Accepted cases after which a training begins by itself; 0 for never.
        minutes: Of each training.
        order: In which images come.
    """

    def __init__(
        self,
        project: AnnotationProject,
        hall: Hall,
        load: Callable[[Path], Model],
        *,
        every: int = 5,
        minutes: float = 3.0,
        order: Order = "unsure",
    ):
        self._project, self._hall, self._load = project, hall, load
        self._every, self._minutes, self._order = every, minutes, order
        self._turn = asyncio.Lock()  # the project does one thing at a time
        self._folder = project.state.model
        hall.worker.around_short = project.learning.paused

    @property
    def drafts(self) -> Path:
        """Folder for what is saved before it is accepted."""
        return self._project.folder / "drafts"

    async def status(self) -> dict[str, Any]:
        """Say how things stand."""
        return await self._ask(self._status)

    async def accept(self, work: CaseWork) -> dict[str, Any]:
        """Take what is saved of a case into the dataset, and train if it is time to; say how things stand then.

        Raises:
            Sam3dError: If it does not fit.
        """
        proposed = await self._hall.worker.run(f"{work.case.name}: proposal", work.automatic_labels)
        proposal = Proposal(proposed, work.model, work.since)

        def accept() -> dict[str, Any]:
            project = self._project
            project.accept(
                work.case.name,
                work.files.labels,
                prompts=work.said_counts,
                proposal=proposal,
                prompts_file=work.files.prompts,
            )
            if self._is_time() and project.state.training is None:
                project.begin_training(self._minutes)
            return self._status()

        return await self._ask(accept)

    async def skip(self, work: CaseWork) -> dict[str, Any]:
        """Put a case off."""
        await self._ask(lambda: self._project.skip(work.case.name))
        return await self.status()

    async def train(self) -> dict[str, Any]:
        """Begin a training now, unless one runs.

        Raises:
            Sam3dError: If there is nothing to train on.
        """

        def train() -> dict[str, Any]:
            if not self._project.learning.trains:
                self._project.begin_training(self._minutes)
            return self._status()

        return await self._ask(train)

    async def go_back(self, number: int) -> dict[str, Any]:
        """Make all as it was after an event, the model too.

        Raises:
            Sam3dError: If there is no such event, or its model is no more.
        """
        await self._ask(lambda: self._project.go_back(number))
        await self._exchange()
        return await self.status()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Use new models as they come, until the end of the block."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await asyncio.to_thread(self._project.close)

    async def _watch(self) -> None:
        while True:
            try:
                if await self._ask(self._look) is not None:
                    await self._exchange()
            except Sam3dError as problem:
                logger.error("%s", problem)
            except Exception:
                logger.exception("the annotation is not watched for a moment")
            await asyncio.sleep(WATCH_S)

    def _look(self) -> TrainingEnded | None:
        """Conclude what has ended, go on with what was cut off, and else find out what comes next."""
        project = self._project
        ended = project.conclude()
        if ended is None and not project.learning.is_running:
            if project.state.training is not None:
                project.begin_training(self._minutes)
            elif self._order == "unsure" and project.unranked():
                project.rank(wait=False)
        return ended

    async def _exchange(self) -> None:
        """Have the project's model segment from now on."""
        folder = self._project.state.model
        if folder is None or folder == self._folder:
            return
        model = await self._hall.worker.run("the new model", self._load, Path(folder), is_long=True)
        self._hall.use(model)
        self._folder = folder
        logger.info("from now on %s proposes", folder)

    def _is_time(self) -> bool:
        """Tell whether a training is due; one case is enough for the first model, which lessens all further work."""
        first = self._project.state.model is None
        return self._every > 0 and self._project.accepted_since_training >= (1 if first else self._every)

    @property
    def model(self) -> str | None:
        """Folder of the model that segments now."""
        return self._folder

    def _status(self) -> dict[str, Any]:
        project = self._project
        state, events = project.state, project.history.events
        ended = next((event for event in reversed(events) if isinstance(event, TrainingEnded)), None)
        return {
            "waiting": project.waiting(self._order),
            "labelled": sorted(state.labels),
            "skipped": list(state.skipped),
            "held_back": len(state.held_back),
            "since_training": project.accepted_since_training,
            "every": self._every,
            "training": None if state.training is None else state.training.training,
            "minutes": self._minutes,
            "ranking": project.learning.is_running and not project.learning.trains,
            "last": None if ended is None else {"training": ended.training, "used": ended.used, "why": ended.why},
            "clicks": _clicks(events),
            "history": [
                {"number": event.number, "at": event.at, "text": in_words(event)}
                for event in reversed(events[-MOST_EVENTS:])
            ],
        }

    async def _ask(self, what: Callable[[], Result]) -> Result:
        async with self._turn:
            return await asyncio.to_thread(what)


def _clicks(events: Sequence[Event]) -> list[int]:
    """Count what each accepted case took, in their order."""
    return [
        sum(sum(kinds.values()) for kinds in event.prompts.values()) for event in events if isinstance(event, Accepted)
    ]
