"""The page's requests about a dataset that is annotated: accept, skip, train, go back; and what goes on beside them."""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from sam3dnet.annotation.history import Accepted, Event, Found, TrainingEnded, in_words
from sam3dnet.annotation.judging import Proposal
from sam3dnet.annotation.project import BY_CONFIDENCE, AnnotationProject, Order
from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.images import Case
from sam3dnet.model import Model
from sam3dnet.serving import segment
from sam3dnet.serving.case_files import PROMPTS_ENDING
from sam3dnet.serving.casework import CaseWork
from sam3dnet.serving.hall import Hall, Images

logger = logging.getLogger(__name__)

WATCH_S = 2.0
ASIDE = "set_aside"  # in the folder of drafts
OF_WRITING = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, getattr(errno, "EDQUOT", errno.ENOSPC))
MOST_EVENTS = 50  # of the history, in the page

Result = TypeVar("Result")


class ProjectImages:
    """What the page shows of a project: the images of its folder, and those that wait elsewhere.

    Args:
        folder: The images of the folder.
        project: The project.
    """

    def __init__(self, folder: Images, project: AnnotationProject):
        self._folder, self._project = folder, project

    def cases(self) -> list[Case]:
        """List the images that are there now, by name."""
        found = dict(self._project.images_waiting())
        with suppress(DatasetError):  # the folder has no image any more
            found |= {case.name: case for case in self._folder.cases()}
        return [found[name] for name in sorted(found)]

    def recognise(self, image_CZYX: npt.NDArray[Any]) -> segment.Found | None:
        """Find the image of the folder of which a viewer's array is a channel; None if there is none."""
        return self._folder.recognise(image_CZYX)


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
        if hall.images is not None:
            hall.images = ProjectImages(hall.images, project)
        self._show_newest()

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
            Sam3dError: If it does not fit, or cannot be written.
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
            self._show(work.case.name)
            self._train_if_it_is_time()
            return self._status()

        return await self._change(accept)

    async def skip(self, work: CaseWork) -> dict[str, Any]:
        """Put a case off.

        Raises:
            Sam3dError: If there is no such image any more, or it cannot be written.
        """
        await self._change(lambda: self._project.skip(work.case.name))
        return await self.status()

    async def train(self) -> dict[str, Any]:
        """Begin a training now, unless one runs.

        Raises:
            Sam3dError: If there is nothing to train on, or it cannot be written.
        """

        def train() -> dict[str, Any]:
            if not self._project.learning.trains:
                self._project.begin_training(self._minutes)
            return self._status()

        return await self._change(train)

    async def go_back(self, number: int) -> dict[str, Any]:
        """Make all as it was after an event, the model too.

        What was being done on cases that have another label map then, or none, is set aside; their windows open anew.

        Raises:
            Sam3dError: If there is no such event, its model is no more, or it cannot be written.
        """
        project = self._project
        before = project.state.labels

        def go_back() -> None:
            try:
                project.go_back(number)
            finally:
                for case in _changed(before, project.state.labels):
                    if self._set_aside(case):
                        self._show(case)

        try:
            await self._change(go_back)
        finally:
            self._release(_changed(before, project.state.labels))
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
        told = ""
        while True:
            try:
                if await self._change(self._look) is not None:
                    await self._exchange()
                told = ""
            except Sam3dError as problem:
                if str(problem) != told:  # such as a disk that stays full
                    logger.error("%s", problem)
                told = str(problem)
            except Exception:
                logger.exception("the annotation is not watched for a moment")
            await asyncio.sleep(WATCH_S)

    def _look(self) -> TrainingEnded | None:
        """Conclude what has ended, go on with what was cut off, and else find out what comes next."""
        project = self._project
        project.catch_up()
        ended = project.conclude()
        if ended is None and not project.learning.is_running:
            if project.state.training is not None:
                project.begin_training(self._minutes)
            elif self._order in BY_CONFIDENCE and project.unranked():
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

    def _train_if_it_is_time(self) -> None:
        """Begin a training that is due; if that fails the next case is another occasion."""
        if not self._is_time() or self._project.state.training is not None:
            return
        try:
            self._project.begin_training(self._minutes)
        except (Sam3dError, OSError, RuntimeError) as problem:
            logger.error("no training could begin: %s", problem)

    def _is_time(self) -> bool:
        """Tell whether a training is due; one case is enough for the first model, which lessens all further work."""
        first = self._project.state.model is None
        return self._every > 0 and self._project.accepted_since_training >= (1 if first else self._every)

    # What the page shows of a case that is labelled

    def _show_newest(self) -> None:
        """Have those labelled cases open with their label maps whose drafts are older, or which have none."""
        images = self._hall.images
        names = set() if images is None else {case.name for case in images.cases()}
        for case, event in self._project.state.labels.items():
            drafts = self._drafts_of(case)
            since = datetime.fromisoformat(event.at).timestamp()
            is_older = not any(draft.stat().st_mtime >= since for draft in drafts)
            if case in names and is_older and self._set_aside(case):
                self._show(case)

    def _show(self, case: str) -> None:
        """Have a case open with the label map that it has now; all that led to it is with its versions."""
        try:
            for draft in self._drafts_of(case):
                draft.unlink()
            self._project.copy_label(case, self.drafts)
        except (DatasetError, OSError, RuntimeError) as problem:
            logger.warning("Warning: %s opens as the model segments it: %s", case, problem)

    def _set_aside(self, case: str) -> bool:
        """Keep what was done on a case, and is not to be shown any more; tell whether that could be done."""
        aside = self.drafts / ASIDE / f"{len(self._project.history.events):04d}"
        try:
            for draft in self._drafts_of(case):
                aside.mkdir(parents=True, exist_ok=True)
                os.replace(draft, aside / draft.name)
        except OSError as problem:
            logger.warning("Warning: what was done on %s cannot be set aside, and is shown: %s", case, problem)
            return False
        return True

    def _drafts_of(self, case: str) -> list[Path]:
        endings = (self._hall.model.loaded.dataset_json["file_ending"], PROMPTS_ENDING)
        return [draft for ending in endings if (draft := self.drafts / f"{case}{ending}").is_file()]

    def _release(self, cases: Collection[str]) -> None:
        """End the sessions of cases, whose windows then open them anew."""
        for lease in self._hall.leases.all():
            if isinstance(lease.work, CaseWork) and lease.work.case.name in cases:
                self._hall.leases.release(lease.token)

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

    async def _change(self, what: Callable[[], Result]) -> Result:
        """Have the project do something that reads and writes files.

        Raises:
            DatasetError: If it cannot, beside what it raises itself.
        """
        try:
            return await self._ask(what)
        except (OSError, RuntimeError) as problem:  # ITK raises its own
            logger.debug("details", exc_info=True)
            reason = getattr(problem, "strerror", None) or problem
            place = getattr(problem, "filename", None) or self._project.folder.parent
            is_full = getattr(problem, "errno", None) in OF_WRITING
            said = f"cannot be written ({reason}); make room" if is_full else f"{reason}; mend that"
            then = (
                "the history has it, and the dataset follows by itself then"
                if self._project.is_behind
                else "then do it again"
            )
            raise DatasetError(f"{place}: {said}, {then}") from problem

    async def _ask(self, what: Callable[[], Result]) -> Result:
        async with self._turn:
            return await asyncio.to_thread(what)


def _changed(before: Mapping[str, Accepted | Found], after: Mapping[str, Accepted | Found]) -> list[str]:
    """Name the cases that have another label map than before, or one of the two times none."""
    versions = [{case: event.version for case, event in labels.items()} for labels in (before, after)]
    return sorted(case for case in {*before, *after} if versions[0].get(case) != versions[1].get(case))


def _clicks(events: Sequence[Event]) -> list[int]:
    """Count what each accepted case took, in their order."""
    return [
        sum(sum(kinds.values()) for kinds in event.prompts.values()) for event in events if isinstance(event, Accepted)
    ]
