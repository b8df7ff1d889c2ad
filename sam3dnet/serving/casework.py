"""One case of a folder in the page in the browser: prompts and strokes of a brush, undone and redone, always saved.

The label map that the user sees begins as the automatic one, or as what was saved before. A prompt changes it where it
changes what the network says, so what was painted stays until a later prompt is about it. All indices are those of the
image's file.
"""

import json
import logging
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.inference.images import Case, is_damaged
from sam3dnet.inference.writing import write_label_map
from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.session import PromptSession
from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.geometry import as_stored
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.prompts.files import FORMAT, read_prompts
from sam3dnet.prompts.types import Box, ClassPrompts, Point
from sam3dnet.serving.segment import Sides, box_around

logger = logging.getLogger(__name__)

PROMPTS_ENDING = "_prompts.json"
LARGEST_BYTE = 255
AS_SHOWN = ("uint8", "int16", "uint16", "float32")  # what the page draws

Labels = npt.NDArray[np.integer[Any]]
Voxel = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Step:
    """Something that the user did.

    Attributes:
        kind: Of it.
        said: What was said, for the page.
        class_name: Of a prompt.
        prompts: In the space of the file.
        before: What the session had been told, of a reset.
        sides: Of the box that changed, in the file's axes; None if nothing did.
        old, new: Labels in the box before and after, packed.
    """

    kind: Literal["click", "box", "paint", "reset"]
    said: Mapping[str, Any] = field(default_factory=dict)
    class_name: str = ""
    prompts: ClassPrompts = field(default_factory=ClassPrompts)
    before: tuple["Step", ...] = ()
    sides: Sides | None = None
    old: bytes = b""
    new: bytes = b""


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

    Attributes:
        share: How much of the image is segmented.
        has_begun: Whether it is being read and segmented, or was.
        is_ready: Whether prompts can be given.
        problem: Why it will never be ready, for the user.
    """

    def __init__(
        self,
        session: PromptSession,
        case: Case,
        reader: DatasetReader,
        classes: Mapping[str, PromptClass],
        output: Path,
        file_ending: str,
    ):
        self.case, self.share, self.has_begun, self.is_ready = case, 0.0, False, False
        self.problem: str | None = None
        self.file = output / f"{case.name}{file_ending}"
        self.prompts_file = output / f"{case.name}{PROMPTS_ENDING}"
        self._session, self._reader, self._classes = session, reader, classes
        self._grid: Grid | None = None
        self._told: list[Step] = []  # what the session knows, in its order
        self._done: list[Step] = []
        self._undone: list[Step] = []
        self._shown: Labels = np.zeros((0, 0, 0), np.uint8)  # in the axes of the reader
        self._stored: Labels = self._shown  # the same in those of the file, a view
        self._counts: dict[int, int] = {}
        self._saving = threading.Lock()

    @property
    def grid(self) -> Grid:
        """Where the voxels of the file lie.

        Raises:
            DatasetError: If its header cannot be read.
        """
        if self._grid is None:
            self._grid = self._reader.format.grid(self.case.files[0], is_label=False)
        return self._grid

    def voxels(self, channel: int) -> npt.NDArray[Any]:
        """Read a channel as the page draws it, in the file's axes (k, j, i), little-endian.

        Raises:
            DatasetError: If there is none, or it cannot be read.
        """
        if not 0 <= channel < len(self.case.files):
            raise DatasetError(f"{self.case.name} has no channel {channel}, it has {len(self.case.files)}")
        stored = self._reader.format.voxels(self.case.files[channel])
        return np.ascontiguousarray(as_drawn(stored))

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

        self._session.set_image([*self.case.files], on_progress=progress)
        largest = max(max(*one.members, one.label) for one in self._classes.values())
        labels_ZYX = self._session.labels()
        dtype = np.uint8 if largest <= LARGEST_BYTE else np.uint16
        self._shown = labels_ZYX.astype(dtype)
        if self.file.exists():
            self._shown = self._saved(labels_ZYX.shape).astype(dtype)
            self._retell()
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
            "saved": self.file.name if self.file.exists() else None,
        }

    def save(self) -> None:
        """Write the label map, and the prompts beside it; each appears whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        self._require_ready()
        with self._saving:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(
                self._shown, self.file, self.case.files[0], self._session.properties, self._reader, self._write_prompts
            )

    def _write_prompts(self, folder: Path) -> None:
        by_class: dict[str, dict[str, Any]] = {}
        for step in self._told:
            entry = by_class.setdefault(step.class_name, {})
            if step.kind == "click":
                entry.setdefault("points", []).append({"at": step.said["at"], "positive": step.said["positive"]})
            else:
                entry.setdefault("boxes", []).append({"min": step.said["low"], "max": step.said["high"]})
        content = {"format": FORMAT, "space": "voxel", "cases": {self.case.name: by_class} if by_class else {}}
        (folder / self.prompts_file.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _saved(self, shape_ZYX: Sequence[int]) -> Labels:
        """Read the label map that was saved before."""
        what_to_do = "move it away, or choose another folder with --output"
        if is_damaged(self.file):
            raise DatasetError(f"{self.file}: is damaged; {what_to_do}")
        labels_ZYX: Labels = np.rint(self._reader.read_seg(self.file)[0][0]).astype(np.int64)
        if labels_ZYX.shape != tuple(shape_ZYX):
            raise DatasetError(
                f"{self.file}: has shape {labels_ZYX.shape}, the image {tuple(shape_ZYX)} (z, y, x); {what_to_do}"
            )
        known = {0, *(label for one in self._classes.values() for label in (*one.members, one.label))}
        foreign = sorted(set(np.unique(labels_ZYX).tolist()) - known)
        if foreign:
            raise DatasetError(f"{self.file}: has labels {foreign}, which the model does not know; {what_to_do}")
        return labels_ZYX

    def _retell(self) -> None:
        """Tell the session what was said before the server ended; what is seen stays as it was saved."""
        if not self.prompts_file.exists():
            return
        try:
            read = read_prompts(self.prompts_file, [self.case.name], list(self._classes))
        except PromptError as problem:
            logger.warning("Warning: %s; the prompts of before are left out", problem)
            return
        for name, stated in read.of_case(self.case.name).items():
            for one in stated:
                for point in one.points:
                    at = [int(value) for value in point.at]
                    said = {"class": name, "kind": "click", "at": at, "positive": point.positive, "restored": True}
                    self._remember(Step("click", said, name, ClassPrompts(points=(point,))))
                for corners in one.boxes:
                    low, high = np.min(corners, 0), np.max(corners, 0)
                    said = {"class": name, "kind": "box", "low": low.astype(int).tolist()}
                    said |= {"high": high.astype(int).tolist(), "restored": True}
                    box = Box(tuple(low.tolist()), tuple(high.tolist()))
                    self._remember(Step("box", said, name, ClassPrompts(boxes=(box,))))

    def _remember(self, step: Step) -> None:
        try:
            self._say(step)
        except PromptError as problem:
            logger.warning("Warning: %s: %s; it is left out", self.prompts_file, problem)
        else:
            self._done.append(step)

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
        """Let a click count where something was painted that says otherwise: that stroke goes."""
        one, after = self._classes[step.class_name], self._in_file(after_ZYX)
        for point in step.prompts.points:
            i, j, k = point.voxel
            label = self._label_at((k, j, i), sides, wanted)
            if (label in one.members) == point.positive or label == int(after[k, j, i]):
                continue
            seen = self._stored.copy()
            if sides is not None:
                seen[_slices(sides)] = wanted
            painted, _ = ndimage.label(seen != after, np.ones((3, 3, 3)))
            stroke = painted == painted[k, j, i]
            sides = box_around(stroke | (seen != self._stored))
            assert sides is not None
            box = _slices(sides)
            wanted = np.where(stroke[box], after[box], seen[box]).astype(self._stored.dtype)
        return sides, wanted

    def _label_at(self, voxel_kji: Voxel, sides: Sides | None, wanted: Labels) -> int:
        """Give the label of a voxel that will be seen once a box has the labels that are wanted."""
        if sides is not None and all(low <= at < high for at, (low, high) in zip(voxel_kji, sides, strict=True)):
            return int(wanted[tuple(at - low for at, (low, _) in zip(voxel_kji, sides, strict=True))])
        return int(self._stored[voxel_kji])

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
