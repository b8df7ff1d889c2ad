"""How sure a model is of what it segmented: the Dice to be expected of each class, and whether each object is one.

Both come from the probability of the label that each voxel got. The Dice that is expected of a mask M is
2 * sum of p within M / (voxels of M + sum of p everywhere): the expected intersection over the expected sizes. What
speaks for an object is the mean p of its voxels. A network trained for Dice is surer than it should be;
`calibration.py` turns both into what validation found.

Axes in names: K classes or regions, M maps, n p voxels or planes, Z Y X voxels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from sam3dnet.inference.calibration import UNCALIBRATED, Calibration
from sam3dnet.inference.companions import Slices
from sam3dnet.inference.on_disk import let_go, room_for
from sam3dnet.inference.probabilities import cropped, image_shape
from sam3dnet.inference.windows import in_parts
from sam3dnet.planning.objects import LabelBoxes, mask_of, union
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.geometry import place_in_array, place_in_file
from sam3dnet.prompts.components import connected, partners

ENDING = "_confidence.json"
FORMAT = "sam3dnet-confidence/1"
LEAST_IOU = 0.1  # with a true object, from which on an object is one; as lesions are counted
LARGEST_HALF = torch.finfo(torch.half).max

ReadTruth = Callable[[], npt.NDArray[Any]]


@dataclass(frozen=True)
class ObjectConfidence:
    """A connected component of a class.

    Attributes:
        certainty: Mean probability of its voxels.
        volume_ml: Its size.
        at: Its surest voxel, (i, j, k) as the image's file counts them, as prompts name voxels.
        real: Whether it has a partner in the truth; None without truth, or where most of it is not annotated.
    """

    certainty: float
    volume_ml: float
    at: tuple[int, int, int]
    real: bool | None = None


@dataclass(frozen=True)
class ClassConfidence:
    """A class of a case.

    Attributes:
        expected_dice: From the probabilities; None where nothing of the class was segmented.
        volume_ml: What was segmented.
        expected_ml: What the probabilities add up to.
        objects: Its components, the largest first.
        dice: With the truth; None without one, and where both are empty.
    """

    expected_dice: float | None
    volume_ml: float
    expected_ml: float
    objects: tuple[ObjectConfidence, ...]
    dice: float | None = None


class ConfidenceVolume:
    """Takes the logits of an image in any order, and says how sure they are of its label map.

    Args:
        properties: What nnU-Net's preprocessor says about the case: shapes, spacing and the box of the crop.
        plans: nnU-Net's PlansManager.
        labels: nnU-Net's LabelManager.
        dataset_json: Names the classes.
        calibration: Of the model.
        read_truth: Gives the true label map on the image's grid, in validation.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        plans: Any,
        labels: Any,
        dataset_json: Mapping[str, Any],
        calibration: Calibration = UNCALIBRATED,
        read_truth: ReadTruth | None = None,
    ):
        self._properties, self._labels = properties, labels
        self._classes = foreground_classes(dataset_json)
        self._ignore = dataset_json["labels"].get("ignore")
        self._calibration, self._read_truth = calibration, read_truth
        maps = len(self._classes) if labels.has_regions else 1
        self._certainty = room_for((maps, *image_shape(properties, plans)), torch.half, "confidences")
        self._cropped_Mzyx = torch.from_numpy(cropped(self._certainty.numpy(), properties, plans))
        self._crop_shape = tuple(self._cropped_Mzyx.shape[1:])
        self._sums_Kz = torch.zeros(labels.num_segmentation_heads, self._crop_shape[0], dtype=torch.float64)
        self._kept_Kzyx: Tensor | None = None  # where logits come channel by channel

    def put(self, channels: int | slice, box: Slices, logits: Tensor) -> None:
        """Take the logits of a channel, or of all, in planes of the image that the plan transposed and cropped."""
        if isinstance(channels, slice):
            self._take(logits, box[0])
            return
        if self._kept_Kzyx is None:
            self._kept_Kzyx = room_for((len(self._sums_Kz), *self._crop_shape), torch.half, "logits")
        self._kept_Kzyx[(channels, *box)] = logits.clamp(-LARGEST_HALF, LARGEST_HALF).to(self._kept_Kzyx)
        let_go(self._kept_Kzyx)

    def _take(self, logits_KnYX: Tensor, planes: slice) -> None:
        values_KnYX = self._labels.apply_inference_nonlin(logits_KnYX.float())
        self._sums_Kz[:, planes] = values_KnYX.sum((2, 3), dtype=torch.float64).cpu()
        certain_MnYX = values_KnYX if self._labels.has_regions else values_KnYX.amax(0, keepdim=True)
        self._cropped_Mzyx[:, planes] = certain_MnYX.to(self._cropped_Mzyx)
        let_go(self._certainty)

    def write(self, stem: Path, labels_ZYX: np.ndarray, before_ZYX: np.ndarray | None = None) -> None:
        """Write CASE_confidence.json; see `Companion.write`."""
        self._take_kept()
        measured = self.measure(labels_ZYX, before_ZYX)
        write_json(stem.with_name(f"{stem.name}{ENDING}"), as_json(measured, self._calibration))

    def _take_kept(self) -> None:
        if self._kept_Kzyx is None:
            return
        for planes in in_parts(self._crop_shape[0], 4 * len(self._sums_Kz) * prod(self._crop_shape[1:])):
            self._take(self._kept_Kzyx[:, planes], planes)
            let_go(self._kept_Kzyx)

    def measure(self, labels_ZYX: np.ndarray, before_ZYX: np.ndarray | None = None) -> dict[str, ClassConfidence]:
        """Say by class how sure the logits that came are of a label map.

        Args:
            labels_ZYX: On the image's grid.
            before_ZYX: What the logits say, where some of it was taken out; that is not expected any more.
        """
        truth_ZYX = None if self._read_truth is None else self._read_truth()
        maps = _LabelMaps(labels_ZYX, before_ZYX, truth_ZYX, self._ignore, self._properties)
        measured = {}
        for number, (name, values) in enumerate(self._classes.items()):
            channel, of_map = (number, number) if self._labels.has_regions else (values[0], 0)
            certainty_ZYX = self._certainty[of_map].numpy()
            expected = float(self._sums_Kz[channel].sum())
            measured[name] = maps.confidence_of(values, certainty_ZYX.__getitem__, expected)
        return measured

    def close(self) -> None:
        """Give the room back."""
        del self._certainty, self._cropped_Mzyx
        self._kept_Kzyx = None


