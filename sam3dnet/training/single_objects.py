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

from sam3dnet.inference.postprocessing import Measured
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
    classes: Mapping[str, Sequence[int]],
    reader: DatasetReader,
    ignored: int | None = None,
) -> list[Measured]:
    """Measure Dice before and after keeping the largest object of each class alone.

    Args:
        pairs: Files of a predicted and the true label map of each case.
        classes: Labels by name.
        reader: Of both files.
        ignored: Label of what nobody has annotated: voxels there count nowhere; None for none.
    """
    dice: dict[str, list[tuple[float, ...]]] = {name: [] for name in classes}
    for predicted, truth in pairs:
        prediction_ZYX, truth_ZYX = reader.read_seg(predicted)[0][0], reader.read_seg(truth)[0][0]
        boxes, counts = LabelBoxes(prediction_ZYX), _voxels_of(classes, truth_ZYX)
        for name, values in classes.items():
            box = boxes.of(values)
            if box is not None:
                mask, true = mask_of(prediction_ZYX[box], values), mask_of(truth_ZYX[box], values)
                known = truth_ZYX[box] != ignored if ignored is not None else np.True_
                parts = (mask & known, largest_of(mask) & known)
                if parts[0].any() or counts[name]:
                    dice[name].append(tuple(_dice(part, true, counts[name]) for part in parts))
            elif counts[name]:
                dice[name].append((0.0, 0.0))
    means = {name: np.mean(values, axis=0) for name, values in dice.items() if values}
    return [
        Measured(
            keep_largest=tuple(classes[name]),
            cases=len(dice[name]),
            dice_before=float(before),
            dice_after=float(after),
        )
        for name, (before, after) in means.items()
    ]


def _voxels_of(classes: Mapping[str, Sequence[int]], labels_ZYX: np.ndarray) -> dict[str, int]:
    counts = dict(zip(*(found.tolist() for found in np.unique(labels_ZYX, return_counts=True)), strict=True))
    return {name: sum(counts.get(value, 0) for value in set(values)) for name, values in classes.items()}


def _dice(mask: np.ndarray, true: np.ndarray, true_voxels: int) -> float:
    """Give the Dice coefficient of a mask that lies in a box, with all voxels of the truth."""
    either = np.count_nonzero(mask) + true_voxels
    return float(2 * np.count_nonzero(mask & true) / either) if either else 0.0  # what was there was not the largest
