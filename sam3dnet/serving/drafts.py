"""What is saved of the work on cases of a dataset that is annotated, before it is accepted."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from sam3dnet.annotation.history import Accepted, Event, Found, Removed, Returned, state_after
from sam3dnet.annotation.labelled import digest_of, label_files
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import DatasetError
from sam3dnet.serving.case_files import PROMPTS_ENDING, CaseFiles

ASIDE = "set_aside"  # in the folder of drafts
CANNOT = (DatasetError, OSError, RuntimeError)  # show a label map; ITK raises its own

logger = logging.getLogger(__name__)


class Drafts:
    """The label maps and prompts that are being worked on, in a folder of their own.

    Args:
        project: What is annotated; it is spoken to by one at a time.
        ending: Of label maps.

    Attributes:
        folder: Theirs.
    """

    def __init__(self, project: AnnotationProject, ending: str):
        self._project, self._ending = project, ending
        self.folder = project.folder / "drafts"
        self._shown: dict[str, str | None] = {}  # digests of the label maps that were; None where none was

    def prepare(self, case: str, files: CaseFiles) -> list[str]:
        """Have a labelled case open with its label map, unless something was drawn on that.

        What was drawn on another one, on another image of the name, or while it could not be shown, is set aside.

        Args:
            case: Its name.
            files: Of the work on it.

        Returns:
            What its user should know.
        """
        told = self._without_another_image(case, files)
        try:
            self._project.take_notice(case)
        except CANNOT as problem:  # the history knows it later
            logger.warning("Warning: the label map of %s is not looked for in the dataset: %s", case, problem)
        why = self._try(case, self._prepare)
        if why is not None:
            told.append(
                f"{case} has a label map that cannot be shown, so what the model proposes is, or what was drawn on "
                f"that, and Accept does not replace it: {why}"
            )
        return told

    def _without_another_image(self, case: str, files: CaseFiles) -> list[str]:
        """Set aside what was drawn on an image that another one has replaced since; say so."""
        try:
            files.note_image()
        except OSError:  # opening it tells
            return []
        if not (files.is_of_another_image() or files.has_another_shape()):
            return []
        self.set_aside(case)
        if self._has_draft(case):  # opening it tells
            return []
        said = f"{case}: the image was replaced since it was worked on; what was drawn is in {self.folder / ASIDE}"
        logger.warning("Warning: %s", said)
        return [said]

    def show(self, case: str) -> str | None:
        """Have a case open with the label map that it has now; all that led to it is with its versions.

        Returns:
            Why it cannot; None if all is well.
        """
        return self._try(case, self._show)

    def require_shown(self, case: str) -> None:
        """See that a case has no label map but the one that was shown, since nobody must replace one unseen.

        Raises:
            DatasetError: If it has.
            OSError, RuntimeError: If the history or the dataset cannot be written.
        """
        self._project.take_notice(case)
        try:
            self._project.require_drawable(case)
            present = self._present(case)
        except CANNOT as problem:
            raise DatasetError(
                f"{case}: its label map cannot be shown here, so it is not replaced either ({problem}); mend that, or "
                "move the label map out of the dataset and start again to draw it anew"
            ) from problem
        if present is not None and present != self._shown.get(case):
            raise DatasetError(
                f"{case}: the label map that it has now was not shown here, so it is not replaced; open the image "
                "again, which shows it, and sets aside what was drawn"
            )

    def _prepare(self, case: str) -> None:
        present = self._present(case)
        if self._has_draft(case):
            self._project.require_drawable(case)
            if self._shown.get(case, present) == present:
                self._shown[case] = present
                return
            self.set_aside(case)
            if self._has_draft(case):
                raise DatasetError(f"what was drawn before is in the way in {self.folder}; move that away")
        if present is not None:
            self._show(case)
        self._shown[case] = present

    def _show(self, case: str) -> None:
        for draft in self._of(case):
            draft.unlink()
        self._project.copy_label(case, self.folder)
        self._shown[case] = self._present(case)

    def _try(self, case: str, show: Callable[[str], None]) -> str | None:
        """Show a case; where that cannot be, say why, and remember that it was not."""
        try:
            show(case)
        except CANNOT as problem:
            logger.warning("Warning: %s opens without its label map: %s", case, problem)
            self._shown[case] = None
            return str(problem)
        return None

    def _present(self, case: str) -> str | None:
        """Give the digest of the label map that a case has now; None for none."""
        event = self._project.state.labels.get(case)
        if event is not None:
            return event.digest
        label = self._project.label_of(case)
        return None if label is None else digest_of(label_files(label, self._project.reader))

    def _has_draft(self, case: str) -> bool:
        return (self.folder / f"{case}{self._ending}").is_file()

    def set_aside(self, case: str) -> None:
        """Keep what was done on a case, and is not to be shown any more; where that cannot be it is shown."""
        drafts = self._of(case)
        try:
            if drafts:
                aside = self._free_folder(drafts)
                aside.mkdir(parents=True, exist_ok=True)
                for draft in drafts:
                    os.replace(draft, aside / draft.name)
        except OSError as problem:
            logger.warning("Warning: what was done on %s cannot be set aside, and is shown: %s", case, problem)

    def set_aside_outdated(self) -> None:
        """Set aside what is older than the label map of its case, or than the loss of one."""
        endings = (self._ending, PROMPTS_ENDING)
        there = [file for file in self.folder.glob("*") if file.is_file()]
        cases = {file.name.removesuffix(end) for file in there for end in endings if file.name.endswith(end)}
        since = changed_at(self._project.history.events)
        for case in sorted(cases):
            self._set_aside_if_older(case, since)
            if self._has_draft(case):
                with suppress(OSError):
                    self._shown[case] = self._present(case)

    def _set_aside_if_older(self, case: str, since: Mapping[str, float]) -> None:
        label, drafts = self._project.label_of(case), self._of(case)
        with suppress(OSError):  # it is shown
            moment = since[case] if case in since else None if label is None else label.stat().st_mtime
            if drafts and moment is not None and all(draft.stat().st_mtime < moment for draft in drafts):
                self.set_aside(case)

    def _of(self, case: str) -> list[Path]:
        endings = (self._ending, PROMPTS_ENDING)
        return [draft for ending in endings if (draft := self.folder / f"{case}{ending}").is_file()]

    def _free_folder(self, drafts: Sequence[Path]) -> Path:
        """Give a folder, named by the last event, in which nothing of a case was set aside before."""
        number = f"{len(self._project.history.events):04d}"
        names = chain([number], (f"{number}_{another}" for another in count(2)))
        folders = (self.folder / ASIDE / name for name in names)
        return next(one for one in folders if not any((one / draft.name).exists() for draft in drafts))


def changed_at(events: Sequence[Event]) -> dict[str, float]:
    """Say when each case got the label map that it has now, or lost the one that it had; also by going back.

    Returns:
        Seconds since the epoch; nothing of a case whose label map has always been there.
    """
    versions: dict[str, int | None] = {case: event.version for case, event in state_after(events, 0).labels.items()}
    targets = {event.to for event in events if isinstance(event, Returned)}
    kept = {0: dict(versions)}
    changed: dict[str, float] = {}
    for event in events:
        after = _versions_after(event, versions, kept)
        moment = datetime.fromisoformat(event.at).timestamp()
        changed |= {case: moment for case, version in after.items() if versions.get(case) != version}
        versions |= after
        if event.number in targets:
            kept[event.number] = dict(versions)
    return changed


def _versions_after(
    event: Event, versions: Mapping[str, int | None], kept: Mapping[int, Mapping[str, int | None]]
) -> dict[str, int | None]:
    """Give the version that each case of an event has after it, None for no label map.

    Args:
        event: The event.
        versions: Before it.
        kept: After the events that are gone back to.
    """
    if isinstance(event, Accepted | Found):
        return {event.case: event.version}
    if isinstance(event, Removed):
        return {event.case: None}
    if isinstance(event, Returned):
        then = kept[event.to]
        return {case: then.get(case) for case in {*versions, *then}}
    return {}
