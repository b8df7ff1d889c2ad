"""Objects that are too small to be real: below which volume validation says that those of a class are to go.

A network that has found an organ or a lesion also finds some that are not there, mostly small ones. All objects of a
class up to a volume are taken out where that makes the mean Dice of cases better that did not help to choose the volume
(each case is left out once), and where at least twice as many false objects go as real ones. Of the volumes that are
best without one case or another the smallest is taken, so that no case decides alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, StrictInt
from scipy import ndimage

from sam3dnet.planning.objects import NEIGHBOURHOOD, LabelBoxes, mask_of
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.schemas import Part

LEAST_CASES = 3  # that have the class, or for which it was predicted
LEAST_GAIN = 0.002  # in the mean Dice of cases that are left out
AS_GOOD = 1e-4  # of two volumes whose mean Dice is apart by less the smaller one is chosen
FALSE_A_REAL = 2  # false objects that must go for each real one
MOST_OBJECTS = 200  # of a case; the smallest beyond count as one
MOST_VOLUMES = 500  # that are tried
ROUNDING = 1e-6  # of a volume: spacings are stored in single precision

Labels = Annotated[tuple[Annotated[StrictInt, Field(ge=1)], ...], Field(min_length=1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Floats = npt.NDArray[np.float64]


class MinVolume(Part):
    """Objects that are taken out.

    Attributes:
        labels: Of the class.
        up_to_mm3: The volume up to which they go.
    """

    labels: Labels
    up_to_mm3: Number

    def too_small_in(self, mask_ZYX: np.ndarray, voxel_mm3: float) -> np.ndarray:
        """Mark the voxels of a mask that lie in objects (26 neighbours) that are too small."""
        objects_ZYX, count = ndimage.label(mask_ZYX, structure=NEIGHBOURHOOD)
        if not count:
            return mask_ZYX
        is_small = np.bincount(objects_ZYX.ravel()) * voxel_mm3 <= self.up_to_mm3 * (1 + ROUNDING)
        is_small[0] = False
        return np.asarray(is_small[objects_ZYX])


class ObjectsOfCase(Part):
    """The objects of a class that were found in a case; what nobody has annotated counts in `volume_mm3` alone.

    Attributes:
        truth_mm3: The true ones, all together.
        volume_mm3: Of each, largest first.
        counted_mm3: Of each what counts.
        right_mm3: Of each what is right.
        real: How many each stands for that touch a true one: 1 or 0, more where small ones count as one.
        false: How many each stands for that touch none.
    """

    truth_mm3: Number
    volume_mm3: tuple[Number, ...] = ()
    counted_mm3: tuple[Number, ...] = ()
    right_mm3: tuple[Number, ...] = ()
    real: tuple[StrictInt, ...] = ()
    false: tuple[StrictInt, ...] = ()

    def dice_up_to(self, volumes_mm3: Floats) -> Floats | None:
        """Give the Dice when objects up to each of some volumes are gone; None where there is nothing of the class."""
        if not self.truth_mm3 + sum(self.counted_mm3):
            return None
        stays = np.array(self.volume_mm3)[None] > volumes_mm3[:, None] * (1 + ROUNDING)
        sizes = stays @ np.array(self.counted_mm3) + self.truth_mm3
        right = stays @ np.array(self.right_mm3)
        return np.asarray(np.where(sizes > 0, 2 * right / np.where(sizes > 0, sizes, 1), 1.0))

    def gone(self, volumes_mm3: Floats) -> tuple[Floats, Floats]:
        """Count the real and the false objects up to each of some volumes."""
        goes = np.array(self.volume_mm3)[None] <= volumes_mm3[:, None] * (1 + ROUNDING)
        return goes @ np.array(self.real, float), goes @ np.array(self.false, float)


class ObjectsOfClass(Part):
    """The objects of a class in the cases of a validation.

    Attributes:
        labels: Of the class.
        cases: All of them.
    """

    labels: Labels
    cases: tuple[ObjectsOfCase, ...]


def dice_of(cases: Iterable[ObjectsOfCase], up_to_mm3: float) -> tuple[float, float]:
    """Give the mean Dice of cases as they are, and when objects up to a volume are gone; at least one has the class."""
    found = [case.dice_up_to(np.array([0.0, up_to_mm3])) for case in cases]
    before, after = np.mean([dice for dice in found if dice is not None], axis=0)
    return float(before), float(after)


def choose_min_volume(cases: Sequence[ObjectsOfCase]) -> float | None:
    """Choose the volume in mm³ up to which objects of a class go, from what validation found.

    Args:
        cases: Of the validation of a fold, or of several.

    Returns:
        None where none is to go.
    """
    false = [volume for case in cases for volume, number in zip(case.volume_mm3, case.false, strict=True) if number]
    volumes = np.unique([0.0, *false])
    if len(volumes) > MOST_VOLUMES:
        volumes = volumes[np.linspace(0, len(volumes) - 1, MOST_VOLUMES).round().astype(int)]
    counting = [(case, dice) for case in cases if (dice := case.dice_up_to(volumes)) is not None]
    if len(counting) < LEAST_CASES or len(volumes) < 2:
        return None
    dice_NV = np.array([dice for _, dice in counting])
    real_NV, false_NV = (np.array(part) for part in zip(*(case.gone(volumes) for case, _ in counting), strict=True))
    others = ~np.eye(len(counting), dtype=bool)
    chosen = [_best(dice_NV[other], real_NV[other], false_NV[other]) for other in others]
    gains = [dice_V[best] - dice_V[0] for dice_V, best in zip(dice_NV, chosen, strict=True)]
    return float(volumes[min(chosen)]) if min(chosen) and np.mean(gains) >= LEAST_GAIN else None


def _best(dice_NV: Floats, real_NV: Floats, false_NV: Floats) -> int:
    """Give which volume is best for some cases: the smallest of those that are as good."""
    allowed_V = false_NV.sum(0) >= FALSE_A_REAL * real_NV.sum(0)
    mean_V = np.where(allowed_V, dice_NV.mean(0), -1.0)
    return int(np.argmax(mean_V >= mean_V.max() - AS_GOOD))


def measure_objects(
    pairs: Iterable[tuple[Path, Path]],
    classes: Mapping[str, Sequence[int]],
    left_out: Collection[Sequence[int]],
    reader: DatasetReader,
    ignored: int | None = None,
) -> list[ObjectsOfClass]:
    """Measure the objects of classes that share no label with another one.

    Args:
        pairs: Files of a predicted and the true label map of each case.
        classes: All classes or regions: labels by name.
        left_out: Labels of classes that are not measured.
        reader: Of both files.
        ignored: Label of what nobody has annotated; None for none.
    """
    others = {tuple(labels) for labels in left_out}
    alone = [
        labels
        for labels in map(tuple, classes.values())
        if labels not in others and sum(bool({*labels} & {*one}) for one in classes.values()) == 1
    ]
    found: list[list[ObjectsOfCase]] = [[] for _ in alone]
    for predicted, truth in pairs if alone else ():
        labels_1ZYX, properties = reader.read_seg(predicted)
        truth_ZYX, voxel_mm3 = reader.read_seg(truth)[0][0], float(np.prod(properties["spacing"]))
        boxes = LabelBoxes(labels_1ZYX[0]), LabelBoxes(truth_ZYX)
        for labels, cases in zip(alone, found, strict=True):
            cases.append(_objects_of_case(labels_1ZYX[0], truth_ZYX, boxes, labels, voxel_mm3, ignored))
    return [ObjectsOfClass(labels=labels, cases=tuple(cases)) for labels, cases in zip(alone, found, strict=True)]


def _objects_of_case(
    labels_ZYX: np.ndarray,
    truth_ZYX: np.ndarray,
    boxes: tuple[LabelBoxes, LabelBoxes],
    labels: Sequence[int],
    voxel_mm3: float,
    ignored: int | None,
) -> ObjectsOfCase:
    box, true_box = (of_map.of(labels) for of_map in boxes)
    truth_mm3 = 0.0 if true_box is None else float(np.count_nonzero(mask_of(truth_ZYX[true_box], labels))) * voxel_mm3
    if box is None:
        return ObjectsOfCase(truth_mm3=truth_mm3)
    truth_ZYX = truth_ZYX[box]
    objects_ZYX, count = ndimage.label(mask_of(labels_ZYX[box], labels), structure=NEIGHBOURHOOD)
    all_N, counted_N, right_N = (
        np.bincount(objects_ZYX[mask], minlength=count + 1)[1:].astype(float)
        for mask in (objects_ZYX > 0, truth_ZYX != (-1 if ignored is None else ignored), mask_of(truth_ZYX, labels))
    )
    real_N = right_N > 0
    columns = np.stack([all_N, counted_N, right_N, real_N, ~real_N & (counted_N > 0)])
    columns = columns[:, np.argsort(-all_N, kind="stable")]
    if count > MOST_OBJECTS:
        rest = columns[:, MOST_OBJECTS:]
        columns = np.column_stack([columns[:, :MOST_OBJECTS], [rest[0, 0], *rest[1:].sum(1)]])
    volume, counted, right, real, false = columns
    return ObjectsOfCase(
        truth_mm3=truth_mm3,
        volume_mm3=tuple((volume * voxel_mm3).tolist()),
        counted_mm3=tuple((counted * voxel_mm3).tolist()),
        right_mm3=tuple((right * voxel_mm3).tolist()),
        real=tuple(real.astype(int).tolist()),
        false=tuple(false.astype(int).tolist()),
    )
