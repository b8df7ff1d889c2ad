"""The cross-validation of a trained model: what is there, and what to type for what is not."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sam3dnet.errors import CheckpointError
from sam3dnet.evaluation.plain_pickles import holds_plain_values
from sam3dnet.inference.images import is_damaged
from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans, trained_folds
from sam3dnet.inference.models import CHECKPOINT_ORDER, load_checkpoint, training_cases
from sam3dnet.inference.probabilities import ENDINGS, shape_of
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import DatasetReader, reader_named
from sam3dnet.preprocessing.splits import Split
from sam3dnet.settings.find_best import OUR_TRAINER
from sam3dnet.training.validation import FOLDER

_LabelMaps = Mapping[int, Mapping[str, Path]]  # by fold and case


@dataclass(frozen=True)
class CrossValidation:
    """A model folder, TRAINER__PLANS__CONFIGURATION, and the folds of it that count.

    Attributes:
        folder: Of the model.
        splits: Of the folds that count, as they are now.
        root: As it was given to the command; None for variables of the environment.
    """

    folder: Path
    splits: Mapping[int, Split]
    root: str | None = None

    @property
    def folds(self) -> tuple[int, ...]:
        """Those that count."""
        return tuple(self.splits)

    @property
    def trainer(self) -> str:
        """Name of the trainer."""
        return self.folder.name.split("__")[0]

    @property
    def plans_name(self) -> str:
        """Name of the plan."""
        return self.folder.name.split("__")[1]

    @property
    def configuration(self) -> str:
        """Configuration of the plan."""
        return self.folder.name.split("__")[2]

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """Of the model."""
        return read_model_dataset(self.folder)

    @cached_property
    def plans(self) -> dict[str, Any]:
        """Of the model."""
        return read_model_plans(self.folder)

    @cached_property
    def label_manager(self) -> Any:
        """nnU-Net's view of the classes."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans).get_label_manager(self.dataset_json)

    @property
    def reader(self) -> DatasetReader:
        """Reads the label maps."""
        return reader_named(str(self.plans["image_reader_writer"]), self.dataset_json)

    @property
    def classes(self) -> tuple[Any, ...]:
        """What two models have in common whose probabilities can be averaged."""
        keys = ("labels", "regions_class_order", "file_ending")
        return (*(self.dataset_json.get(key) for key in keys), self.plans["image_reader_writer"])

    def label_maps(self, fold: int) -> dict[str, Path]:
        """Give the predicted label maps of a fold by the name of their case."""
        ending = self.dataset_json["file_ending"]
        files = (self.folder / f"fold_{fold}" / FOLDER).glob(f"*{ending}")
        return {file.name.removesuffix(ending): file for file in sorted(files)}

    def all_label_maps(self) -> Iterator[Path]:
        """Give the predicted label maps of all folds."""
        for fold in self.folds:
            yield from self.label_maps(fold).values()

    @cached_property
    def trained_on(self) -> dict[int, frozenset[str]]:
        """The cases that each fold was trained on, as far as its checkpoint says."""
        return {fold: _training_cases(self.folder / f"fold_{fold}") for fold in self.folds}

    def seen(self, fold: int, names: Collection[str]) -> set[str]:
        """Give those of some cases that a fold was trained on, though its split does not have it so."""
        return set(names) & self.trained_on[fold] - self.splits[fold].in_both

    def lines(self, folds: Sequence[int], *, validate: bool = False, probabilities: bool = False) -> str:
        """Give what to type to train folds, or to validate them anew; what has seen its cases is trained again."""
        seen = {fold: self.seen(fold, self.splits[fold].val) for fold in folds} if validate else {}
        lines = "; ".join(self._line(fold, validate and not seen[fold], probabilities) for fold in folds)
        again = [fold for fold, names in seen.items() if names]
        if not again:
            return lines
        names = sorted(set().union(*(seen[fold] for fold in again)))
        return (
            f"{lines} (fold {_listed(again)} again, since it was trained on what it validates on now: {shorten(names)})"
        )

    def _line(self, fold: int, validate: bool, probabilities: bool) -> str:
        dataset = self.folder.parent.name
        if self.trainer == OUR_TRAINER:
            words = ["sam3d_train", dataset, str(fold), "-c", self.configuration, "-p", self.plans_name]
            words += ["--validate-only"] * validate + ["--save-probabilities"] * probabilities
            return shlex.join([*words, *(["--root", self.root] if self.root else [])])
        words = ["nnUNetv2_train", dataset, self.configuration, str(fold), "-tr", self.trainer, "-p", self.plans_name]
        return shlex.join([*words, *["--val"] * validate, *["--npz"] * probabilities])


