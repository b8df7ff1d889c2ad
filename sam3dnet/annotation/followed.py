"""The folders of a dataset that is annotated follow its history."""

import logging
from collections.abc import Callable, Sequence
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
        image_of: Finds an image by its name, wherever it is now.
        reader: Of the dataset.
    """

    def __init__(
        self,
        folder: Path,
        dataset: LabelledDataset,
        versions: LabelVersions,
        history: History,
        image_of: Callable[[str], Case],
        reader: DatasetReader,
    ):
        self._folder, self._dataset, self._versions, self._history = folder, dataset, versions, history
        self._image_of, self._reader = image_of, reader

    def follow(self, cases: Sequence[str] | None = None) -> None:
        """Have the dataset's folder hold what the history says, of some cases or all.

        A label map there that the history does not know is kept as a version first, which changes nothing of the state.
        """
        events = self._history.events
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
            else:
                files = self._versions.files(case, event.version)
                self._dataset.put(case, self._image_of(case).files, files, self._reader)
        write_json(self._folder / APPLIED, {"event": len(events)})

    def recover(self) -> None:
        """Finish what was cut off, or take notice of what was changed in the folders."""
        content = read_json_if_whole(self._folder / APPLIED) or {}
        if content.get("event") != len(self._history.events):
            self.follow()
            return
        there = self._dataset.cases()
        for case, event in self._history.state.labels.items():
            if case not in there:
                logger.warning("Warning: %s is no longer in %s; it waits again", case, self._dataset.folder)
                self._history.add(Removed(case=case))
            elif self.digest(case) not in (event.digest, None):
                logger.warning("Warning: the label map of %s was changed elsewhere; that is kept", case)
                self.keep(case)
        self.follow([])

    def keep(self, case: str) -> None:
        """Keep the label map that the folder holds as a version, if the history does not know it."""
        digest = self.digest(case)
        events = [event for event in self._history.events if isinstance(event, Accepted | Found) and event.case == case]
        if digest is not None and digest not in {event.digest for event in events}:
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
        events = (one for one in self._history.events if isinstance(one, Accepted | Found))
        return 1 + max((event.version for event in events if event.case == case), default=0)
