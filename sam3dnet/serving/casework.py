"""One case of a folder in the page in the browser: prompts and strokes of a brush, undone and redone, always saved.

The label map that the user sees begins as the automatic one, or as what was saved before. A prompt changes it where it
changes what the network says, so what was painted stays until a later prompt is about it. All indices are those of the
image's file.
"""

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.inference.images import Case, seen_by_file
from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.session import PromptSession
from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.geometry import as_stored
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.reading import DatasetReader, unreadable
from sam3dnet.prompts.types import Box, ClassPrompts, Point, Scribble
from sam3dnet.serving.case_files import CaseFiles, Labels, Step
from sam3dnet.serving.segment import Sides, box_around

logger = logging.getLogger(__name__)

LARGEST_BYTE = 255
KINDS = {"click": "points", "scribble": "scribbles", "box": "boxes", "paint": "strokes"}  # as ClassPrompts counts
AS_SHOWN = ("uint8", "int16", "uint16", "float32")  # what the page draws

Voxel = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a step changed of what the user sees.

    Attributes:
        sides: Of the box, half-open, in the file's axes (k, j, i); None if nothing changed.
        labels: In the box.
        message: To the user.
    """

    sides: Sides | None = None
    labels: Labels | None = None
    message: str | None = None


class CaseWork:
    """The work on one case.

    Args:
        session: Of this work alone.
        case: The image.
        reader: Of the model's dataset.
        classes: Of the model, by name.
        output: Folder for label maps and prompts.
        file_ending: Of label maps.
        model: Folder of the model, where it may be exchanged.

    Attributes:
        model: As given.
        since: When the work began, of `time.monotonic`.
        image: The image's files, with what each is known by, see `inference.images.seen`.
        files: What is saved.
        share: How much of the image is segmented.
        has_begun: Whether it is being read and segmented, or was.
        is_ready: Whether prompts can be given.
        problem: Why it will never be ready, for the user.
        warnings: What is unusual of the image, or could not be read of what was saved, for the user.
    """

    def __init__(
        self,
        session: PromptSession,
        case: Case,
        reader: DatasetReader,
        classes: Mapping[str, PromptClass],
        output: Path,
        file_ending: str,
        model: str | None = None,
    ):
        self.model, self.since = model, time.monotonic()
        self.case, self.share, self.has_begun, self.is_ready = case, 0.0, False, False
        self.problem: str | None = None
        self.warnings: list[str] = []
        self.image = seen_by_file(reader.files_of(case.files))
        self.files = CaseFiles(case, reader, classes, output, file_ending)
        self._session, self._reader, self._classes = session, reader, classes
        self._grid: Grid | None = None
        self._told: list[Step] = []  # what the session knows, in its order
        self._done: list[Step] = []
        self._undone: list[Step] = []
        self._shown: Labels = np.zeros((0, 0, 0), np.uint8)  # in the axes of the reader
        self._stored: Labels = self._shown  # the same in those of the file, a view
        self._counts: dict[int, int] = {}

    @property
    def grid(self) -> Grid:
        """Where the voxels of the file lie.

        Raises:
            DatasetError: If its header cannot be read.
        """
        if self._grid is None:
            with self._told_by_file(self.case.files[0]) as file:
                self._grid = self._reader.format.grid(file, is_label=False)
        return self._grid

    def voxels(self, channel: int) -> npt.NDArray[Any]:
        """Read a channel as the page draws it, in the file's axes (k, j, i), little-endian.

        Raises:
            DatasetError: If there is none, or it cannot be read.
        """
        if not 0 <= channel < len(self.case.files):
            raise DatasetError(f"{self.case.name} has no channel {channel}, it has {len(self.case.files)}")
        with self._told_by_file(self.case.files[channel]) as file:
            stored = self._reader.format.voxels(file)
        return np.ascontiguousarray(as_drawn(stored))

    @contextmanager
    def _told_by_file(self, file: Path) -> Iterator[Path]:
        """Name the file that cannot be read: each library raises errors of its own."""
        try:
            yield file
        except Exception as problem:
            if (what := not_a_file(file)) is not None:
                raise DatasetError(
                    f"{file}: is {what}; expected the image of {self.case.name}; put it back"
                ) from problem
            raise DatasetError(unreadable(self.case.name, file, problem).message) from problem

    def open(self, on_progress: Callable[[float], None] | None = None) -> None:
        """Segment the image, and go on from what was saved before.

        Args:
            on_progress: Called with the share that is done.

        Raises:
            Sam3dError: If the image is not as the model wants it, or what was saved does not fit it.
        """
        self.has_begun = True

        def progress(share: float) -> None:
            self.share = share
            if on_progress is not None:
                on_progress(share)

        progress(0.0)
        with suppress(OSError):  # it is told below
            self.files.note_image()
        self._session.set_image([*self.case.files], on_progress=progress)
        self.warnings += self._session.remarks
        self._go_on()
        self._stored = self._in_file(self._shown)
        self._counts = self._count(self._stored)
        self.is_ready = True

    def look_ahead(self) -> bool:
        """Use spare time for what prompts will need; tell whether there may be more."""
        return self.is_ready and self._session.look_ahead()

    def click(self, class_name: str, at: Voxel, positive: bool) -> Seen:
        """Say that a class is, or is not, at a voxel (i, j, k) of the file.

        Raises:
            PromptError: If the voxel lies outside, or there is no such class.
        """
        said = {"class": class_name, "kind": "click", "at": list(at), "positive": positive}
        prompts = ClassPrompts(points=(Point((float(at[0]), float(at[1]), float(at[2])), positive),))
        return self._do(Step("click", said, class_name, prompts))

    def scribble(self, class_name: str, places: Sequence[Voxel], positive: bool) -> Seen:
        """Say that a class is, or is not, at each voxel (i, j, k) of a stroke.

        Raises:
            PromptError: If one lies outside, there is none, or there is no such class.
        """
        self._require_ready()
        size = self._stored.shape[::-1]
        for place in places:
            if not all(0 <= at < end for at, end in zip(place, size, strict=True)):
                raise PromptError(
                    f"a scribble over {place} leaves the image, whose last voxel is {tuple(end - 1 for end in size)}; "
                    "draw within it"
                )
        said = {"class": class_name, "kind": "scribble", "at": [list(place) for place in places], "positive": positive}
        prompts = ClassPrompts(scribbles=(Scribble(tuple(places), positive),))
        return self._do(Step("scribble", said, class_name, prompts))

    def box(self, class_name: str, low: Voxel, high: Voxel) -> Seen:
        """Draw a box between two voxels (i, j, k), which both belong to it.

        Raises:
            PromptError: If it lies outside, or there is no such class.
        """
        first, last = np.minimum(low, high).tolist(), np.maximum(low, high).tolist()
        said = {"class": class_name, "kind": "box", "low": first, "high": last}
        box = Box(tuple(map(float, first)), tuple(map(float, last)))  # type: ignore[arg-type]
        return self._do(Step("box", said, class_name, ClassPrompts(boxes=(box,))))

    def paint(self, label: int, sides: Sides, mask_kji: npt.NDArray[np.bool_]) -> Seen:
        """Give voxels a label by hand, 0 to erase.

        Args:
            label: Of a class, or 0.
            sides: Of a box in the file's axes (k, j, i), half-open.
            mask_kji: Which voxels in it.

        Raises:
            PromptError: If there is no such label, or the box does not fit.
        """
        self._require_ready()
        known = {0, *(one.label for one in self._classes.values())}
        if label not in known:
            raise PromptError(f"there is no label {label}; there are {', '.join(map(str, sorted(known)))}")
        shape = tuple(stop - start for start, stop in sides)
        inside = all(0 <= start < stop <= size for (start, stop), size in zip(sides, self._stored.shape, strict=True))
        if not inside or mask_kji.shape != shape:
            raise PromptError(f"a stroke in {sides} of shape {mask_kji.shape} does not fit {self._stored.shape}")
        wanted = self._stored[_slices(sides)].copy()
        wanted[mask_kji] = label
        said = {"class": "", "kind": "paint", "label": label}
        return self._finish(Step("paint", said), sides, wanted)

    def undo(self) -> Seen:
        """Take back what was done last; nothing happens where there is nothing."""
        self._require_ready()
        if not self._done:
            return Seen(message="there is nothing to undo")
        step = self._done.pop()
        self._undone.append(step)
        if step.kind == "reset":
            self._tell(step.before)
        elif step.kind != "paint":
            self._told.pop()
            if step.sides is None and not step.old and step.said.get("restored"):
                return self._undo_restored()
            self._session.undo()
        return self._restore(step.sides, step.old)

    def redo(self) -> Seen:
        """Do again what was taken back last."""
        self._require_ready()
        if not self._undone:
            return Seen(message="there is nothing to do again")
        step = self._undone.pop()
        if step.kind == "reset":
            self._done.append(step)
            self._tell(())
        elif step.kind == "paint":
            self._done.append(step)
        elif step.said.get("restored"):
            return self._do(Step(step.kind, {**step.said, "restored": False}, step.class_name, step.prompts), True)
        else:
            self._done.append(step)
            self._say(step)
        return self._restore(step.sides, step.new)

    def reset(self) -> Seen:
        """Go back to the automatic label map; `undo` takes that back."""
        self._require_ready()
        before = tuple(self._told)
        self._tell(())
        wanted = self._in_file(self._session.labels()).astype(self._stored.dtype)
        whole = tuple((0, size) for size in self._stored.shape)
        return self._finish(Step("reset", {"class": "", "kind": "reset"}, before=before), whole, wanted)

    def labels(self) -> Labels:
        """Give the label map that the user sees, in the file's axes."""
        self._require_ready()
        return np.ascontiguousarray(self._stored)

    def status(self) -> dict[str, Any]:
        """Say how things stand, for the page."""
        voxel_ml = float(np.prod(self.grid.spacing_mm)) / 1000
        volumes = {
            name: round(voxel_ml * sum(self._counts.get(label, 0) for label in one.members), 3)
            for name, one in self._classes.items()
        }
        return {
            "dtype": self._stored.dtype.name,
            "undo": len(self._done),
            "redo": len(self._undone),
            "prompts": [step.said for step in self._told],
            "volumes_ml": volumes,
            "saved": self.files.labels.name if self.files.labels.exists() else None,
        }

    def automatic_labels(self) -> Labels:
        """Give what the model proposed, on the grid of the reader, not to be changed."""
        self._require_ready()
        return self._session.automatic_labels()

    @property
    def done(self) -> tuple[Step, ...]:
        """What was done and not taken back, each thing by itself."""
        return tuple(self._done)

    @property
    def said_counts(self) -> dict[str, dict[str, int]]:
        """Count prompts and strokes of the brush so far, by class and kind."""
        names = {one.label: name for name, one in self._classes.items()} | {0: "background"}
        counts: dict[str, dict[str, int]] = {}
        for step in self._done:
            if step.kind in KINDS:
                name = step.class_name or names[step.said["label"]]
                of_class = counts.setdefault(name, {})
                of_class[KINDS[step.kind]] = of_class.get(KINDS[step.kind], 0) + 1
        return counts

    def save(self) -> None:
        """Write the label map, and the prompts beside it.

        Raises:
            OSError: If it cannot be written.
            GoneError: If the files belong to somebody else now.
        """
        self._require_ready()
        self.files.write(self._shown, self._session.properties, self._told)

    def _go_on(self) -> None:
        """Show what was saved before, or the automatic label map."""
        largest = max(max(*one.members, one.label) for one in self._classes.values())
        labels_ZYX = self._session.labels()
        dtype = np.uint8 if largest <= LARGEST_BYTE else np.uint16
        self._shown = labels_ZYX.astype(dtype)
        z, y, x = labels_ZYX.shape
        saved_ZYX = self.files.read_labels((z, y, x), self._session.properties)
        if saved_ZYX is not None:
            self._shown = saved_ZYX.astype(dtype)
            try:
                steps = self.files.read_steps()
            except PromptError as problem:
                self._warn(f"{problem}; the prompts of before are left out")
            else:
                for step in steps:
                    self._remember(step)

    def _remember(self, step: Step) -> None:
        try:
            self._say(step)
        except PromptError as problem:
            self._warn(f"{self.files.prompts}: {problem}; it is left out")
        else:
            self._done.append(step)

    def _warn(self, remark: str) -> None:
        logger.warning("Warning: %s", remark)
        self.warnings.append(remark)

    def _do(self, step: Step, again: bool = False) -> Seen:
        """Say something to the session, and change what is seen where that changes what it says."""
        self._require_ready()
        if step.class_name not in self._classes:
            raise PromptError(f'there is no class "{step.class_name}"; there are {", ".join(self._classes)}')
        before = self._session.labels()
        self._say(step)
        try:
            after = self._session.labels()
        except Exception:
            self._told.pop()
            self._session.undo()
            raise
        sides, wanted = self._following(before, after)
        sides, wanted = self._brought_back(step, after, sides, wanted)
        return self._finish(step, sides, wanted, again)

    def _following(self, before_ZYX: Labels, after_ZYX: Labels) -> tuple[Sides | None, Labels]:
        """Give the labels to be seen where the session changed what it says, in the box around that."""
        before, after = self._in_file(before_ZYX), self._in_file(after_ZYX)
        sides = None if after_ZYX is before_ZYX else box_around(after != before)
        if sides is None:
            return None, self._stored[:0, :0, :0]
        box = _slices(sides)
        return sides, np.where(after[box] != before[box], after[box], self._stored[box]).astype(self._stored.dtype)

    def _undo_restored(self) -> Seen:
        """Take back a prompt of before the server ended: where it changes what the session says."""
        before = self._session.labels()
        self._session.undo()
        sides, wanted = self._following(before, self._session.labels())
        return Seen() if sides is None else self._show(sides, wanted)

    def _brought_back(
        self, step: Step, after_ZYX: Labels, sides: Sides | None, wanted: Labels
    ) -> tuple[Sides | None, Labels]:
        """Let clicks and scribbles count where something was painted that says otherwise: that stroke goes."""
        one, after = self._classes[step.class_name], self._in_file(after_ZYX)
        clicks = step.prompts.clicks
        places = np.array([click.voxel for click in clicks], int).reshape(-1, 3)[:, ::-1]
        inside = np.all((places >= 0) & (places < self._stored.shape), axis=1)  # a file's scribble may stick out
        places, positive = places[inside], np.array([click.positive for click in clicks], bool)[inside]
        at = tuple(places.T)
        labels = self._labels_at(places, sides, wanted)
        missed = (np.isin(labels, one.members) != positive) & (labels != after[at])
        if not missed.any():
            return sides, wanted
        seen = self._stored.copy()
        if sides is not None:
            seen[_slices(sides)] = wanted
        painted, count = ndimage.label(seen != after, np.ones((3, 3, 3)))
        goes = np.zeros(count + 1, bool)
        goes[painted[at][missed]] = True
        strokes = goes[painted]
        sides = box_around(strokes | (seen != self._stored))
        assert sides is not None
        box = _slices(sides)
        return sides, np.where(strokes[box], after[box], seen[box]).astype(self._stored.dtype)

    def _labels_at(self, places_kji: npt.NDArray[Any], sides: Sides | None, wanted: Labels) -> Labels:
        """Give the labels of voxels that will be seen once a box has the labels that are wanted."""
        labels = self._stored[tuple(places_kji.T)]
        if sides is not None:
            low, high = np.array(sides).T
            held = np.all((places_kji >= low) & (places_kji < high), axis=1)
            labels[held] = wanted[tuple((places_kji[held] - low).T)]
        return labels

    def _finish(self, step: Step, sides: Sides | None, wanted: Labels, again: bool = False) -> Seen:
        """Show labels in a box, and remember the step, of which only what changed is kept."""
        if not again:
            self._undone.clear()
        part = wanted if sides is None else self._stored[_slices(sides)]
        found = box_around(part != wanted)
        if sides is None or found is None:
            self._done.append(step)
            return Seen()
        inner = _slices(found)
        changed = tuple((start + low, start + high) for (start, _), (low, high) in zip(sides, found, strict=True))
        old, new = _packed(part[inner]), _packed(wanted[inner])
        self._done.append(Step(step.kind, step.said, step.class_name, step.prompts, step.before, changed, old, new))
        return self._show(changed, wanted[inner])

    def _restore(self, sides: Sides | None, packed: bytes) -> Seen:
        if sides is None:
            return Seen()
        shape = [stop - start for start, stop in sides]
        return self._show(sides, np.frombuffer(zlib.decompress(packed), self._stored.dtype).reshape(shape))

    def _show(self, sides: Sides, labels: Labels) -> Seen:
        box = _slices(sides)
        for label, count in self._count(self._stored[box]).items():
            self._counts[label] = self._counts.get(label, 0) - count
        self._stored[box] = labels
        for label, count in self._count(labels).items():
            self._counts[label] = self._counts.get(label, 0) + count
        return Seen(sides, np.ascontiguousarray(labels).astype(self._stored.dtype, copy=False))

    def _say(self, step: Step) -> None:
        self._session.say(step.prompts, step.class_name)
        self._told.append(step)

    def _tell(self, steps: Sequence[Step]) -> None:
        """Have the session know these prompts and no others."""
        self._session.reset()
        self._told = []
        for step in steps:
            self._say(step)

    def _in_file(self, labels_ZYX: Labels) -> Labels:
        """Bring labels of the session's to the axes of the file, a view."""
        return as_stored(labels_ZYX, self._session.properties)

    def _require_ready(self) -> None:
        if not self.is_ready:
            raise PromptError("the image is still being segmented; wait until it is ready")

    @staticmethod
    def _count(labels: Labels) -> dict[int, int]:
        counts = np.bincount(labels.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value}


def as_drawn(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bring voxels to a type that the page draws: whole numbers to 8 or 16 bits where they fit, all else to float32."""
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    if voxels.dtype.name in AS_SHOWN:
        return voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    if voxels.dtype.kind in "iu":
        low, high = int(voxels.min()), int(voxels.max())
        for name in ("int16", "uint16"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return voxels.astype(name)
    with np.errstate(over="ignore"):
        return voxels.astype(np.float32)


def _slices(sides: Sides) -> tuple[slice, ...]:
    return tuple(slice(*side) for side in sides)


def _packed(labels: Labels) -> bytes:
    return zlib.compress(np.ascontiguousarray(labels).tobytes(), 1)