class _LabelMaps:
    """What a label map is compared with, class by class.

    Args:
        labels_ZYX: On the grid of the image.
        before_ZYX: The same before something was taken out; None where nothing was.
        truth_ZYX: The true one; None for none.
        ignored: Its label of what nobody has annotated; None for none.
        properties: That nnU-Net's reader gives of the image.
    """

    def __init__(
        self,
        labels_ZYX: npt.NDArray[Any],
        before_ZYX: npt.NDArray[Any] | None,
        truth_ZYX: npt.NDArray[Any] | None,
        ignored: int | None,
        properties: Mapping[str, Any],
    ):
        self._labels_ZYX, self._truth_ZYX, self._properties = labels_ZYX, truth_ZYX, properties
        self._before_ZYX = labels_ZYX if before_ZYX is None else before_ZYX
        self._ignored_ZYX = np.zeros(labels_ZYX.shape, bool)  # nothing is compared there
        if truth_ZYX is not None and ignored is not None:
            self._ignored_ZYX = truth_ZYX == ignored
        self._true_counts = None if truth_ZYX is None else _count(truth_ZYX)
        self._voxel_ml = prod(float(size) for size in properties["spacing"]) / 1000
        self._boxes = [LabelBoxes(one) for one in (labels_ZYX, before_ZYX) if one is not None]
        self._true_boxes = [] if truth_ZYX is None else [LabelBoxes(truth_ZYX)]

    def confidence_of(
        self, values: tuple[int, ...], certainty_in: Callable[[Slices], npt.NDArray[Any]], expected: float
    ) -> ClassConfidence:
        """Say how sure a network is of a class.

        Args:
            values: Its labels.
            certainty_in: Gives the probability of what the network says, of the voxels of a box (Z, Y, X).
            expected: Voxels that all probabilities of the class add up to.
        """
        size, annotated, common, inside = 0, 0, 0, 0.0
        objects: tuple[ObjectConfidence, ...] = ()
        box = union(one.of(values) for one in self._boxes)
        if box is not None:
            box = union([box, *(one.of(values) for one in self._true_boxes)]) or box
            mask_ZYX, before_ZYX = (mask_of(one[box], values) for one in (self._labels_ZYX, self._before_ZYX))
            certainty_ZYX = certainty_in(box)
            size, inside = int(mask_ZYX.sum()), float(certainty_ZYX[mask_ZYX].sum(dtype=np.float64))
            expected -= float(certainty_ZYX[before_ZYX & ~mask_ZYX].sum(dtype=np.float64))
            true_ZYX = None if self._truth_ZYX is None else mask_of(self._truth_ZYX[box], values)
            annotated = int((mask_ZYX & ~self._ignored_ZYX[box]).sum())
            common = 0 if true_ZYX is None else int((mask_ZYX & true_ZYX).sum())
            objects = self._objects(mask_ZYX, certainty_ZYX, true_ZYX, box) if size else ()
        expected = max(expected, inside)
        return ClassConfidence(
            2 * inside / (size + expected) if size else None,
            size * self._voxel_ml,
            expected * self._voxel_ml,
            objects,
            None
            if self._true_counts is None
            else _dice(common, annotated + sum(self._true_counts.get(one, 0) for one in values)),
        )

    def _objects(
        self, mask_ZYX: np.ndarray, certainty_ZYX: np.ndarray, true_ZYX: np.ndarray | None, box: Slices
    ) -> tuple[ObjectConfidence, ...]:
        components_ZYX, count = connected(mask_ZYX)
        numbers = np.arange(1, count + 1)
        sizes = np.bincount(components_ZYX.ravel(), minlength=count + 1)[1:]
        sums = np.bincount(components_ZYX.ravel(), certainty_ZYX.ravel().astype(np.float64), minlength=count + 1)[1:]
        surest = np.array(ndimage.maximum_position(certainty_ZYX, components_ZYX, numbers)).reshape(count, 3)
        real: list[bool | None] = [None] * count
        if true_ZYX is not None:
            matched = partners(mask_ZYX, true_ZYX, LEAST_IOU, self._ignored_ZYX[box])
            known_n = matched.first | ~matched.first_unknown
            real = [
                is_real if is_known else None for is_real, is_known in zip(matched.first.tolist(), known_n, strict=True)
            ]
        starts, shape = [part.start for part in box], self._labels_ZYX.shape
        at = [place_in_file(place, shape, self._properties) for place in surest + starts]
        found = [
            ObjectConfidence(float(sums[n] / sizes[n]), float(sizes[n] * self._voxel_ml), at[n], real[n])
            for n in np.argsort(-sizes, kind="stable")
        ]
        return tuple(found)


