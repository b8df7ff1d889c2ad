"""The folders of a dataset that is annotated follow its history."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sam3dnet.annotation.history import Accepted, Found, History, Removed, Returned
from sam3dnet.annotation.labelled import LabelledDataset, LabelVersions, digest_of, label_files
from sam3dnet.inference.images import Case
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader

APPLIED = "applied.json"  # the last event that the dataset's folders follow

logger = logging.getLogger(__name__)


class FollowedFolders:
    """The dataset's images and label maps.

    Args:
        folder: Of the annotation.
        dataset: The dataset.
        versions: Of its label maps.
        history: Is followed.
        image_of: Finds an image by its name, wherever it is now; None if it is no more.
        reader: Of the dataset.

    Attributes:
        are_behind: Whether something that happened could not be followed to its end; the next time begins with it.
    """

    def __init__(
        self,
        folder: Path,
        dataset: LabelledDataset,
        versions: LabelVersions,
        history: History,
        image_of: Callable[[str], Case | None],
        reader: DatasetReader,
    ):
        self._folder, self._dataset, self._versions, self._history = folder, dataset, versions, history
        self._image_of, self._reader = image_of, reader
        self.are_behind = False

    def follow(self, cases: Sequence[str] | None = None) -> None:
        """Have the dataset's folder hold what the history says, of some cases or all.

        A label map there that the history does not know is kept as a version first, which changes nothing of the state.
        A case whose image is no more is taken for removed.

        Raises:
            DatasetError, OSError, RuntimeError: If something cannot be written; `are_behind` says so until it is.
        """
        events = self._history.events
        cases = None if self.are_behind else cases
        self.are_behind = True
        if cases is None:
            cases = sorted({event.case for event in events if isinstance(event, Accepted | Found)})
        state, number = self._history.state, len(events)
        for case in cases:
            self.keep(case)
        if len(events) > number:
            self._history.add(Returned(to=number))
        for case in cases:
            event = state.labels.get(case)
            if event is None:
                self._dataset.take_out(case, self._folder / "images", self._reader)
                continue
            image = self._image_of(case)
            if image is None:
                logger.warning("Warning: the image of %s is no more, so its label map stays with its versions", case)
                self._history.add(Removed(case=case))
            else:
                self._dataset.put(case, image.files, self._versions.files(case, event.version), self._reader)
        write_json(self._folder / APPLIED, {"event": len(events)})
        self.are_behind = False

    def catch_up(self) -> None:
        """Follow what could not be followed before; errors as of `follow`."""
        if self.are_behind:
            self.follow()

    def recover(self) -> None:
        """Finish what was cut off, or take notice of what was changed in the folders."""
        content = read_json_if_whole(self._folder / APPLIED) or {}
        if content.get("event") != len(self._history.events):
            self.follow()
            return
        there = self._dataset.labelled()
        for case in self._history.state.labels:
            if case in there:
                continue
            if self._dataset.is_out_of_reach(case):
                logger.warning("Warning: files of %s cannot be reached now; no training sees it meanwhile", case)
                continue
            logger.warning("Warning: %s is no longer whole in %s; it waits again", case, self._dataset.folder)
            self._history.add(Removed(case=case))
        self.take_notice(there)
        self.follow([])

    def take_notice(self, cases: Iterable[str]) -> None:
        """Take label maps for those of their cases that somebody has put into the folder; where it is not behind."""
        labels = self._history.state.labels
        for case in labels.keys() & {*cases}:
            digest = self.digest(case)
            if digest in (labels[case].digest, None):
                continue
            logger.warning("Warning: the label map of %s was changed elsewhere; that is kept", case)
            version = self._versions_of(case).get(digest)
            if version is None:
                self.find(case, self._dataset.label(case))
            else:
                self._history.add(Found(case=case, version=version, digest=digest))

    def keep(self, case: str) -> None:
        """Keep the label map that the folder holds as a version, if the history does not know it."""
        digest = self.digest(case)
        if digest is not None and digest not in self._versions_of(case):
            self.find(case, self._dataset.label(case))

    def find(self, case: str, label: Path) -> None:
        """Take a label map into the versions that the history did not know."""
        version = self.next_version(case)
        self._history.add(Found(case=case, version=version, digest=self._versions.take(label, case, version)))

    def digest(self, case: str) -> str | None:
        """Give the digest of the label map that the dataset's folder holds; None for none."""
        label = self._dataset.label(case)
        return digest_of(label_files(label, self._reader)) if label.is_file() else None

    def next_version(self, case: str) -> int:
        """Give the number of the next version of a case's label map."""
        return 1 + max(self._versions_of(case).values(), default=0)

    def _versions_of(self, case: str) -> dict[str | None, int]:
        """Give the versions of a case's label map by their digests, the newest of several."""
        events = (one for one in self._history.events if isinstance(one, Accepted | Found))
        return {event.digest: event.version for event in events if event.case == case}
