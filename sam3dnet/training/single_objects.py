"""What a validation says of keeping the largest object alone, of the classes that are one object in the labels.

Where all classes together are one, as the parts of a heart, that is asked for too: what looks like a class elsewhere,
and may be larger than it, is not beside the others.

The label maps of the validation stay as the network gives them, for `sam3d_find_best`, which asks for them all.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.inference.postprocessing import Change, Measured
from sam3dnet.planning.objects import LabelBoxes, largest_object, largest_of, mask_of
from sam3dnet.planning.single_objects import KEY, is_single
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.reading import DatasetReader

MOST_LABEL_MAPS = 50  # that are looked at
FOREGROUND = ""  # which is no name of a class


def single_objects_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give the labels of the classes that a plan says are one object; of plans that say nothing, none."""
    classes = foreground_classes(dataset_json)
    return {name: classes[name] for name in plans.get("sam3d", {}).get(KEY, ()) if name in classes}


def whole_foreground(
    label_maps: Sequence[Path], dataset_json: Mapping[str, Any], reader: DatasetReader
) -> dict[str, tuple[int, ...]]:
    """Give all labels under one name if their union is one object in the true label maps, and is no class by itself.

    Args:
        label_maps: Of all cases, since a few to validate on may lack what lies apart; some are read if they are many.
        dataset_json: Of the dataset.
        reader: Of the files.
    """
    classes = foreground_classes(dataset_json)
    values = tuple(sorted({value for of_class in classes.values() for value in of_class}))
    if any(set(of_class) == set(values) for of_class in classes.values()):
        return {}
    largest, voxels = [], []
    some = label_maps[:: math.ceil(len(label_maps) / MOST_LABEL_MAPS)] if label_maps else []
    for file in some:
        labels_ZYX = reader.read_seg(file)[0][0]
        box = LabelBoxes(labels_ZYX).of(values)
        if box is not None:
            mask = mask_of(labels_ZYX[box], values)
            largest.append(largest_object(mask)[2])
            voxels.append(int(np.count_nonzero(mask)))
    return {FOREGROUND: values} if is_single(largest, voxels) else {}


def measure_single_objects(
    pairs: Iterable[tuple[Path, Path]],
    steps: Mapping[str, Sequence[int]],
    classes: Mapping[str, Sequence[int]],
    reader: DatasetReader,
    ignored: int | None = None,
) -> list[Measured]:
    """Measure Dice before and after keeping the largest object of some labels alone, of them and of what shares them.

    A class that lies apart, and small beside the others, would go with all but the largest object of all together, and
    their Dice would hardly tell; of regions one may get holes where a part of it goes.

    Args:
        pairs: Files of a predicted and the true label map of each case.
        steps: Labels whose largest object shall stay alone, by name.
        classes: All classes or regions: labels by name.
        reader: Of both files.
        ignored: Label of what nobody has annotated: voxels there count nowhere; None for none.
    """
    shared = {step: [name for name in classes if {*classes[name]} & {*steps[step]}] for step in steps}
    of_step: dict[str, dict[str, list[_Dice]]] = {step: {name: [] for name in (step, *shared[step])} for step in steps}
    for predicted, truth in pairs:
        case = _Case(reader.read_seg(predicted)[0][0], reader.read_seg(truth)[0][0], ignored)
        for step, labels in steps.items():
            taken_out = case.all_but_the_largest(labels)
            for name, found in of_step[step].items():
                dice = case.dice(labels if name == step else classes[name], taken_out)
                found += [] if dice is None else [dice]
    measured = []
    for step, labels in steps.items():
        changes = {name: _change(found) for name, found in of_step[step].items() if found}
        if step in changes:
            of_classes = {name: Change(**one) for name, one in changes.items() if name != step}
            measured.append(Measured(keep_largest=tuple(labels), of_classes=of_classes, **changes[step]))
    return measured


_Dice = tuple[float, float]  # before and after
_Voxels = tuple[np.ndarray, np.ndarray]  # their predicted and their true labels


class _Case:
    """A predicted and the true label map, of which what nobody has annotated counts nowhere."""

    def __init__(self, prediction_ZYX: np.ndarray, truth_ZYX: np.ndarray, ignored: int | None):
        self._prediction_ZYX, self._truth_ZYX = prediction_ZYX, truth_ZYX
        self._boxes, self._ignored = LabelBoxes(prediction_ZYX), ignored
        values, counts = np.unique(truth_ZYX, return_counts=True)
        self._true_voxels = dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True))
        self._overlaps: dict[tuple[int, ...], tuple[int, int]] = {}

    def all_but_the_largest(self, labels: Sequence[int]) -> _Voxels:
        """Give the voxels of all objects of some labels but the largest."""
        box = self._boxes.of(labels)
        if box is None:
            return np.empty(0), np.empty(0)
        mask = mask_of(self._prediction_ZYX[box], labels)
        mask &= ~largest_of(mask)
        return self._prediction_ZYX[box][mask], self._truth_ZYX[box][mask]

    def dice(self, labels: Sequence[int], taken_out: _Voxels) -> _Dice | None:
        """Measure labels as predicted and without some voxels; None where neither label map has them."""
        true = sum(self._true_voxels.get(value, 0) for value in {*labels})
        key, box = tuple(labels), self._boxes.of(labels)
        if key not in self._overlaps:
            parts = (np.empty(0), np.empty(0)) if box is None else (self._prediction_ZYX[box], self._truth_ZYX[box])
            self._overlaps[key] = self._overlap(labels, *parts)
        common, predicted = self._overlaps[key]
        if not true + predicted:
            return None
        fewer_common, fewer = self._overlap(labels, *taken_out)
        left = true + predicted - fewer  # nothing is left: what was the largest lies where nobody has annotated
        return 2 * common / (true + predicted), 2 * (common - fewer_common) / left if left else 0.0

    def _overlap(self, labels: Sequence[int], predicted: np.ndarray, true: np.ndarray) -> tuple[int, int]:
        """Count the voxels that are predicted as labels: those that are right, and all."""
        mask = mask_of(predicted, labels)
        if self._ignored is not None:
            mask &= true != self._ignored
        return int(np.count_nonzero(mask & mask_of(true, labels))), int(np.count_nonzero(mask))


def _change(dice: Sequence[_Dice]) -> dict[str, Any]:
    before, after = np.mean(dice, axis=0)
    return {"cases": len(dice), "dice_before": float(before), "dice_after": float(after)}