def left_of(
    measured: Mapping[str, ClassConfidence],
    before_ZYX: npt.NDArray[Any],
    labels_ZYX: npt.NDArray[Any],
    classes: Mapping[str, tuple[int, ...]],
    properties: Mapping[str, Any],
    *,
    truth_ZYX: npt.NDArray[Any] | None = None,
    ignored: int | None = None,
) -> dict[str, ClassConfidence]:
    """Say how sure a model is of what post-processing left, where the probabilities are no longer there.

    Every voxel of an object is taken to be as certain as the object was.

    Args:
        measured: Of the label map before it, by class.
        before_ZYX: That label map, as nnU-Net's reader gives it.
        labels_ZYX: What was left of it.
        classes: Labels by name.
        properties: That the reader gives of it, or of its image.
        truth_ZYX: The true label map; None for none.
        ignored: Its label of what nobody has annotated; None for none.
    """
    maps = _LabelMaps(labels_ZYX, before_ZYX, truth_ZYX, ignored, properties)
    voxel_ml = prod(float(size) for size in properties["spacing"]) / 1000

    def certainty_in(box: Slices, name: str) -> npt.NDArray[Any]:
        objects_ZYX, count = connected(mask_of(before_ZYX[box], classes[name]))
        certainty = np.zeros(count + 1)
        for one in measured[name].objects:
            place = place_in_array(one.at, before_ZYX.shape, properties)
            certainty[objects_ZYX[tuple(at - part.start for at, part in zip(place, box, strict=True))]] = one.certainty
        return certainty[objects_ZYX]

    left = {}
    for name, one in measured.items():
        before, after = (mask_of(one_ZYX, classes[name]) for one_ZYX in (before_ZYX, labels_ZYX))
        is_whole = np.array_equal(before, after)
        expected = one.expected_ml / voxel_ml
        left[name] = one if is_whole else maps.confidence_of(classes[name], partial(certainty_in, name=name), expected)
    return left


def _count(labels_ZYX: npt.NDArray[Any]) -> dict[int, int]:
    values, counts = np.unique(labels_ZYX, return_counts=True)
    return dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True))


def _dice(common: int, sizes: int) -> float | None:
    return 2 * common / sizes if sizes else None


def as_json(measured: Mapping[str, ClassConfidence], calibration: Calibration) -> dict[str, Any]:
    """Give the content of a CASE_confidence.json; what was compared with the truth is there where there is one."""
    classes = {}
    for name, one in measured.items():
        largest = one.objects[0].volume_ml if one.objects else 1.0
        objects = [
            {
                "confidence": _round(calibration.object_is_real(name, found.certainty, found.volume_ml / largest)),
                "certainty": _round(found.certainty),
                "volume_ml": _round(found.volume_ml),
                "at": list(found.at),
                **({} if found.real is None else {"real": found.real}),
            }
            for found in one.objects
        ]
        expected = one.expected_dice
        classes[name] = {
            "dice": None if expected is None else _round(calibration.dice(name, expected)),
            "expected_dice": None if expected is None else _round(expected),
            "volume_ml": _round(one.volume_ml),
            "expected_ml": _round(one.expected_ml),
            "objects": objects,
            **({} if one.dice is None else {"true_dice": _round(one.dice)}),
        }
    of_model = {"calibrated_on_cases": calibration.num_cases, "calibration": calibration.source}
    return {"format": FORMAT, **of_model, "classes": classes}


def from_json(content: Mapping[str, Any]) -> dict[str, ClassConfidence]:
    """Read what `as_json` gives, but for what calibration made of it."""
    return {
        name: ClassConfidence(
            one["expected_dice"],
            one["volume_ml"],
            one["expected_ml"],
            tuple(
                ObjectConfidence(each["certainty"], each["volume_ml"], tuple(each["at"]), each.get("real"))
                for each in one["objects"]
            ),
            one.get("true_dice"),
        )
        for name, one in content["classes"].items()
    }


def _round(value: float) -> float:
    return float(f"{value:.6g}")
