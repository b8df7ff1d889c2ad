"""Post-processing of label maps: of some classes all but the largest component goes, of some what is too small.

`sam3d_find_best` decides the first by nnU-Net's function and stores the decision as JSON beside the model: nnU-Net's
own file is a pickle, which could run code. Before that, each fold's validation has measured what becomes of the classes
that are one object, and the objects of the others, beside the fold's checkpoint; of several folds all cases count.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, StrictInt

from sam3dnet.errors import PlanError
from sam3dnet.inference.small_objects import Labels, MinVolume, ObjectsOfClass, choose_min_volume
from sam3dnet.planning.objects import LabelBoxes, largest_of, mask_of
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked

logger = logging.getLogger(__name__)

FILE = "sam3d_postprocessing.json"
REMEDY = "run sam3d_find_best again, or predict with --no-postprocessing"
REMEDY_OF_FOLD = "validate the fold again, sam3d_train --validate-only, or predict with --no-postprocessing"


class _File(Part):
    format: Literal["sam3dnet-postprocessing/1"]
    keep_largest: tuple[Labels, ...]
    min_volumes: tuple[MinVolume, ...] = ()
    labels: dict[str, Any]

    def named(self) -> set[int]:
        """Give all labels that something is said of."""
        return Postprocessing(self.keep_largest, self.min_volumes).labels


_Content = TypeVar("_Content", bound="_File | _FoldFile")


Dice = Annotated[float, Field(allow_inf_nan=False)]


class Change(Part):
    """What becomes of the Dice of some labels.

    Attributes:
        cases: That have the labels, or for which they were predicted.
        dice_before: Mean over these cases.
        dice_after: The same after a step.
    """

    cases: StrictInt = Field(ge=1)
    dice_before: Dice
    dice_after: Dice


class Measured(Change):
    """What a fold's validation says of keeping the largest component of some labels alone.

    Attributes:
        keep_largest: The labels.
        of_classes: What becomes of other classes that share labels with these, by name.
    """

    keep_largest: Labels
    of_classes: dict[str, Change] = Field(default_factory=dict)


class _FoldFile(Part):
    format: Literal["sam3dnet-postprocessing-of-fold/1"]
    measured: tuple[Measured, ...]
    objects: tuple[ObjectsOfClass, ...] = ()
    labels: dict[str, Any]

    def named(self) -> set[int]:
        """Give all labels that something is said of."""
        of_steps = (*(one.keep_largest for one in self.measured), *(one.labels for one in self.objects))
        return {label for labels in of_steps for label in labels}


@dataclass(frozen=True)
class Postprocessing:
    """What is done with a label map.

    Attributes:
        keep_largest: One step after the other: labels of whose union only the largest component stays.
        min_volumes: Then: objects of a class that go.
    """

    keep_largest: tuple[tuple[int, ...], ...] = ()
    min_volumes: tuple[MinVolume, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keep_largest or self.min_volumes)

    @property
    def labels(self) -> set[int]:
        """Give the labels of which something may be taken out."""
        return {label for labels in (*self.keep_largest, *(one.labels for one in self.min_volumes)) for label in labels}

    def applied_to(self, labels_ZYX: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Give what is left of a label map; what is taken out becomes background, as by nnU-Net's function.

        Args:
            labels_ZYX: Is left as it is.
            spacing_mm: Of its voxels.
        """
        if not self:
            return labels_ZYX
        left_ZYX, boxes = labels_ZYX.copy(), LabelBoxes(labels_ZYX)
        for labels in self.keep_largest:
            box = boxes.of(labels)
            if box is not None:  # which may be too large, after another step
                mask = mask_of(left_ZYX[box], labels)
                left_ZYX[box][mask & ~largest_of(mask)] = 0
        for small in self.min_volumes:
            box = boxes.of(small.labels)
            if box is not None:
                mask = mask_of(left_ZYX[box], small.labels)
                left_ZYX[box][small.too_small_in(mask, float(np.prod(spacing_mm)))] = 0
        return left_ZYX

    def in_words(self, dataset_json: Mapping[str, Any]) -> str:
        """Say what is done, by the names of the classes; "" for nothing."""
        names = dataset_json["labels"]
        kept = [_name_of(labels, names) for labels in self.keep_largest]
        small = [f"{_name_of(one.labels, names)} up to {one.up_to_mm3:.3g} mm3" for one in self.min_volumes]
        said = [f"keeps the largest component of {', then of '.join(kept)}"] if kept else []
        said += [f"takes out objects of {', of '.join(small)}"] if small else []
        return ", then ".join(said)

    def as_json(self) -> dict[str, Any]:
        """Give the steps in plain types."""
        return {
            "keep_largest": [list(step) for step in self.keep_largest],
            "min_volumes": [{"labels": list(one.labels), "up_to_mm3": one.up_to_mm3} for one in self.min_volumes],
        }


NO_POSTPROCESSING = Postprocessing()


