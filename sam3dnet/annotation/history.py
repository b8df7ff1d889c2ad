"""What happened to a dataset that is annotated, one event after the other, and the state that follows from them.

The history is the truth: an event counts from the moment its line is whole, and the folders of the dataset follow it.
Nothing in it is ever changed; to go back is an event, too.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.schemas import Part, checked

FILE = "history.jsonl"
REMEDY = "restore the file from a copy; without it nothing can be gone back to, and sam3d_annotation begins anew"


class Dated(Part):
    """What all events have.

    Attributes:
        number: From 1, without gaps.
        at: When, in UTC.
    """

    number: int = 0
    at: str = ""


class Accepted(Dated):
    """A label map was accepted.

    Attributes:
        case: Its name.
        version: Of the case's label maps, from 1.
        digest: SHA-256 of the files of the version.
        image: SHA-256 of the image that it was drawn on, one channel after the other; None where that is not known, as
            in lines that were written before there was this.
        by: Who accepted it; a program says its name.
        model: Folder of the model that proposed the label map; None if it was drawn elsewhere.
        corrected: Whether anything was changed by hand.
        prompts: How many of each kind were given for each class.
        dice: Of what the model proposed with what was accepted, by class; None where both are empty.
        seconds: From the opening of the case on.
        held_back: Whether the case judges models, and trains none.
    """

    kind: Literal["accepted"] = "accepted"
    case: str
    version: int
    digest: str
    image: str | None = None
    by: str = ""
    model: str | None = None
    corrected: bool = True
    prompts: dict[str, dict[str, int]] = Field(default_factory=dict)
    dice: dict[str, float | None] = Field(default_factory=dict)
    seconds: float | None = None
    held_back: bool = False


class Found(Dated):
    """A label map was there that is not the state's: of before, edited in the folder, or an earlier version.

    Attributes:
        case, version, digest, image: As of `Accepted`; an earlier version goes with its own image, whatever lay there.
    """

    kind: Literal["found"] = "found"
    case: str
    version: int
    digest: str
    image: str | None = None


class Removed(Dated):
    """Somebody took an accepted case out of the dataset's folder."""

    kind: Literal["removed"] = "removed"
    case: str


class Skipped(Dated):
    """A case was put off: it is not proposed before all others."""

    kind: Literal["skipped"] = "skipped"
    case: str


class ModelChosen(Dated):
    """A model proposes label maps from now on.

    Attributes:
        folder: The model's.
        trained_on: Cases of this dataset that it has learned from, as far as its checkpoints say.
        pseudo_labelled: The same of images without labels.
    """

    kind: Literal["model"] = "model"
    folder: str
    trained_on: tuple[str, ...] = ()
    pseudo_labelled: tuple[str, ...] = ()


class TrainingBegun(Dated):
    """A training began.

    Attributes:
        training: Its number, which names its folder.
        cases: That it trains on.
        held_back: That judge it.
        start: Folder of the model that it starts from; None for none.
        minutes: It was given.
        pseudo_labelled: Names of images without labels that it trains on too, with what the model to start from has
            found in them.
    """

    kind: Literal["training"] = "training"
    training: int
    cases: tuple[str, ...]
    held_back: tuple[str, ...]
    start: str | None
    minutes: float
    pseudo_labelled: tuple[str, ...] = ()


class TrainingEnded(Dated):
    """A training ended.

    Attributes:
        training: Its number.
        folder: Of its model; None if there is none.
        used: Whether that model proposes label maps from now on.
        before, after: Mean agreement with the cases that were held back, of the model before and of this one (see
            `judging.agreement`); None where there is nothing to compare.
        why: A sentence.
        left_out: Cases that could not be trained on.
    """

    kind: Literal["trained"] = "trained"
    training: int
    folder: str | None
    used: bool
    before: float | None
    after: float | None
    why: str
    left_out: tuple[str, ...] = ()


class Returned(Dated):
    """Everything went back to what it was after an earlier event; 0 is before the first."""

    kind: Literal["returned"] = "returned"
    to: int


Event = Accepted | Found | Removed | Skipped | ModelChosen | TrainingBegun | TrainingEnded | Returned


Happened = TypeVar("Happened", bound=Dated)


class _Line(Part):
    event: Annotated[Event, Field(discriminator="kind")]


