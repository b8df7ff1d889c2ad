"""Prompts on an image of a dataset that has no model yet, answered slice by slice by a network for pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from sam3dnet.errors import PromptError
from sam3dnet.interactive.classes import PromptClass, find_class
from sam3dnet.interactive.slices import PictureNetwork, SlicedVolume
from sam3dnet.preprocessing.cases import channel_names, foreground_classes
from sam3dnet.preprocessing.geometry import CaseGeometry, Mask, Voxel, case_geometry, nearest_voxel
from sam3dnet.preprocessing.modalities import SOFT_TISSUE_HU
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.world import WORLD
from sam3dnet.prompts.strokes import heard
from sam3dnet.prompts.types import Box, ClassPrompts, Coordinates, Point, Scribble, counts_by_class


@dataclass(frozen=True, eq=False)
class _Image:
    """What belongs to the image that is set."""

    volume: SlicedVolume
    geometry: CaseGeometry
    properties: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Said:
    """A prompt, and the labels before it in the box that it changed; None if it changed nothing."""

    class_name: str
    counts: dict[str, int]
    box: tuple[slice, ...] | None
    before: np.ndarray


class SliceSession:
    """Answers boxes and clicks as a PromptSession does, without a model: nothing is segmented before the first prompt.

    A box draws the object in it, followed beyond its slice where it is one slice thick. A positive click draws the
    object there, where the mask has none yet. A negative one takes the part of the mask out that lies there, in that
    slice alone. Of a stroke the places that say all of it are heard as clicks, and the mask obeys at the others.

    Args:
        network: Sees the slices of the first channel.
        reader: Of the dataset.
        dataset_json: Of the dataset.

    Attributes:
        class_names: What prompts can be about.
    """

    def __init__(self, network: PictureNetwork, reader: DatasetReader, dataset_json: Mapping[str, Any]):
        self._network, self._reader = network, reader
        self._is_ct = str(next(iter(channel_names(dataset_json).values()))).lower() == "ct"
        order = dataset_json.get("regions_class_order")
        self._classes = {
            name: PromptClass(index, int(order[index]) if order else values[0], values)
            for index, (name, values) in enumerate(foreground_classes(dataset_json).items())
        }
        self.class_names = tuple(self._classes)
        self._image: _Image | None = None
        self._said: list[_Said] = []
        self._labels = np.zeros((0, 0, 0), np.uint16)

    def set_image(self, files: Sequence[str | Path], on_progress: Callable[[float], None] | None = None) -> np.ndarray:
        """Take an image, and forget all prompts.

        Args:
            files: Its files, one a channel.
            on_progress: Called with 1.0 when it is read.

        Returns:
            The label map, which is empty: (Z, Y, X).
        """
        paths = [Path(file) for file in files]
        image_CZYX, properties = self._reader.read_images(paths)
        shape = image_CZYX.shape[1:]
        world = self._reader.world_of(paths[0])
        whole = {"shape_before_cropping": shape, "bbox_used_for_cropping": [[0, size] for size in shape]}
        properties = {**properties, **whole, **({} if world is None else {WORLD: world})}
        volume = SlicedVolume(
            image_CZYX[0], properties["spacing"], self._network, SOFT_TISSUE_HU if self._is_ct else None
        )
        self._image = _Image(volume, case_geometry(properties, (0, 1, 2), shape), properties)
        self._labels, self._said = np.zeros(shape, np.uint16), []
        if on_progress is not None:
            on_progress(1.0)
        return self.label_map()

    def click(self, at: Coordinates, positive: bool = True, class_name: str | None = None) -> Mask:
        """Say that a class is, or is not, at a voxel (i, j, k) of the file; see PromptSession."""
        return self.prompt(ClassPrompts(points=(Point(at, positive),)), class_name)

    def box(self, low: Coordinates, high: Coordinates, class_name: str | None = None) -> Mask:
        """Draw a box between two voxels (i, j, k) of the file, which both belong to it; see PromptSession."""
        return self.prompt(ClassPrompts(boxes=(Box(low, high),)), class_name)

    def prompt(self, prompts: ClassPrompts, class_name: str | None = None) -> Mask:
        """Say several things about a class at once; see PromptSession.

        Raises:
            PromptError: If anything lies outside of the image, or there is no such class.
        """
        self.say(prompts, class_name)
        return self.mask(class_name)

    def say(self, prompts: ClassPrompts, class_name: str | None = None) -> None:
        """Do as `prompt`."""
        name, image = find_class(self._classes, class_name), self._set_image()
        boxes = [(self._voxel(box.low), self._voxel(box.high)) for box in prompts.boxes]
        strokes = [*(Scribble((point.at,), point.positive) for point in prompts.points), *prompts.scribbles]
        said = [(self._voxels(heard(one)), self._voxels(one), one.positive) for one in strokes]
        mask_ZYX = self.mask(name)
        for first, last in boxes:
            mask_ZYX |= image.volume.object_within(np.minimum(first, last).tolist(), np.maximum(first, last).tolist())
        if prompts.mask is not None:
            mask_ZYX |= prompts.mask
        for searched, voxels, positive in said:
            self._obey(mask_ZYX, searched if positive else voxels, positive)
            mask_ZYX[tuple(np.transpose(voxels))] = positive
        self._change_to(mask_ZYX, name, prompts.counts())

    def _obey(self, mask_ZYX: Mask, voxels: Sequence[Voxel], positive: bool) -> None:
        """Draw the objects at voxels into a mask, or take its parts there out, where it is not so already."""
        volume = self._set_image().volume
        for voxel in voxels:
            if positive and not mask_ZYX[voxel]:
                mask_ZYX |= volume.object_at(voxel)
                mask_ZYX[voxel] = True
            elif not positive and mask_ZYX[voxel]:
                mask_ZYX &= ~_part_in_slice(mask_ZYX, voxel, volume.axis)

    def _change_to(self, mask_ZYX: Mask, class_name: str, counts: dict[str, int]) -> None:
        """Give a class this mask, and remember what its labels were where that changes them."""
        one, before = self._classes[class_name], self._labels
        is_there = one.mask(before)
        changed = ndimage.find_objects((is_there != mask_ZYX).view(np.uint8))
        box = changed[0] if changed else None
        old = before[:0] if box is None else before[box].copy()
        self._said.append(_Said(class_name, counts, box, old))
        if box is not None:
            labels = np.where(is_there[box] & ~mask_ZYX[box], 0, old)
            self._put(box, np.where(mask_ZYX[box] & ~is_there[box], one.label, labels))

    def _put(self, box: tuple[slice, ...], labels: np.ndarray) -> None:
        """Change the labels in a box; those who were given the label map keep it as it was."""
        self._labels = self._labels.copy()
        self._labels[box] = labels

    def undo(self) -> Mask:
        """Take back the last prompt; give the mask of its class without it.

        Raises:
            PromptError: If there is none.
        """
        if not self._said:
            raise PromptError("there is no prompt to take back")
        last = self._said.pop()
        if last.box is not None:
            self._put(last.box, last.before)
        return self.mask(last.class_name)

    def reset(self) -> None:
        """Take back all prompts."""
        self._labels = np.zeros_like(self._labels)
        self._said = []

    def mask(self, class_name: str | None = None) -> Mask:
        """Give the mask of a class, bool, (Z, Y, X)."""
        return self._classes[find_class(self._classes, class_name)].mask(self._labels)

    def labels(self) -> np.ndarray:
        """Give the label map, not to be changed: (Z, Y, X)."""
        return self._labels

    def label_map(self) -> np.ndarray:
        """Give the label map: (Z, Y, X)."""
        return self._labels.copy()

    def automatic_labels(self) -> np.ndarray:
        """Give the label map without prompts, which is empty."""
        return np.zeros_like(self._labels)

    def look_ahead(self) -> bool:
        """Use spare time, of which nothing is made here."""
        return False

    @property
    def remarks(self) -> list[str]:
        """What users must know of what they see."""
        return [
            f"No model knows these classes yet: draw a box around an object, in the slice where it is largest; "
            f"{self._network.name} follows it from slice to slice. Look at each slice before you accept."
        ]

    def prompt_counts(self) -> dict[str, dict[str, int]]:
        """Count the prompts so far by class and kind; see PromptSession."""
        return counts_by_class((said.class_name, said.counts) for said in self._said)

    @property
    def properties(self) -> dict[str, Any]:
        """What nnU-Net's reader says of the image."""
        return self._set_image().properties

    def _voxels(self, stroke: Scribble) -> list[Voxel]:
        return [self._voxel(at) for at in stroke.at]

    def _voxel(self, at: Coordinates) -> Voxel:
        """Give the voxel of the array (z, y, x) at a voxel (i, j, k) of the file.

        Raises:
            PromptError: If it lies outside.
        """
        geometry = self._set_image().geometry
        place = geometry.to_array(at, "voxel")
        if not all(-0.5 <= where < size - 0.5 for where, size in zip(place, geometry.array_shape, strict=True)):
            raise PromptError(f"{tuple(at)} lies outside of the image of {geometry.array_shape[::-1]} voxels (x, y, z)")
        return nearest_voxel(place, geometry.array_shape)

    def _set_image(self) -> _Image:
        if self._image is None:
            raise PromptError("no image is set; call set_image first")
        return self._image


def _part_in_slice(mask_ZYX: Mask, voxel: Voxel, axis: int) -> Mask:
    """Give the part of a mask that hangs together with a voxel within its slice."""
    part_ZYX = np.zeros_like(mask_ZYX)
    where = [slice(None)] * 3
    where[axis] = slice(voxel[axis], voxel[axis] + 1)
    parts, _ = ndimage.label(mask_ZYX[tuple(where)])
    inside = list(voxel)
    inside[axis] = 0
    number = parts[tuple(inside)]
    part_ZYX[tuple(where)] = (parts == number) & (number > 0)
    return part_ZYX
