"""What is saved of the work on a case: a label map on the image's own grid, and the prompts beside it."""

import errno
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sam3dnet.annotation.labelled import digest_of
from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.inference.images import Case, is_damaged
from sam3dnet.inference.writing import has_shape_of, write_label_map
from sam3dnet.interactive.classes import PromptClass
from sam3dnet.preprocessing.geometry import DRIFT_VOXELS, Voxel, same_place
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.prompts.files import FORMAT, read_prompts
from sam3dnet.prompts.stated import StatedPrompts
from sam3dnet.prompts.types import Box, ClassPrompts, as_coordinates
from sam3dnet.serving.leases import GoneError
from sam3dnet.serving.segment import Sides

PROMPTS_ENDING = "_prompts.json"
LARGEST_LABEL = 65535

OF_WRITING = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, getattr(errno, "EDQUOT", errno.ENOSPC))
MAKE_ROOM, MEND = "make room", "mend that"

Labels = npt.NDArray[np.integer[Any]]


def remedy_of(problem: OSError | RuntimeError) -> str:
    """Say what to do where something could not be read or written."""
    return MAKE_ROOM if getattr(problem, "errno", None) in OF_WRITING else MEND


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

    kind: Literal["click", "scribble", "box", "paint", "reset"]
    said: Mapping[str, Any] = field(default_factory=dict)
    class_name: str = ""
    prompts: ClassPrompts = field(default_factory=ClassPrompts)
    before: tuple["Step", ...] = ()
    sides: Sides | None = None
    old: bytes = b""
    new: bytes = b""


class CaseFiles:
    """The files of a case's work.

    Args:
        case: The image.
        reader: Of the model's dataset.
        classes: Of the model, by name.
        output: Folder for label maps and prompts.
        file_ending: Of label maps.

    Attributes:
        labels: The file of the label map.
        prompts: The file of the prompts.
    """

    def __init__(
        self,
        case: Case,
        reader: DatasetReader,
        classes: Mapping[str, PromptClass],
        output: Path,
        file_ending: str,
    ):
        self._case, self._reader, self._classes = case, reader, classes
        self.labels = output / f"{case.name}{file_ending}"
        self.prompts = output / f"{case.name}{PROMPTS_ENDING}"
        self._writing = threading.Lock()
        self._is_closed = False
        self._image: str | None = None

    def note_image(self) -> None:
        """Note by what the image is known again, before it is read.

        Raises:
            OSError: If it cannot be read.
        """
        if self._image is None:
            self._image = digest_of(self._case.files)

    @property
    def is_closed(self) -> bool:
        """Whether the files belong to somebody else now."""
        return self._is_closed

    def close(self) -> None:
        """Write no more, since the files belong to somebody else from now on; a write under way ends first."""
        with self._writing:
            self._is_closed = True

    def require_open(self) -> None:
        """See that what the files hold is of this work.

        Raises:
            GoneError: If it is not.
        """
        if self._is_closed:
            raise GoneError(f"the work on {self._case.name} has ended here; open the image again")

    def write(self, labels_ZYX: Labels, properties: Mapping[str, Any], told: Sequence[Step]) -> None:
        """Write both; each appears whole or not at all, the label map last.

        Args:
            labels_ZYX: As the reader gives the image.
            properties: That the reader gave.
            told: The prompts.

        Raises:
            OSError: If it cannot be written.
            GoneError: If the files are closed.
        """
        content = json.dumps(self._stated(told), indent=2) + "\n"

        def write_prompts(folder: Path) -> None:
            (folder / self.prompts.name).write_text(content, encoding="utf-8")

        with self._writing:
            self.require_open()
            self.labels.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(labels_ZYX, self.labels, self._case.files[0], properties, self._reader, write_prompts)

    def read_labels(self, shape_ZYX: Voxel, properties: Mapping[str, Any]) -> Labels | None:
        """Read the label map that was saved before; None if there is none.

        Args:
            shape_ZYX: Of the image.
            properties: That the reader gave of the image.

        Raises:
            DatasetError: If it is damaged, or not of this image and model.
        """
        if not self.labels.exists():
            return None
        what_to_do = "move it away, or choose another folder where there is --output"
        if self.is_of_another_image():
            raise DatasetError(
                f"{self.labels}: was drawn on another image than what {self._case.files[0]} is now; {what_to_do}"
            )
        if is_damaged(self.labels):
            raise DatasetError(f"{self.labels}: is damaged; {what_to_do}")
        values_CZYX, own = self._reader.read_seg(self.labels)
        values_ZYX = values_CZYX[0]
        if values_ZYX.shape != shape_ZYX:
            raise DatasetError(
                f"{self.labels}: has shape {values_ZYX.shape}, the image {shape_ZYX} (z, y, x); {what_to_do}"
            )
        if not same_place(properties, own, shape_ZYX, DRIFT_VOXELS):
            raise DatasetError(
                f"{self.labels}: has the image's shape, but another origin, spacing or direction, as that of another "
                f"image has; {what_to_do}"
            )
        known = {0, *(label for one in self._classes.values() for label in (*one.members, one.label))}
        if values_ZYX.min() >= 0 and values_ZYX.max() <= LARGEST_LABEL:
            labels_ZYX = np.rint(values_ZYX).astype(np.uint16)
            foreign = set(np.flatnonzero(np.bincount(labels_ZYX.ravel())).tolist()) - known
            if not foreign:
                return labels_ZYX
        shown = ", ".join(map(str, sorted(known)))
        raise DatasetError(f"{self.labels}: has other labels than the model's, {shown}; {what_to_do}")

    def is_of_another_image(self) -> bool:
        """Tell whether what was saved before is known to be of another image than the one that was noted."""
        images = (read_json_if_whole(self.prompts) or {}).get("images")
        known = images.get(self._case.name) if isinstance(images, dict) else None
        return self.labels.exists() and known is not None and known != self._image

    def has_another_shape(self) -> bool:
        """Tell whether a label map was saved before that has not as many voxels along each axis as the image."""
        image, _ = self._reader.read_grid(self._case.name, self._case.files[0])
        return image is not None and self.labels.exists() and not has_shape_of(self.labels, self._case, self._reader)

    def read_steps(self) -> list[Step]:
        """Read the prompts that were saved before; none where there are none.

        Raises:
            PromptError: If they cannot be read.
        """
        if not self.prompts.exists():
            return []
        read = read_prompts(self.prompts, [self._case.name], list(self._classes))
        return [
            step
            for name, stated in read.of_case(self._case.name).items()
            for one in stated
            for step in _steps_of(name, one)
        ]

    def _stated(self, told: Sequence[Step]) -> dict[str, Any]:
        """Say it as files do: there scribbles come after all clicks, so that they leave out what was clicked later."""
        name = self._case.name
        by_class: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for number, step in enumerate(told):
            kinds, said = by_class.setdefault(step.class_name, {}), step.said
            if step.kind == "box":
                kinds.setdefault("boxes", []).append({"min": said["low"], "max": said["high"]})
            elif step.kind == "click":
                kinds.setdefault("points", []).append({"at": said["at"], "positive": said["positive"]})
            elif places := _not_clicked(step, told[number + 1 :]):
                kinds.setdefault("scribbles", []).append({"at": places, "positive": said["positive"]})
        cases = {name: by_class} if by_class else {}
        images = {} if self._image is None else {"images": {name: self._image}}
        return {"format": FORMAT, "space": "voxel", "cases": cases, **images}


