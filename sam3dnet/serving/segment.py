"""What a viewer segments: one class of one image, on the viewer's own array, told as the box that changed.

A viewer knows its array alone, not where it lies or how the model wants it turned; here it is brought to the axes of
the images that the model was trained on, and masks are brought back. Nothing here knows how requests come.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import PromptError
from sam3dnet.interactive.session import PromptSession
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.types import Box, ClassPrompts, Coordinates, Point, Scribble, as_coordinates, format_coordinates
from sam3dnet.serving.turning import Turn, turn_between

logger = logging.getLogger(__name__)

Sides = tuple[tuple[int, int], ...]  # of a box, half-open, an entry an axis
OF_NAPARI = "SAR"  # where the axes run that its reader of NIfTI files gives
LPS = "LPS"
LARGEST_SCRIBBLE = 100_000  # voxels
FACE = 0.5 + 1e-3  # of a voxel, from its centre


@dataclass(frozen=True, eq=False)
class Found:
    """The file that a viewer's array is of.

    Attributes:
        name: Of the case.
        files: Of all channels.
        turn: From the viewer's array to the one that the model's reader gives.
    """

    name: str
    files: Sequence[Path]
    turn: Turn


class Recognise(Protocol):
    """Finds the file that a viewer's array is of."""

    def __call__(self, image_CZYX: npt.NDArray[Any]) -> Found | None:
        """Give it; None if there is none."""


@dataclass(frozen=True, eq=False)
class Change:
    """What a request changed on the viewer's array.

    Attributes:
        sides: Of the box around all that changed; None if nothing did.
        values: 0 or 1 in the box, uint8.
    """

    sides: Sides | None = None
    values: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class _Image:
    """The image of a viewer."""

    shape: Voxel
    turn: Turn


