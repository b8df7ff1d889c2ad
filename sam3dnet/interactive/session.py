"""Prompts one after the other on one image, as in a viewer: every prompt gives a mask at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam3dnet.errors import PromptError
from sam3dnet.inference.images import ImageSource
from sam3dnet.interactive.case import PromptedCase
from sam3dnet.interactive.classes import find_class, prompt_classes
from sam3dnet.interactive.conversation import Act
from sam3dnet.interactive.feature_cache import DEFAULT_BYTES, FeatureCache, FeaturePool
from sam3dnet.model import Model, load_model
from sam3dnet.preprocessing.geometry import CaseGeometry, Mask, Space, case_geometry
from sam3dnet.prompts.placing import place_prompts
from sam3dnet.prompts.types import Box, ClassPrompts, Coordinates, Point, Scribble, counts_by_class

if TYPE_CHECKING:
    from sam3dnet.interactive.planes import Picture


@dataclass(frozen=True, eq=False)
class _Image:
    """What belongs to the image that is set."""

    source: ImageSource
    case: PromptedCase
    geometry: CaseGeometry
    properties: dict[str, Any]
    space: Space


@dataclass(frozen=True, eq=False)
class _Prompt:
    """One prompt as the user gave it."""

    class_name: str
    act: Act
    counts: dict[str, int]


class PromptSession:
    """A trained model and one image at a time, segmented automatically, then corrected by prompts.

    A click that agrees with the mask leaves it as it is. The masks are those of `sam3d_predict --prompts` with the same
    prompts, or nearly those: a file says all at once.

    Args:
        model: From `load_model`; or what that loads one from, with its defaults.
        instance: Whether masks and label maps hold only the objects that prompts name, as after `sam3d_predict
            --instance`; until one is named all is shown.
        cache_bytes: What the features of the image's windows may take, so that further prompts cost little; or a pool
            that several sessions share.

    Attributes:
        class_names: What prompts can be about.

    Raises:
        CheckpointError, PlanError: If the model cannot be loaded.
        PromptError: If it does not answer prompts.
    """

    def __init__(
        self,
        model: Model | Path | str | int,
        *,
        instance: bool = False,
        cache_bytes: int | FeaturePool = DEFAULT_BYTES,
    ):
        model = model if isinstance(model, Model) else load_model(model)
        self._model = model.loaded
        self._networks = model.networks
        self._input = model.input
        self._classes = prompt_classes(self._model.labels)
        self.class_names = tuple(self._classes)
        self._options: dict[str, Any] = {**model.options, "instance": instance}
        self._cache_bytes = cache_bytes
        self._image: _Image | None = None
        self._prompts: list[_Prompt] = []
        self._labels: np.ndarray | None = None

    def set_image(
        self,
        image: ImageSource,
        spacing_mm: Sequence[float] | None = None,
        space: Space = "voxel",
        on_progress: Callable[[float], None] | None = None,
    ) -> np.ndarray:
        """Take an image, segment it automatically, and forget all prompts.

        Args:
            image: A file, of which further channels lie beside the first (CASE_0000, CASE_0001, ...); the files of all
                channels; or an array (Z, Y, X) or (C, Z, Y, X).
            spacing_mm: (Z, Y, X) of an array; a file says its own.
            space: Of all coordinates that follow: "LPS" or "RAS" in millimetres, (x, y, z), or "voxel", the index
                (i, j, k) in the image's file; of an array the index in reversed order, (x, y, z).
            on_progress: Called with the share that is done, from 0 to 1.

        Returns:
            The automatic label map, on the grid of the array, or of the file as nnU-Net's reader gives it: (Z, Y, X).

        Raises:
            DatasetError: If the image is damaged or not as the model wants it, or an array comes without its spacing.
            PromptError: If millimetres are given for an image without a place.
        """
        preprocessed, properties = self._input.take(image, spacing_mm)
        geometry = case_geometry(properties, self._model.plans.transpose_forward, preprocessed.shape[1:])
        geometry.from_array([0, 0, 0], space)  # raises where the image has no place in the world
        case = PromptedCase(
            self._model,
            self._networks,
            (preprocessed, properties),
            cache=FeatureCache(self._cache_bytes),
            on_progress=on_progress,
            **self._options,
        )
        self._image = _Image(image, case, geometry, properties, space)
        self.reset()
        return self.label_map()

    def click(self, at: Coordinates, positive: bool = True, class_name: str | None = None) -> Mask:
        """Say that a class is, or is not, at a point.

        Args:
            at: In the space of `set_image`.
            positive: Whether the class is there; the mask obeys at the voxel that holds the point.
            class_name: May be left out where the model has only one.

        Returns:
            The class's mask under all prompts so far, bool, (Z, Y, X) of the image's grid.

        Raises:
            PromptError: If the point lies outside of the image, or the class is unknown.
        """
        return self.prompt(ClassPrompts(points=(Point(at, positive),)), class_name)

    def box(self, low: Coordinates, high: Coordinates, class_name: str | None = None) -> Mask:
        """Draw a box around an object, or around a slice of it; arguments and result otherwise as of `click`."""
        return self.prompt(ClassPrompts(boxes=(Box(low, high),)), class_name)

    def scribble(self, at: Sequence[Coordinates], positive: bool = True, class_name: str | None = None) -> Mask:
        """Draw a stroke along which a class is, or is not.

        Args:
            at: Its places, (N, 3); the mask obeys at the voxels that hold them. What lies outside of the image is
                left out.
            positive: Whether the class is there.
            class_name: As of `click`.

        Returns:
            As of `click`.

        Raises:
            PromptError: If all of it lies outside of the image, it is empty, or the class is unknown.
        """
        return self.prompt(ClassPrompts(scribbles=(Scribble(tuple(at), positive),)), class_name)

    def set_mask(self, mask_ZYX: Mask, class_name: str | None = None) -> Mask:
        """Give a previous mask, bool on the image's grid, in place of an earlier one of the class; see `click`."""
        return self.prompt(ClassPrompts(mask=mask_ZYX), class_name)

    def prompt(self, prompts: ClassPrompts, class_name: str | None = None) -> Mask:
        """Say several things about a class before its mask is computed; `undo` takes all of them back.

        What is said at once has no order, but that of two clicks on one voxel the later counts.

        Args:
            prompts: In the space of `set_image`; the mask on the image's grid.
            class_name: May be left out where the model has only one.

        Returns:
            As of `click`.

        Raises:
            PromptError: If a point or a whole box lies outside of the image, the mask does not fit it, or the class is
                unknown. After this, and any other error, it is as if nothing had been said.
        """
        self.say(prompts, class_name)
        try:
            return self.mask(class_name)
        except Exception:  # whoever asks next must not compute it again
            self.take_back()
            raise

    def take_back(self) -> None:
        """Do as `undo`, but compute no mask; nothing happens where there is no prompt."""
        if self._prompts:
            self._prompts.pop()
            self._labels = None

    def say(self, prompts: ClassPrompts, class_name: str | None = None) -> None:
        """Do as `prompt`, but compute no mask before one is asked for."""
        name, image = find_class(self._classes, class_name), self._set_image()
        placed = place_prompts(prompts, image.space, image.geometry)
        self._prompts.append(_Prompt(name, {self._classes[name].index: placed}, prompts.counts()))
        self._labels = None

    def undo(self) -> Mask:
        """Take back the last prompt; give the mask of its class without it.

        Raises:
            PromptError: If there is none.
        """
        if not self._prompts:
            raise PromptError("there is no prompt to take back")
        undone = self._prompts.pop()
        self._labels = None
        return self.mask(undone.class_name)

    def look_ahead(self) -> bool:
        """Use spare time to make the first prompts quick: prepare for those in one more part of the image.

        Returns:
            Whether there may be more to prepare.
        """
        return self._set_image().case.look_ahead()

    def reset(self) -> None:
        """Take back all prompts."""
        self._prompts = []
        self._labels = None

    def mask(self, class_name: str | None = None) -> Mask:
        """Give the mask of a class under all prompts so far, bool, (Z, Y, X) of the image's grid."""
        return self._classes[find_class(self._classes, class_name)].mask(self._current_labels())

    def label_map(self) -> np.ndarray:
        """Give the label map under all prompts so far, (Z, Y, X) of the image's grid."""
        return self._current_labels().copy()

    def picture(self, class_name: str | None = None) -> "Picture":
        """Draw the mask of a class on the three planes through the last click, or through its middle.

        Args:
            class_name: May be left out where the model has only one.

        Returns:
            A picture that notebooks show, and that `save` writes.
        """
        from sam3dnet.interactive.planes import Picture, three_planes

        name, image = find_class(self._classes, class_name), self._set_image()
        mask_ZYX = self.mask(name)
        said = [prompt.act[self._classes[name].index] for prompt in self._prompts if prompt.class_name == name]
        clicks = [point.voxel for placed in said for point in placed.on_image.clicks]
        grey_ZYX = self._input.voxels(image.source)[0]
        nothing = np.zeros_like(mask_ZYX)
        at = clicks[-1] if clicks else None
        return Picture(three_planes(grey_ZYX, nothing, mask_ZYX, image.properties["spacing"], at))

    def automatic_labels(self) -> np.ndarray:
        """Give the label map without prompts, not to be changed."""
        return self._set_image().case.label_map([])

    @property
    def num_prompts(self) -> int:
        """How many prompts `undo` can take back."""
        return len(self._prompts)

    def prompt_counts(self) -> dict[str, dict[str, int]]:
        """Count the prompts so far by class and kind: points, boxes, scribbles, masks."""
        return counts_by_class((prompt.class_name, prompt.counts) for prompt in self._prompts)

    @property
    def geometry(self) -> CaseGeometry:
        """The way between coordinates and voxels of the image that is set."""
        return self._set_image().geometry

    @property
    def properties(self) -> dict[str, Any]:
        """What nnU-Net's reader and preprocessor say of the image that is set."""
        return self._set_image().properties

    @property
    def remarks(self) -> list[str]:
        """What is unusual of the image that is set, in sentences for its user."""
        return self._input.remarks(self._set_image().source)

    def labels(self) -> np.ndarray:
        """Give what `label_map` gives without a copy; it is not to be changed, and stays as it is."""
        return self._current_labels()

    def _current_labels(self) -> np.ndarray:
        image = self._set_image()
        if self._labels is None:
            self._labels = image.case.label_map([prompt.act for prompt in self._prompts])
        return self._labels

    def _set_image(self) -> _Image:
        if self._image is None:
            raise PromptError("no image is set; call set_image first")
        return self._image
