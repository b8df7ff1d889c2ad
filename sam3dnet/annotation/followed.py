"""The folders of a dataset that is annotated follow its history."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sam3dnet.annotation.history import Accepted, Found, History, Removed, Returned, state_after
from sam3dnet.annotation.labelled import LabelledDataset, LabelVersions, are_same, digest_of, label_files
from sam3dnet.inference.images import Case
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader

KEPT_IMAGES = "images"  # of cases that were taken out
APPLIED = "applied.json"  # the last event that the dataset's folders follow
CHANGED = "Warning: the label map of %s was changed elsewhere; that is kept"
PUT_BACK = "Warning: somebody has put a label map of %s into the folder again; it counts"

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
        self._kept = folder / KEPT_IMAGES
        self.are_behind = False

    def follow(self, cases: Sequence[str] | None = None) -> None:
        """Have the dataset's folder hold what the history says, of some cases or all, and of those that are behind.

        A label map there that the history does not know is kept as a version first, which changes nothing of the state.
        A case whose image is no more is taken for removed.

        Raises:
            DatasetError, OSError, RuntimeError: If something cannot be written; `are_behind` says so until it is.
        """
        events = self._history.events
        if cases is None:
            cases = self._known()
        elif self.are_behind:
            cases = sorted({*cases, *self._behind()})
        self.are_behind = True
        state, number = self._history.state, len(events)
        for case in cases:
            self.keep(case)
        if len(events) > number:
            self._history.add(Returned(to=number))
        for case in cases:
            self._follow(case, state.labels.get(case))
        write_json(self._folder / APPLIED, {"event": len(events)})
        self.are_behind = False

    def _follow(self, case: str, event: Accepted | Found | None) -> None:
        image = None if event is None else self._image(case, event.version)
        if event is None or (image is not None and self._holds_another(image)):
            self._take_out(case)
        if event is None:
            return
        if image is None:
            logger.warning("Warning: the image of %s is no more, so its label map stays with its versions", case)
            self._history.add(Removed(case=case))
        else:
            self._dataset.put(case, image.files, self._versions.files(case, event.version), self._reader)

    def _behind(self) -> list[str]:
        """Name the cases of which the folders may not hold what the history says, since something was cut off."""
        events = self._history.events
        done = (read_json_if_whole(self._folder / APPLIED) or {}).get("event")
        if not isinstance(done, int) or not 0 <= done <= len(events):
            return self._known()
        before, now = state_after(events, done).labels, self._history.state.labels
        since = events[done:]
        removed = {event.case for event in since if isinstance(event, Removed)}
        named = {event.case for event in since if isinstance(event, Accepted | Found)}
        changed = named | {case for case in {*before, *now} if before.get(case) != now.get(case)}
        return sorted(changed - (removed - {*now}))  # what somebody has taken out is as he left it

    def _known(self) -> list[str]:
        """Name all cases that ever had a label map in the history."""
        return sorted({event.case for event in self._history.events if isinstance(event, Accepted | Found)})

    def catch_up(self) -> None:
        """Follow what could not be followed before; errors as of `follow`."""
        if self.are_behind:
            self.follow([])

    def recover(self) -> None:
        """Finish what was cut off, and take notice of what was changed in the folders."""
        self.are_behind = bool(self._behind())
        self.catch_up()
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

    def take_notice(self, cases: Iterable[str] | None = None) -> None:
        """Take label maps for those of their cases that somebody has put into the folder; where it is not behind.

        A case that has none at present, but had one before, gets it if it is whole.

        Args:
            cases: Some; None for all.
        """
        labels = self._history.state.labels
        noticed = {*labels} | ({*self._known()} & {*self._dataset.labelled()})
        for case in sorted(noticed if cases is None else noticed & {*cases}):
            digest = self.digest(case)
            if digest is None or (case in labels and digest == labels[case].digest):
                continue
            logger.warning(CHANGED if case in labels else PUT_BACK, case)
            self.find(case)

    def keep(self, case: str) -> None:
        """Keep the label map that the folder holds as a version, if the history does not know it."""
        digest = self.digest(case)
        if digest is not None and digest not in self._versions_of(case):
            self.find(case)

    def find(self, case: str) -> None:
        """Take the label map that the folder holds for that of its case, as the version that it is or a new one."""
        digest = self.digest(case)
        version = self._versions_of(case).get(digest)
        if version is None:
            there = self._dataset.cases().get(case)
            if there is not None and self._dataset.has_image(there):
                self.keep_replaced_image(case, there.images)
            version = self.next_version(case)
            digest = self._versions.take(self._dataset.label(case), case, version)
        self._history.add(Found(case=case, version=version, digest=str(digest)))

    # Images

    def keep_replaced_image(self, case: str, images: Sequence[Path]) -> None:
        """Keep the image that a case had before beside its label maps, if the next one lies on another.

        Args:
            case: Its name.
            images: That the next label map lies on, a file a channel.
        """
        kept, newest = self._dataset.image_in(self._kept, case), self.next_version(case) - 1
        if kept is None or newest == 0 or are_same(kept.files, images):
            return
        self._versions.keep_image(case, newest, kept.files)
        for file in self._reader.files_of(kept.files):
            file.unlink(missing_ok=True)

    def _image(self, case: str, version: int) -> Case | None:
        """Find the image that a version lies on; one of the folder of images may be another of this name."""
        replaced = [folder for newest, folder in self._versions.replaced_images(case).items() if newest >= version]
        found = (self._dataset.image_in(folder, case) for folder in (*replaced[:1], self._kept))
        return next((image for image in found if image is not None), None) or self._image_of(case)

    def _holds_another(self, image: Case) -> bool:
        """Tell whether the dataset has another image of a case, of which it has had several."""
        there = self._dataset.cases().get(image.name)
        if there is None or not self._versions.replaced_images(image.name):
            return False
        return self._dataset.has_image(there) and not are_same(there.images, image.files)

    def _take_out(self, case: str) -> None:
        """Take a case out and keep its image, unless that is kept with earlier label maps, and a later one here."""
        there, replaced = self._dataset.cases().get(case), self._versions.replaced_images(case).values()
        earlier = [one.files for folder in replaced if (one := self._dataset.image_in(folder, case)) is not None]
        is_earlier = there is not None and any(are_same(there.images, files) for files in earlier)
        has_later = self._dataset.image_in(self._kept, case) is not None
        self._dataset.take_out(case, None if is_earlier and has_later else self._kept, self._reader)

    # Versions

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