@dataclass(frozen=True)
class Scored:
    """A model or an ensemble, and how well its cross-validation does.

    Attributes:
        name: nnU-Net's.
        members: One, or two of an ensemble.
        folder: Holds the label maps of all folds.
        dice: Mean over foreground classes; NaN where none occurs.
    """

    name: str
    members: tuple[CrossValidation, ...]
    folder: Path
    dice: float


def _training_cases(fold_folder: Path) -> frozenset[str]:
    for name in CHECKPOINT_ORDER:
        try:
            return training_cases([load_checkpoint(fold_folder / name)])
        except CheckpointError:  # what was predicted with it can be scored without it
            continue
    return frozenset()


def faults_of(model: CrossValidation, truth: Path) -> list[str]:
    """Say what a cross-validation lacks, and what to type; nothing where it is whole.

    Args:
        model: Whose.
        truth: Folder with the true label maps.
    """
    there = {fold: model.label_maps(fold) for fold in model.folds}
    return (
        _absent(model, there)
        or _other_cases(model, there)
        or _seen_cases(model, there)
        or _unfit_cases(model, there, truth)
    )


def _absent(model: CrossValidation, there: _LabelMaps) -> list[str]:
    trained = trained_folds(model.folder)
    absent = [fold for fold, found in there.items() if not found]
    kinds = {
        "trained": [fold for fold in absent if fold not in trained],
        "validated": [fold for fold in absent if fold in trained],
    }
    return [
        f"fold {_listed(folds)} not {what}; type: {model.lines(folds, validate=what == 'validated')}"
        for what, folds in kinds.items()
        if folds
    ]


def _other_cases(model: CrossValidation, there: _LabelMaps) -> list[str]:
    """Compare all folds together: stock nnU-Net allows models with splits of their own."""
    expected = {name for split in model.splits.values() for name in split.val}
    found = Counter(name for of_fold in there.values() for name in of_fold)
    twice = {name for name, count in found.items() if count > 1}
    other = sorted((expected ^ set(found)) | twice)
    if not other:
        return []
    folds = [fold for fold, split in model.splits.items() if set(there[fold]) != set(split.val)]
    if not folds:
        return [
            f"folds {_listed(list(there))} validate some cases several times, as the splits say: {shorten(other)}; "
            "choose folds that share none with -f"
        ]
    line = model.lines(folds, validate=True)
    return [f"fold {_listed(folds)} validated on other cases than the splits say: {shorten(other)}; type: {line}"]


def _seen_cases(model: CrossValidation, there: _LabelMaps) -> list[str]:
    seen = {fold: model.seen(fold, there[fold]) for fold in model.folds}
    folds = [fold for fold, names in seen.items() if names]
    if not folds:
        return []
    names, line = sorted(set().union(*seen.values())), model.lines(folds, validate=True)
    return [f"fold {_listed(folds)} validated on cases that it was trained on: {shorten(names)}; type: {line}"]


def _unfit_cases(model: CrossValidation, there: _LabelMaps, truth: Path) -> list[str]:
    unfit = {
        fold: [name for name, file in there[fold].items() if _is_unfit(model, name, file, truth)] for fold in there
    }
    folds = [fold for fold, names in unfit.items() if names]
    names = [name for of_fold in unfit.values() for name in of_fold]
    line = model.lines(folds, validate=True)
    return [f"{shorten(names)}: damaged, or not on the grid of the truth in {truth}; type: {line}"] if names else []


def _is_unfit(model: CrossValidation, name: str, file: Path, truth: Path) -> bool:
    found, expected = (model.reader.read_grid(name, one, is_label=True)[0] for one in (file, truth / file.name))
    return found is None or expected is None or found.shape != expected.shape or is_damaged(file)


def lacks_probabilities(model: CrossValidation) -> list[int]:
    """List the folds of which not every case has its probabilities, whole and as nnU-Net's ensembles want them."""
    channels = model.label_manager.num_segmentation_heads
    return [
        fold
        for fold in model.folds
        if not all(_has_probabilities(file, name, channels) for name, file in model.label_maps(fold).items())
    ]


def _has_probabilities(label_map: Path, name: str, channels: int) -> bool:
    npz, pkl = (label_map.with_name(f"{name}{ending}") for ending in ENDINGS)
    shape = shape_of(npz)
    return shape is not None and shape[0] == channels and holds_plain_values(pkl)


def _listed(folds: Sequence[int]) -> str:
    return " ".join(map(str, folds))