class Segment:
    """One class of one image after the other, as a viewer asks for it.

    Args:
        session: Of this viewer alone.
        class_name: One of the session's.
        orientation: In which the model's images are stored, such as LPS, of index (i, j, k); "" if they have several.
        recognise: Finds the file that an array is of; None to take arrays as they come.

    Attributes:
        class_name: As given.
    """

    def __init__(
        self, session: PromptSession, class_name: str, orientation: str = LPS, recognise: Recognise | None = None
    ):
        self.class_name = class_name
        self._session = session
        self._orientation = orientation
        self._recognise = recognise
        self._image: _Image | None = None
        self._shown: npt.NDArray[Any] | None = None  # what the viewer's buffer holds
        self._given: npt.NDArray[Any] | None = None  # a mask from the viewer, which it shows as it is

    def set_image(
        self,
        image_CZYX: npt.NDArray[Any],
        spacing_mm: Sequence[float] | None,
        axes: str | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Take an image and segment it automatically.

        Args:
            image_CZYX: On the viewer's axes.
            spacing_mm: Along them; all negative, as napari has it of NIfTI files, means axes to Superior, Anterior and
                Right.
            axes: To which sides of the patient they run, such as "SPL", where the viewer says so; else they are taken
                for those of the model's images.
            on_progress: Called with the share that is done, before anything is too; it may raise to end it.

        Raises:
            DatasetError: If the image is not as the model wants it.
        """
        if on_progress is not None:
            on_progress(0.0)
        found = None if self._recognise is None else self._recognise(image_CZYX)
        z, y, x = image_CZYX.shape[-3:]
        self._shown = self._given = self._image = None
        if found is not None:
            self._session.set_image(list(found.files), on_progress=on_progress)
            self._image = _Image((z, y, x), found.turn)
            return
        turn, spacing = self._turn_of(spacing_mm, axes), None
        if spacing_mm is not None:
            spacing = turn.spacing([abs(mm) for mm in spacing_mm])
        self._session.set_image(turn.forth(image_CZYX), spacing, on_progress=on_progress)
        self._image = _Image((z, y, x), turn)

    def look_ahead(self) -> bool:
        """Use spare time for what prompts will need; tell whether there may be more."""
        return self._image is not None and self._session.look_ahead()

    def set_buffer(self, shape: Sequence[int], dtype: npt.DTypeLike = np.uint8) -> None:
        """Begin with an empty mask in the viewer.

        Raises:
            PromptError: If its shape is not the image's.
        """
        image = self._require_image()
        if tuple(shape) != image.shape:
            raise PromptError(f"the target buffer has shape {tuple(shape)}, the image {image.shape}; give it that one")
        self._shown = np.zeros(image.shape, dtype)

    def point(self, at: Sequence[float], positive: bool, run: bool = True) -> Change:
        """Hear a click at an index of the viewer's array; one outside of it changes nothing."""
        image = self._require_image()
        place = as_coordinates(at, "a point")
        if any(not -FACE <= one <= size - 1 + FACE for one, size in zip(place, image.shape, strict=True)):
            logger.warning(
                "a click at %s lies outside of the image, whose shape is %s; it is not heard",
                format_coordinates(place),
                image.shape,
            )
            return Change()
        voxel = [min(max(int(np.floor(one + 0.5)), 0), size - 1) for one, size in zip(place, image.shape, strict=True)]
        return self._say(ClassPrompts(points=(Point(self._in_session(voxel), positive),)), run)

    def box(self, sides: Sequence[Sequence[float]], positive: bool, run: bool = True) -> Change:
        """Hear a box, half-open along each axis of the viewer's array; one outside of it changes nothing.

        A negative one says of all voxels of the mask within it that the class is not there.
        """
        image = self._require_image()
        low, high = (as_coordinates([side[end] for side in sides], "a box's corner") for end in (0, 1))
        first = [int(at) for at in np.floor(np.minimum(low, high) + 0.5)]
        last = [int(at) for at in np.maximum(np.floor(np.maximum(low, high) + 0.5) - 1, first)]
        if any(end < 0 or start >= size for start, end, size in zip(first, last, image.shape, strict=True)):
            logger.warning("a box %s lies outside of the image, whose shape is %s; it is not heard", sides, image.shape)
            return Change()
        if not positive:
            part = tuple(slice(max(start, 0), end + 1) for start, end in zip(first, last, strict=True))
            places = np.argwhere(self.mask()[part]) + np.array([one.start for one in part])
            return self._not_in(places, run)
        corners = [
            self._in_session([min(max(one, 0), size - 1) for one, size in zip(corner, image.shape, strict=True)])
            for corner in (first, last)
        ]
        lowest, highest = np.min(corners, 0), np.max(corners, 0)
        box = Box(as_coordinates(lowest, "a box's corner"), as_coordinates(highest, "a box's corner"))
        return self._say(ClassPrompts(boxes=(box,)), run)

    def scribble(self, drawn_zyx: npt.NDArray[Any], corner: Sequence[int], positive: bool, run: bool = True) -> Change:
        """Hear a stroke of a pencil: what is not 0 in a part of the viewer's array that begins at a corner.

        Raises:
            PromptError: If it is far more than a stroke.
        """
        places = self._drawn(drawn_zyx, corner)
        return Change() if places is None else self._scribbled(places, positive, run)

    def lasso(self, drawn_zyx: npt.NDArray[Any], corner: Sequence[int], positive: bool, run: bool = True) -> Change:
        """Hear an outline around an object, filled, as `scribble` has it: a positive one is heard as the box around it;
        a negative one says of all voxels of the mask within it that the class is not there.
        """
        places = self._drawn(drawn_zyx, corner)
        if places is None:
            return Change()
        if positive:
            return self.box(np.stack([places.min(0), places.max(0) + 1], 1).tolist(), positive, run)
        return self._not_in(places, run)

    def initial_mask(self, mask_ZYX: npt.NDArray[Any], run: bool = False) -> Change:
        """Begin anew with a mask, which the viewer's buffer holds from now on.

        Raises:
            PromptError: If its shape is not the image's.
        """
        image = self.require_shape(mask_ZYX.shape, "the mask")
        shown = self._buffer()
        self._session.reset()
        np.copyto(shown, mask_ZYX.astype(shown.dtype, copy=False))
        self._given = shown.copy()
        return self._say(ClassPrompts(mask=np.ascontiguousarray(image.turn.forth(mask_ZYX != 0))), run)

    def require_shape(self, shape: Sequence[int], what: str) -> "_Image":
        """Check that something fits the image.

        Raises:
            PromptError: If its shape is not the image's.
        """
        image = self._require_image()
        if tuple(shape) != image.shape:
            raise PromptError(f"{what} has shape {tuple(shape)}, the image {image.shape}; save it on its grid")
        return image

    def predict(self) -> Change:
        """Give the mask under all that was said; before anything is said, the automatic one."""
        self._buffer()
        return self._show(self._session.mask(self.class_name))

    def undo(self) -> Change | None:
        """Take back what was said last; None if there is nothing."""
        self._buffer()
        if not self._session.num_prompts:
            return None
        if self._given is not None and self._session.num_prompts == 1:
            self._given = None
        mask_ZYX = self._session.undo()
        if self._given is not None and self._session.num_prompts == 1:
            return self._changed_to(self._given)
        return self._show(mask_ZYX)

    def reset(self) -> None:
        """Take back everything; the viewer empties its buffer itself."""
        if self._image is not None:
            self._session.reset()
        self._given = None
        if self._shown is not None:
            self._shown.fill(0)

    def mask(self) -> Mask:
        """Give the whole mask under all that was said, on the viewer's axes."""
        return self._require_image().turn.back(self._session.mask(self.class_name))

    def answered(self, say: Callable[[], object]) -> Mask:
        """Say something, and give the whole mask; where that fails nothing was said."""
        known = self._session.num_prompts
        say()
        try:
            return self.mask()
        except Exception:
            if self._session.num_prompts > known:
                self._session.take_back()
            raise

    def _drawn(self, drawn_zyx: npt.NDArray[Any], corner: Sequence[int]) -> npt.NDArray[np.int64] | None:
        """Give the voxels of the viewer's array that were drawn, (N, 3); None where there are none in the image."""
        shape = self._require_image().shape
        places = np.argwhere(drawn_zyx) + np.asarray(corner)
        inside = np.all((places >= 0) & (places < shape), axis=1)
        if not inside.any():
            logger.warning("what was drawn lies outside of the image, or is empty; it is not heard")
            return None
        return np.asarray(places[inside])

    def _not_in(self, places: npt.NDArray[np.int64], run: bool) -> Change:
        """Say that the class is not where the mask has it among some voxels."""
        mask_ZYX = self.mask()
        held = places[mask_ZYX[tuple(places.T)]]
        if not len(held):
            logger.warning("the mask has nothing where a negative box or lasso was drawn; it is not heard")
            return Change()
        return self._scribbled(held, False, run)

    def _scribbled(self, places: npt.NDArray[np.int64], positive: bool, run: bool) -> Change:
        if len(places) > LARGEST_SCRIBBLE:
            raise PromptError(
                f"{len(places)} voxels were drawn at once, at most {LARGEST_SCRIBBLE} are heard; draw less"
            )
        image = self._require_image()
        placed = [image.turn.place(place, image.shape) for place in places.tolist()]
        at = self._session.geometry.from_array(placed, "voxel")
        return self._say(ClassPrompts(scribbles=(Scribble(tuple(map(tuple, at.tolist())), positive),)), run)

    def _say(self, prompts: ClassPrompts, run: bool) -> Change:
        if not run:
            self._session.say(prompts, self.class_name)
            return Change()
        self._buffer()
        return self._show(self._session.prompt(prompts, self.class_name))

    def _show(self, mask_ZYX: Mask) -> Change:
        """Tell the viewer the difference between a mask of the session's and what it shows."""
        return self._changed_to(self._require_image().turn.back(mask_ZYX))

    def _changed_to(self, wanted: npt.NDArray[Any]) -> Change:
        shown = self._buffer()
        sides = box_around(shown != wanted)
        if sides is None:
            return Change()
        box = tuple(slice(*side) for side in sides)
        shown[box] = wanted[box]
        return Change(sides, shown[box].astype(np.uint8))

    def _in_session(self, voxel: Sequence[int]) -> Coordinates:
        """Bring an index of the viewer's array to the space of the session."""
        image = self._require_image()
        placed = image.turn.place(voxel, image.shape)
        return as_coordinates(self._session.geometry.from_array(placed, "voxel"), "a point")

    def _turn_of(self, spacing_mm: Sequence[float] | None, axes: str | None) -> Turn:
        """Give the way from a viewer's axes to those of the model's images."""
        if axes is not None:
            return turn_between(axes, self._orientation[::-1]) if self._orientation else Turn()
        if spacing_mm is None or not all(mm < 0 for mm in spacing_mm):
            return Turn()
        if not self._orientation:
            logger.warning(
                "the viewer's array is along the patient's axes, the model's images were stored in several "
                "orientations: %s is taken; start sam3d_serve with --images to take it from the file",
                LPS,
            )
        return turn_between(OF_NAPARI, (self._orientation or LPS)[::-1])

    def _require_image(self) -> _Image:
        if self._image is None:
            raise PromptError("there is no image yet; load one in the viewer first")
        return self._image

    def _buffer(self) -> npt.NDArray[Any]:
        self._require_image()
        if self._shown is None:
            raise PromptError("there is no target buffer yet; connect again in the viewer")
        return self._shown


def orientation_of(plans: Mapping[str, Any], reorients: bool) -> str:
    """Say in which orientation a model's images are stored, as its reader gives them; "" if in several, or none.

    Plans of before gave two axes of oblique images the same letter.

    Args:
        plans: Of the model.
        reorients: Whether its reader gives arrays along the world's axes.
    """
    if reorients:
        return OF_NAPARI[::-1]
    known = plans.get("sam3d", {}).get("orientations", [])
    return str(known[0]) if len(known) == 1 and len({*known[0]}) == len(known[0]) else ""


def box_around(mask: Mask) -> Sides | None:
    """Give the smallest box that holds all of a mask; None if it is empty."""
    sides = []
    for axis in range(3):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(along):
            return None
        sides.append((int(along[0]), int(along[-1]) + 1))
    return tuple(sides)