def read_postprocessing(
    model_folder: Path, dataset_json: Mapping[str, Any], fold_folders: Iterable[Path]
) -> Postprocessing:
    """Read what was decided for a model by `sam3d_find_best`, or else what the validations of its folds say.

    Args:
        model_folder: The model.
        dataset_json: Of the model.
        fold_folders: Of the folds that predict together.

    Raises:
        PlanError: If a file is damaged, or of other classes than the model has.
    """
    file = model_folder / FILE
    if not file.is_file():
        return _of_folds(
            [
                _read(_FoldFile, folder / FILE, dataset_json, REMEDY_OF_FOLD)
                for folder in dict.fromkeys(fold_folders)
                if (folder / FILE).is_file()
            ]
        )
    content = _read(_File, file, dataset_json, REMEDY)
    return Postprocessing(content.keep_largest, content.min_volumes)


def _read(kind: type[_Content], file: Path, dataset_json: Mapping[str, Any], remedy: str) -> _Content:
    content = checked(kind, read_json(file, PlanError, remedy), file, PlanError, remedy)
    if content.labels != dataset_json["labels"]:
        raise PlanError(f"{file}: decided for the classes {content.labels}, the model has other ones; {remedy}")
    there = {label for labels in foreground_classes(dataset_json).values() for label in labels}
    if unknown := sorted(content.named() - there):
        raise PlanError(f"{file}: speaks of the labels {unknown}, expected some of {sorted(there)}; {remedy}")
    return content


def _of_folds(folds: Sequence[_FoldFile]) -> Postprocessing:
    """Choose what was measured on each fold and makes no class worse in the cases of all; the widest first."""
    measured: dict[tuple[int, ...], list[Measured]] = {}
    objects: dict[tuple[int, ...], list[ObjectsOfClass]] = {}
    for fold in folds:
        for one in fold.measured:
            measured.setdefault(one.keep_largest, []).append(one)
        for of_class in fold.objects:
            objects.setdefault(of_class.labels, []).append(of_class)
    kept = [labels for labels, found in measured.items() if len(found) == len(folds) and _hurts_none(found)]
    of_all = [
        ObjectsOfClass(labels=labels, cases=tuple(case for part in found for case in part.cases))
        for labels, found in objects.items()
        if len(found) == len(folds)
    ]
    return Postprocessing(tuple(sorted(kept, key=len, reverse=True)), choose_min_volumes(of_all))


def choose_min_volumes(objects: Iterable[ObjectsOfClass]) -> tuple[MinVolume, ...]:
    """Choose for each class up to which volume objects go; classes of which none go are left out."""
    chosen = [(one.labels, choose_min_volume(one.cases)) for one in objects]
    return tuple(MinVolume(labels=labels, up_to_mm3=volume) for labels, volume in chosen if volume is not None)


def _hurts_none(measured: Sequence[Measured]) -> bool:
    """Tell whether no mean Dice falls: as nnU-Net decides, which wants it of each class by itself, too."""
    gains: dict[str | None, float] = {}
    for fold in measured:
        for name, one in [(None, fold), *fold.of_classes.items()]:
            gains[name] = gains.get(name, 0.0) + one.cases * (one.dice_after - one.dice_before)
    return min(gains.values()) >= 0


def write_postprocessing(
    model_folder: Path, decided: Postprocessing, dataset_json: Mapping[str, Any], why: Mapping[str, Any]
) -> None:
    """Store what was decided for a model.

    Args:
        model_folder: The model.
        decided: Also if it is nothing: what was there before counts no longer.
        dataset_json: Of the model.
        why: Folds and scores, for readers.
    """
    content = {"format": "sam3dnet-postprocessing/1", **decided.as_json(), "labels": dataset_json["labels"]}
    write_json(model_folder / FILE, content | dict(why))


def write_postprocessing_of_fold(
    fold_folder: Path,
    measured: Sequence[Measured],
    dataset_json: Mapping[str, Any],
    objects: Sequence[ObjectsOfClass] = (),
) -> Postprocessing:
    """Store what a fold's validation measured; give what follows from this fold alone.

    Args:
        fold_folder: Where to.
        measured: Of classes that are one object.
        dataset_json: Of the model.
        objects: Of other classes.
    """
    content = _FoldFile(
        format="sam3dnet-postprocessing-of-fold/1",
        measured=tuple(measured),
        objects=tuple(objects),
        labels=dataset_json["labels"],
    )
    write_json(fold_folder / FILE, content.model_dump())
    return _of_folds([content])


def forget_postprocessing(model_folder: Path, fold_folder: Path) -> None:
    """Remove what was decided for a model whose fold is trained on, and say so where it was decided by hand."""
    (fold_folder / FILE).unlink(missing_ok=True)
    file = model_folder / FILE
    if file.is_file():
        file.unlink()
        logger.warning(
            "Warning: %s is removed: it was chosen for what the model was before; run sam3d_find_best again", file
        )


def _name_of(labels: Sequence[int], names: Mapping[str, Any]) -> str:
    members = {
        name: set(value) if isinstance(value, list | tuple) else {value}
        for name, value in names.items()
        if name != "ignore"
    }
    exactly = [name for name, values in members.items() if values == set(labels)]
    if exactly:
        return exactly[0]
    singles = [name for name, values in members.items() if len(values) == 1 and values <= set(labels)]
    return f"all that is {' or '.join(singles)}" if len(singles) == len(set(labels)) else "the whole foreground"