@dataclass(frozen=True)
class State:
    """What follows from the events so far.

    Attributes:
        labels: The event that gave each case its present label map; other cases of the dataset are not known here.
        skipped: Cases that were put off, the earliest first.
        held_back: The cases that judge models, sorted.
        model: Folder of the model that proposes label maps; None for none.
        chosen: The last model that somebody chose; the one that proposes may have been trained from it.
        trained_on: All cases that this model has learned from, itself or through those it started from.
        pseudo_labelled: The same of images without labels.
        training: What has begun and not ended; None for nothing.
        trainings: The highest number of one that has begun.
    """

    labels: dict[str, Accepted | Found] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    held_back: tuple[str, ...] = ()
    model: str | None = None
    chosen: str | None = None
    trained_on: frozenset[str] = frozenset()
    pseudo_labelled: frozenset[str] = frozenset()
    training: TrainingBegun | None = None
    trainings: int = 0

    @property
    def learned_from(self) -> frozenset[str]:
        """All cases that the model has learned from in any way, and those of a training that has begun."""
        begun = () if self.training is None else (*self.training.cases, *self.training.pseudo_labelled)
        return self.trained_on | self.pseudo_labelled | frozenset(begun)


class History:
    """The events of a dataset, in a file to which lines are added.

    Args:
        folder: That the file is in; made with the first event.

    Attributes:
        events: In their order.

    Raises:
        DatasetError: If the file is damaged. A last line that was never written to its end is left out.
    """

    def __init__(self, folder: Path):
        self.file = folder / FILE
        self.events: list[Event] = _read(self.file)
        self._size = _size_of(self.file)
        self._ended = False

    def add(self, event: Happened) -> Happened:
        """Add an event; when this returns it is on the disk.

        Returns:
            The event with its number and time.

        Raises:
            OSError: If it cannot be written; it has not happened then.
            DatasetError: If the file is not as this object knows it; it has not happened then either.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        dated = event.model_copy(update={"number": len(self.events) + 1, "at": now})
        if self._ended:
            raise DatasetError(f"{self.file.parent}: this project was closed; open it again to change anything")
        if (size := _size_of(self.file)) != self._size:
            raise DatasetError(
                f"{self.file}: expected {self._size} bytes, as it was left, came {size}; another program has changed "
                "or moved it, so nothing is added to it; end this and begin again"
            )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = dated.model_dump_json().encode() + b"\n"
        with self.file.open("ab", buffering=0) as file:  # what is left in a buffer would be written when it is closed
            try:
                _write_all(file, line)
                os.fsync(file.fileno())
            except OSError:  # the disk is full: half a line would spoil the next one
                os.truncate(self.file, self._size)
                raise
        self._size += len(line)
        self.events.append(dated)  # type: ignore[arg-type]
        return dated

    def end(self) -> None:
        """Add no more events: somebody else may from now on."""
        self._ended = True

    @property
    def state(self) -> State:
        """What follows from all events."""
        return state_after(self.events, len(self.events))


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _write_all(file: FileIO, line: bytes) -> None:
    """Write a line to the end: the system may take a part of it alone."""
    while line:
        line = line[file.write(line) :]


def in_words(event: Event) -> str:
    """Say what happened, for whoever chooses where to go back to."""
    if isinstance(event, Accepted):
        number = sum(sum(kinds.values()) for kinds in event.prompts.values())
        how = f"{number} prompt{'s' * (number > 1)}" if number else "corrected" if event.corrected else "as proposed"
        return f"{event.case} accepted, {how}" + (", held back to judge models" if event.held_back else "")
    if isinstance(event, Found):
        return f"{event.case}: a label map was there"
    if isinstance(event, Removed):
        return f"{event.case} was taken out of the folder"
    if isinstance(event, Skipped):
        return f"{event.case} put off"
    if isinstance(event, ModelChosen):
        return f"model {event.folder}"
    if isinstance(event, TrainingBegun):
        further = f" and {len(event.pseudo_labelled)} images without labels" if event.pseudo_labelled else ""
        return f"training {event.training} began, on {len(event.cases)} cases{further}, {event.minutes:g} minutes"
    if isinstance(event, TrainingEnded):
        return f"training {event.training}: {event.why}"
    return f"back to event {event.to}"


def state_after(events: Sequence[Event], number: int) -> State:
    """Give the state after the event of this number, 0 for that before the first.

    A label map that was there before its case was annotated has always been there.
    """
    trainings = max((event.training for event in events if isinstance(event, TrainingBegun)), default=0)
    return replace(states_until(events, number)[-1], trainings=trainings)


def states_until(events: Sequence[Event], number: int) -> list[State]:
    """Give the state before the first event and after each up to the one of this number, but for `trainings`."""
    known: dict[str, Accepted | Found] = {}
    for event in events:
        if isinstance(event, Accepted | Found) and event.version == 1:
            known.setdefault(event.case, event)
    from_before: dict[str, Accepted | Found] = {
        case: event for case, event in known.items() if isinstance(event, Found)
    }
    states = [State(labels=from_before)]
    for event in events[:number]:
        states.append(_after(states, event))
    return states


def _after(states: Sequence[State], event: Event) -> State:
    """Give the state after one more event."""
    now = states[-1]
    if isinstance(event, Accepted | Found):
        skipped = tuple(case for case in now.skipped if case != event.case)
        held_back = now.held_back  # whatever is edited in the folder goes on as it did
        if isinstance(event, Accepted) or event.case not in now.labels:
            others = {case for case in held_back if case != event.case}
            judges = event.held_back if isinstance(event, Accepted) else _judges_again(states, event.case)
            held_back = tuple(sorted(others | {event.case} if judges else others))
        return replace(now, labels={**now.labels, event.case: event}, skipped=skipped, held_back=held_back)
    if isinstance(event, Removed):
        labels = {case: one for case, one in now.labels.items() if case != event.case}
        return replace(now, labels=labels, held_back=tuple(case for case in now.held_back if case != event.case))
    if isinstance(event, Skipped):
        return replace(now, skipped=(*(case for case in now.skipped if case != event.case), event.case))
    if isinstance(event, ModelChosen):
        trained_on, images = frozenset(event.trained_on), frozenset(event.pseudo_labelled)
        return replace(now, model=event.folder, chosen=event.folder, trained_on=trained_on, pseudo_labelled=images)
    if isinstance(event, TrainingBegun):
        return replace(now, training=event)
    if isinstance(event, TrainingEnded):
        return _after_training(now, event)
    return replace(states[event.to], training=None)


def _judges_again(states: Sequence[State], case: str) -> bool:
    """Tell whether a case judged models when it last had a label map, and nothing has learned from it since."""
    last = next((state for state in reversed(states) if case in state.labels), None)
    return last is not None and case in last.held_back and case not in states[-1].learned_from


def _after_training(now: State, event: TrainingEnded) -> State:
    begun = now.training
    if not event.used or begun is None:
        return replace(now, training=None)
    goes_on = begun.start is not None
    learned_from = set(begun.cases) - set(event.left_out)
    return replace(
        now,
        model=event.folder,
        trained_on=(now.trained_on if goes_on else frozenset()) | learned_from,
        pseudo_labelled=(now.pseudo_labelled if goes_on else frozenset()) | set(begun.pseudo_labelled),
        training=None,
    )


def _read(file: Path) -> list[Event]:
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    last = content[len(whole) :]
    if last and _is_json(last):  # an editor leaves out the end of the last line
        with file.open("ab") as written:
            written.write(b"\n")
        whole = content + b"\n"
    elif last:  # the process was killed while it wrote: the event has not happened
        with file.open("r+b") as written:
            written.truncate(len(whole))
    events: list[Event] = []
    for line_number, line in enumerate(whole.splitlines(), 1):
        if not line.strip():
            continue
        place, number = f"{file}: line {line_number}", len(events) + 1
        event = checked(_Line, {"event": _parse(line, place)}, place, DatasetError, REMEDY).event
        if event.number != number or (isinstance(event, Returned) and not 0 <= event.to < number):
            raise DatasetError(f"{place}: expected event {number}, came {line.decode()[:80]}; {REMEDY}")
        _require_time(event.at, place)
        events.append(event)
    return events


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _require_time(at: str, place: str) -> None:
    try:
        has_zone = datetime.fromisoformat(at).tzinfo is not None
    except ValueError:
        has_zone = False
    if not has_zone:
        expected = "a time with its zone, such as 2026-11-28T09:00:00+00:00"
        raise DatasetError(f'{place}: "at": expected {expected}, came {at!r}; {REMEDY}')


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as problem:
        raise DatasetError(f"{place}: expected an object of JSON ({problem}); {REMEDY}") from None
