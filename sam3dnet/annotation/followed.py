"""The folders of a dataset that is annotated follow its history.

A label map goes with the image whose digest its event names. An image in the way of another is kept: the one that may
be annotated next in `images`, all others beside the label maps. Images are read where a case changes, and only there.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sam3dnet.annotation.history import Accepted, Found, History, Removed, Returned, state_after, states_until
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
        A case whose image is no more is taken for removed. The images of cases that have not changed are not read.

        Raises:
            DatasetError, OSError, RuntimeError: If something cannot be written; `are_behind` says so until it is.
        """
        events = self._history.events
        changed = {*(cases or ())}
        if cases is None or self.are_behind:
            changed |= {*self._behind()}
        cases = self._known() if cases is None else sorted(changed)
        self.are_behind = True
        state, number = self._history.state, len(events)
        for case in cases:
            self.keep(case)
        if len(events) > number:
            self._history.add(Returned(to=number))
        there = self._dataset.labelled()
        for case in cases:
            event = state.labels.get(case)
            if case not in changed and event is not None and case in there and self.digest(case) == event.digest:
                continue
            self._follow(case, event)
        write_json(self._folder / APPLIED, {"event": len(events)})
        self.are_behind = False

    def _follow(self, case: str, event: Accepted | Found | None) -> None:
        if event is None:
            self._take_out(case)
            return
        image = self._image(case, event)
        if image is None:
            logger.warning("Warning: the image of %s is no more, so its label map stays with its versions", case)
            if not self._dataset.is_out_of_reach(case):
                self._take_out(case)
            self._history.add(Removed(case=case))
            return
        version = self._versions.file(case, event.version)
        if not version.is_file():
            logger.warning("Warning: %s is gone, a version of the label map of %s, so that waits again", version, case)
            self._take_out(case)
            self._history.add(Removed(case=case))
            return
        if self._dataset.another_image(image, self._reader) is not None:
            self._make_way(case)
            image = self._image(case, event) or image
            self._dataset.require_addable(image, self._reader)
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
        for case in {*self._history.state.labels} & {*there}:
            self.keep_replaced_image(case, there[case].images)
        self.take_notice(there)
        self.follow([])

    def take_notice(self, cases: Iterable[str] | None = None) -> list[str]:
        """Take label maps for those of their cases that somebody has put into the folder; where it is not behind.

        A case that has none at present, but had one before, gets it if it is whole. The folder is behind then.

        Args:
            cases: Some; None for all.

        Returns:
            The cases of which one was taken, which are to be followed.
        """
        labels = self._history.state.labels
        noticed = {*labels} | ({*self._known()} & {*self._dataset.labelled()})
        found = []
        for case in sorted(noticed if cases is None else noticed & {*cases}):
            digest = self.digest(case)
            if digest is None or (case in labels and digest == labels[case].digest):
                continue
            if self._dataset.is_out_of_reach(case):  # its image may be any
                continue
            logger.warning(CHANGED if case in labels else PUT_BACK, case)
            self.find(case)
            found.append(case)
        return found

    def keep(self, case: str) -> None:
        """Keep the label map that the folder holds as a version, if the history does not know it."""
        digest = self.digest(case)
        if digest is not None and all(event.digest != digest for event in self._events_of(case)):
            self.find(case)

    def find(self, case: str) -> None:
        """Take the label map that the folder holds for that of its case, as the version that it is or a new one.

        Of several versions with these labels it is the one on the image that is there, or else the newest. The folder
        is behind then, since an earlier version has its own image.
        """
        digest, there = self.digest(case), self._image_there(case)
        image = None if there is None else digest_of(there.files)
        known = {event.version: event.image for event in self._events_of(case) if event.digest == digest}
        if known:
            version = max(known, key=lambda one: (known[one] == image, one))
            image = known[version]
        else:
            if there is not None:
                self.keep_replaced_image(case, there.files)
            version = self.next_version(case)
            digest = self._versions.take(self._dataset.label(case), case, version)
        self._history.add(Found(case=case, version=version, digest=str(digest), image=image))
        self.are_behind = True

    # Images

    def keep_replaced_image(self, case: str, images: Sequence[Path]) -> None:
        """Keep the image that a case had before beside its label maps, if the present or next one lies on another.

        Args:
            case: Its name.
            images: That this label map lies on, a file a channel.
        """
        kept = self._dataset.image_in(self._kept, case)
        if kept is None or are_same(kept.files, images):
            return
        if newest := self._newest_on(kept):  # else it still waits for its first label map
            self._set_aside(kept, newest)

    def _set_aside(self, kept: Case, newest: int) -> None:
        """Move an image of a case that was taken out beside the newest version that lies on it; 0 for none."""
        self._versions.keep_image(kept.name, newest, kept.files)
        for file in self._reader.files_of(kept.files):
            file.unlink(missing_ok=True)

    def _newest_on(self, image: Case) -> int:
        """Give the newest version that lies on an image, 0 for none.

        Where events name no image, it is that of the versions that have none yet, and are from before the present one's
        case came in: while a case is in the dataset, its image stays.
        """
        digest, events = digest_of(image.files), self._events_of(image.name)
        named = [event.version for event in events if event.image == digest]
        unnamed = [event.version for event in events if event.image is None]
        known = max((newest for newest, _ in self._versions.replaced_images(image.name)), default=0)
        present = self._versions_since_it_came_in(image.name) if unnamed and not named else []
        end = min(present, default=self.next_version(image.name))
        return max(named or [version for version in unnamed if known < version < end], default=0)

    def _versions_since_it_came_in(self, case: str) -> list[int]:
        """List the versions that a case has had since it was last without a label map; none where it is now."""
        versions: list[int] = []
        if self._dataset.label(case).is_file():
            for state in reversed(states_until(self._history.events, len(self._history.events))):
                if case not in state.labels:
                    break
                versions.append(state.labels[case].version)
        return versions

    def _image_there(self, case: str) -> Case | None:
        """Give the image that the dataset has of a case; None if it is not whole."""
        there = self._dataset.cases().get(case)
        return Case(case, there.images) if there is not None and self._dataset.has_image(there) else None

    def _image(self, case: str, event: Accepted | Found) -> Case | None:
        """Find the image that a label map lies on; the likeliest of this name where its event names none."""
        images = self._images_of(case, since=event.version if event.image is None else 0)
        if event.image is not None:
            return next((one for one in images if digest_of(one.files) == event.image), None)
        others = self._replaced_images(case, until=event.version)
        return next((one for one in images if not any(are_same(one.files, other.files) for other in others)), None)

    def _images_of(self, case: str, since: int) -> Iterator[Case]:
        """Give the images of a case, the likeliest first; all folders are looked through only if they are asked for."""
        yield from self._replaced_images(case, since=since)
        kept, there = self._dataset.image_in(self._kept, case), self._image_there(case)
        near = (there, kept) if self._dataset.label(case).is_file() else (kept, there)  # it waits, and may be another
        yield from (one for one in near if one is not None)
        elsewhere = self._image_of(case)
        if elsewhere is not None:
            yield elsewhere

    def _replaced_images(self, case: str, since: int = 0, until: int | None = None) -> list[Case]:
        """List the images that made way, of which the newest version is in a range, its end not in it."""
        replaced = self._versions.replaced_images(case)
        folders = [one for newest, one in replaced if newest >= since and (until is None or newest < until)]
        return [image for one in folders if (image := self._dataset.image_in(one, case)) is not None]

    def _is_there(self, image: Case) -> bool:
        """Tell whether what the dataset has of a case, if anything, is of this image."""
        return self._dataset.another_image(image, self._reader) is None

    def _take_out(self, case: str) -> None:
        """Take a case out and keep its image; one that waits in the dataset without a label map stays there."""
        kept = self._dataset.image_in(self._kept, case)
        images = [*self._replaced_images(case), *([] if kept is None else [kept])]
        was_cut_off = any(self._is_there(image) for image in images)
        if self._dataset.label(case).is_file() or was_cut_off:
            self._make_way(case)

    def _make_way(self, case: str) -> None:
        """Take what the dataset has of a case out; each of its images stays in one of the folders, this one to wait."""
        kept = self._dataset.image_in(self._kept, case)
        has_other = kept is not None and not self._is_there(kept)
        is_kept = has_other and any(self._is_there(image) for image in self._replaced_images(case))
        if kept is not None and has_other and not is_kept:
            self._set_aside(kept, self._newest_on(kept))
        self._dataset.take_out(case, None if is_kept else self._kept, self._reader)

    # Versions

    def digest(self, case: str) -> str | None:
        """Give the digest of the label map that the dataset's folder holds; None for none."""
        label = self._dataset.label(case)
        return digest_of(label_files(label, self._reader)) if label.is_file() else None

    def next_version(self, case: str) -> int:
        """Give the number of the next version of a case's label map."""
        return 1 + max((event.version for event in self._events_of(case)), default=0)

    def _events_of(self, case: str) -> list[Accepted | Found]:
        """List the events that gave a case a label map."""
        events = (one for one in self._history.events if isinstance(one, Accepted | Found))
        return [event for event in events if event.case == case]
