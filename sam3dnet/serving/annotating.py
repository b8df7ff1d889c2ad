"""The page's requests about a dataset that is annotated: accept, skip, train, go back; and what goes on beside them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy.typing as npt

from sam3dnet.annotation.history import (
    Accepted,
    Event,
    Found,
    ModelChosen,
    Returned,
    TrainingEnded,
    in_words,
)
from sam3dnet.annotation.judging import Proposal
from sam3dnet.annotation.labelled import LabelledDataset
from sam3dnet.annotation.project import BY_CONFIDENCE, AnnotationProject, Order
from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.images import Case
from sam3dnet.model import Model
from sam3dnet.serving import segment
from sam3dnet.serving.case_files import MAKE_ROOM, Step, remedy_of
from sam3dnet.serving.casework import CaseWork
from sam3dnet.serving.drafts import Drafts
from sam3dnet.serving.exchange import ModelExchange
from sam3dnet.serving.hall import Hall, Images

logger = logging.getLogger(__name__)

WATCH_S = 2.0
MOST_EVENTS = 50  # of the history, told with each answer; all are where they are asked for

Result = TypeVar("Result")


class ProjectImages:
    """What the page shows of a project: the images of its folder, and those that wait elsewhere.

    A case to which the history gives a label map has the image that this lies on, which the dataset holds; in the
    folder there may be another one of this name since.

    Args:
        folder: The images of the folder.
        project: The project.
    """

    def __init__(self, folder: Images, project: AnnotationProject):
        self._folder, self._project = folder, project

    def cases(self) -> list[Case]:
        """List the images that are there now, by name."""
        found = dict(self._project.images_waiting())
        found |= {case.name: case for case in self._folder.cases()}
        there = LabelledDataset(self._project.folder.parent).labelled()
        found |= {name: Case(name, there[name].images) for name in self._project.state.labels if name in there}
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

    Attributes:
        opening: Held while a case is opened, and while all goes back, so that nobody opens what is set aside.
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
        self._project, self._hall = project, hall
        self._every, self._minutes, self._order = every, minutes, order
        self._images_taught = False  # a training by the images that wait alone was begun, or could not be
        self._turn = asyncio.Lock()  # the project does one thing at a time
        self.opening = asyncio.Lock()
        self._accepted: WeakKeyDictionary[CaseWork, tuple[tuple[Step, ...], int]] = WeakKeyDictionary()
        self._drafts = Drafts(project, hall.model.loaded.dataset_json["file_ending"])
        folder, begun_with = project.state.model, hall.model
        stand_in = project.first_model if folder is not None else lambda: begun_with
        self._exchange = ModelExchange(hall, folder, lambda: project.state.model, load, stand_in)
        hall.worker.around_short = project.learning.paused
        if hall.images is not None:
            hall.images = ProjectImages(hall.images, project)
        self._drafts.set_aside_outdated()

    @property
    def drafts(self) -> Path:
        """Folder for what is saved before it is accepted."""
        return self._drafts.folder

    async def status(self) -> dict[str, Any]:
        """Say how things stand."""
        return await self._ask(self._status)

    async def history(self) -> list[dict[str, Any]]:
        """Tell all events, the last first."""
        return await asyncio.to_thread(lambda: _told(self._project.history.events))

    async def prepare(self, work: CaseWork) -> None:
        """Have a case that is labelled open with its label map, or what was drawn on it; warn where that cannot be.

        Raises:
            GoneError: If another window has it meanwhile.
        """

        def prepare() -> list[str]:
            work.files.require_open()
            return self._drafts.prepare(work.case.name, work.files)

        work.warnings += await self._ask(prepare)

    async def accept(self, work: CaseWork) -> dict[str, Any]:
        """Take what is saved of a case into the dataset, and train if it is time to; say how things stand then.

        Raises:
            GoneError: If all went back meanwhile, and it is set aside.
            Sam3dError: If it does not fit, would replace what was not shown, or cannot be written.
        """
        proposed = await self._hall.worker.run(f"{work.case.name}: proposal", work.automatic_labels)
        proposal = Proposal(proposed, work.model, work.since, work.image)

        def accept() -> dict[str, Any]:
            project = self._project
            work.files.require_open()
            self._drafts.require_shown(work.case.name)
            if self._is_accepted(work):  # a second request, as of a double click
                self._drafts.show(work.case.name)
                return self._status()
            done, number = work.done, len(project.history.events)
            try:
                project.accept(
                    work.case.name,
                    work.files.labels,
                    prompts=work.said_counts,
                    proposal=proposal,
                    prompts_file=work.files.prompts,
                )
            finally:
                if any(isinstance(event, Accepted) for event in project.history.events[number:]):
                    self._drafts.show(work.case.name)  # also where the dataset follows later
                    self._accepted[work] = done, project.state.labels[work.case.name].version
            self._train_if_it_is_time()
            return self._status()

        return await self._change(accept)

    def _is_accepted(self, work: CaseWork) -> bool:
        """Tell whether a case has the label map that was accepted of this work, to which nothing was done since."""
        label = self._project.state.labels.get(work.case.name)
        return label is not None and self._accepted.get(work) == (work.done, label.version)

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
            Sam3dError: If there is no such event, or it cannot be written.
        """
        project = self._project
        changed: list[str] = []

        def go_back() -> None:
            before = project.state.labels
            try:
                project.go_back(number)
            finally:
                changed.extend(_changed(before, project.state.labels))
                for work in self._sessions_of(changed).values():
                    work.files.close()
                for case in changed:
                    self._drafts.set_aside(case)

        try:
            async with self.opening:
                try:
                    await self._change(go_back)
                finally:
                    for token in self._sessions_of(changed):  # whose windows then open them anew
                        self._hall.leases.release(token, aside=True)
        finally:  # others open images while a model is loaded
            self._exchange.try_again()
            await self._exchange.follow()
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
                await self._change(self._look)
                told = ""
            except Sam3dError as problem:
                if str(problem) != told:  # such as a disk that stays full
                    logger.error("%s", problem)
                told = str(problem)
            except Exception:
                logger.exception("the annotation is not watched for a moment")
            await self._exchange.follow()
            await asyncio.sleep(WATCH_S)

    def _look(self) -> None:
        """Conclude what has ended, go on with what was cut off, and else find out what comes next."""
        project = self._project
        project.catch_up()
        if project.conclude() is None and not project.learning.is_running:
            if project.state.training is not None:
                project.begin_training(self._minutes)
            elif (self._every > 0 or self._order in BY_CONFIDENCE) and project.unranked():
                project.rank(wait=False)
            elif self._every > 0 and not self._images_taught and project.images_teach():
                self._images_taught = True  # if it fails the next case is another occasion
                self._begin_training()

    def _begin_training(self) -> None:
        try:
            self._project.begin_training(self._minutes)
        except (Sam3dError, OSError, RuntimeError) as problem:
            logger.error("no training could begin: %s", problem)

    def _train_if_it_is_time(self) -> None:
        """Begin a training that is due; if that fails the next case is another occasion."""
        if self._is_time() and self._project.state.training is None:
            self._begin_training()

    def _is_time(self) -> bool:
        """Tell whether a training is due; one case is enough for the first model, which lessens all further work."""
        first = self._project.state.model is None
        return self._every > 0 and self._project.accepted_since_training >= (1 if first else self._every)

    def _sessions_of(self, cases: Collection[str]) -> dict[str, CaseWork]:
        """Give what windows do on cases, by the tokens of their sessions; also of those that have closed, and save."""
        leases = self._hall.leases
        works = {lease.token: lease.work for lease in (*leases.leaving(), *leases.all())}
        return {token: work for token, work in works.items() if isinstance(work, CaseWork) and work.case.name in cases}

    @property
    def model(self) -> str | None:
        """Folder of the model that segments now."""
        return self._exchange.folder

    def _status(self) -> dict[str, Any]:
        project, leases = self._project, self._hall.leases.all()
        state, events = project.state, project.history.events
        ended = _last_training(events)
        return {
            "waiting": project.waiting(self._order),
            "labelled": project.images_labelled(),
            "open": sorted({work.case.name for one in leases if isinstance(work := one.work, CaseWork)}),
            "skipped": list(state.skipped),
            "held_back": len(state.held_back),
            "since_training": project.accepted_since_training,
            "every": self._every,
            "training": None if state.training is None else state.training.training,
            "minutes": self._minutes,
            "ranking": project.learning.is_running and not project.learning.trains,
            "last": None if ended is None else _outcome(ended),
            "model": {"folder": self.model, "training": _training_of(self.model, events)},
            "problem": self._exchange.problem,
            "clicks": _clicks(events),
            "events": len(events),
            "history": _told(events[-MOST_EVENTS:]),
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
            remedy = remedy_of(problem)
            said = f"cannot be written ({reason}); {remedy}" if remedy == MAKE_ROOM else f"{reason}; {remedy}"
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


def _told(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Say what happened, the last first."""
    return [{"number": event.number, "at": event.at, "text": in_words(event)} for event in reversed(events)]


def _last_training(events: Sequence[Event]) -> TrainingEnded | None:
    """Find the last training that ended, of what was not gone back from, since a model was chosen."""
    last: list[TrainingEnded | None] = [None]
    for event in events:
        if isinstance(event, TrainingEnded):
            last.append(event)
        elif isinstance(event, Returned):
            last.append(last[event.to])
        else:
            last.append(None if isinstance(event, ModelChosen) else last[-1])
    return last[-1]


def _outcome(ended: TrainingEnded) -> dict[str, Any]:
    """Say what came of a training, which has failed if it has no model that could be compared."""
    has_failed = not ended.used and ended.after is None
    return {"training": ended.training, "used": ended.used, "failed": has_failed, "why": ended.why}


def _training_of(model: str | None, events: Sequence[Event]) -> int | None:
    """Give the number of the training that made a model; None if none did."""
    made = (event for event in events if isinstance(event, TrainingEnded) and event.used)
    return next((event.training for event in made if event.folder == model), None)