def _not_clicked(scribble: Step, later: Sequence[Step]) -> list[list[int]]:
    """Give the places of a scribble at which nothing is said of its class later by a click."""
    of_class = (step for step in later if step.kind == "click" and step.class_name == scribble.class_name)
    clicked = {tuple(step.said["at"]) for step in of_class}
    return [place for place in scribble.said["at"] if tuple(place) not in clicked]


def _steps_of(class_name: str, stated: StatedPrompts) -> list[Step]:
    """Give what a file states about a class, one thing after the other."""
    if stated.space != "voxel":
        raise PromptError(f"{stated.source.file}: is in {stated.space}, expected voxel")
    steps = []
    for point in stated.points:
        said = {"class": class_name, "kind": "click", "at": list(point.voxel), "positive": point.positive}
        steps.append(Step("click", said | {"restored": True}, class_name, ClassPrompts(points=(point,))))
    for scribble in stated.scribbles:
        places = [list(point.voxel) for point in scribble.points]
        said = {"class": class_name, "kind": "scribble", "at": places, "positive": scribble.positive}
        steps.append(Step("scribble", said | {"restored": True}, class_name, ClassPrompts(scribbles=(scribble,))))
    for corners in stated.boxes:
        low, high = (np.rint(extreme(corners, 0)).astype(int).tolist() for extreme in (np.min, np.max))
        said = {"class": class_name, "kind": "box", "low": low, "high": high}
        box = Box(as_coordinates(low, "a box's lowest corner"), as_coordinates(high, "a box's highest corner"))
        steps.append(Step("box", said | {"restored": True}, class_name, ClassPrompts(boxes=(box,))))
    return steps
