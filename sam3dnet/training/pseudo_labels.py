"""Images without labels that are trained on: the label maps of a model that was trained before stand in for labels.

Such label maps are called pseudo-labels (Lee, ICML workshop 2013), and a training on them self-training. They are made
once, before the training, with mirrored windows and post-processing, as for users.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import Any, Literal, Protocol

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from sam3dnet.errors import CheckpointError, DatasetError
from sam3dnet.inference.images import Case, find_cases
from sam3dnet.inference.meaning import differences, tell_other_names
from sam3dnet.inference.model_folders import read_model_dataset
from sam3dnet.inference.predictor import predict_folder
from sam3dnet.preprocessing.cases import TrainingCase, channel_names
from sam3dnet.preprocessing.locking import only_one
from sam3dnet.preprocessing.names import LABELS_SUFFIX, fault_of_case
from sam3dnet.preprocessing.patients import others_of_patients
from sam3dnet.preprocessing.pipeline import preprocess_cases
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import DatasetReader, reader_named
from sam3dnet.preprocessing.records import (
    digest_of_record,
    images_of_cases,
    made_otherwise,
    make_record,
    maker_of_cases,
    read_record,
)
from sam3dnet.settings.prediction import PredictionSettings
from sam3dnet.training.distributed import is_first_process, place_among_processes

FOLDER, LABEL_MAPS = "pseudo_labels", "label_maps"
IMAGE_SUFFIX = ".b2nd"  # of a preprocessed case's image

logger = logging.getLogger(__name__)

Meet = Callable[[Any], list[Any]]


class CasesOfDataset(Protocol):
    """What nnU-Net's loaders ask for cases."""

    identifiers: list[str]

    def load_case(self, identifier: str) -> Any:
        """Give image, label map, that of a first stage, and properties."""


class LabelledAndPseudoLabelled:
    """The cases of a fold and the pseudo-labelled ones, for nnU-Net's loaders, which draw them all alike.

    Args:
        labelled: nnU-Net's dataset of the fold.
        pseudo_labelled: The further cases.
    """

    def __init__(self, labelled: CasesOfDataset, pseudo_labelled: CasesOfDataset):
        self._of = {name: part for part in (pseudo_labelled, labelled) for name in part.identifiers}
        self.identifiers = sorted(self._of)

    def load_case(self, identifier: str) -> Any:
        """Give what nnU-Net's datasets give."""
        return self._of[identifier].load_case(identifier)

    __getitem__ = load_case


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo-labelled cases of a fold's training.

    Attributes:
        plans: Content of the plan.
        configuration: That is trained.
        dataset_json: Of the dataset.
        dataset_folder: Of the preprocessed dataset.
        fold: That is trained.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    dataset_folder: Path
    fold: int | Literal["all"]

    @property
    def folder(self) -> Path:
        """The folder of all that is made for this training."""
        return self.dataset_folder / FOLDER / f"{self.plans['plans_name']}_{self.configuration}" / f"fold_{self.fold}"

    @property
    def _data_identifier(self) -> str:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return str(PlansManager(self.plans).get_configuration(self.configuration).data_identifier)

    @property
    def _of_dataset(self) -> Path:
        """The folder of the dataset's own preprocessed cases."""
        return self.dataset_folder / self._data_identifier

    @contextmanager
    def alone(self, meet: Meet) -> Iterator[None]:
        """Let no other training change the cases until the block ends; of several processes none goes ahead.

        Args:
            meet: Gathers the values of the processes that train together.
        """
        with only_one(self.folder) if is_first_process() else nullcontext():
            meet(None)
            yield

    def label(
        self, settings: PredictionSettings, name: str, known: Collection[str], validating: Collection[str], meet: Meet
    ) -> list[TrainingCase]:
        """Have a model label images, each process its share; what it has labelled already, as it is now, stays.

        Args:
            settings: Folder of the images, and the model.
            name: Of the dataset.
            known: Names of all of its cases, which are left out.
            validating: Those that validate; further images of their patients are left out too.
            meet: As of `alone`.

        Returns:
            The cases in which something was found.

        Raises:
            DatasetError: If there is no image, nothing was found in any, or the model has other classes or channels.
            CheckpointError, PlanError: If the model cannot be loaded.
        """
        images, model = (Path(str(folder)) for folder in (settings.input_folder, settings.model_folder))
        theirs = read_model_dataset(model)
        differ = differences(theirs, name, self.dataset_json)
        if differ:
            raise DatasetError(
                f"--unlabelled: {model} cannot label images for {name}: {'; '.join(differ)}; start --from a model that "
                "was trained on the labelled cases of this dataset"
            )
        tell_other_names(model, theirs, name, self.dataset_json)
        ending = str(theirs["file_ending"])
        found, faulty = find_cases(images, ending, len(channel_names(theirs)))
        wanted = _to_learn_from(found, faulty, ending, known, validating)
        if not found:
            raise DatasetError(f"--unlabelled: no file of {images} can be an image of {name}; see above")
        if not wanted:
            raise DatasetError(
                f"{images}: no image is left to learn from beside those of {name}; expected some without a label map "
                "there, of patients that do not validate"
            )
        parts, part = place_among_processes()
        label_maps = self.folder / LABEL_MAPS
        shared = replace(settings, output_folder=label_maps, num_parts=parts, part_id=part)
        report = predict_folder(shared, only=wanted)
        failed = {case: why for one in meet(report.failed) for case, why in one.items()}
        _tell_left_out(failed)
        labelled = [
            TrainingCase(case.name, case.files, label_maps / f"{case.name}{ending}")
            for case in wanted.values()
            if case.name not in failed
        ]
        if not labelled:
            raise DatasetError(f"--unlabelled: none of {len(failed)} images of {images} could be predicted; see above")
        kept = with_something(labelled, reader_named(str(self.plans["image_reader_writer"]), self.dataset_json))
        if not kept:
            raise DatasetError(
                f"--unlabelled: {model} found nothing in any image of {images}; start --from a better model, or train "
                "without these"
            )
        return kept

    def store(self, cases: Sequence[TrainingCase], num_processes: int | None) -> dict[str, str]:
        """Preprocess cases; a bad one, and one whose image is there under another name, is left out and told.

        An image is known again by its files, or, where they were written anew, by what preprocessing makes of it.

        Args:
            cases: With their pseudo-labels.
            num_processes: As of `preprocess_dataset`.

        Returns:
            Of each case that is there now by what it is known again.
        """
        reader = reader_named(str(self.plans["image_reader_writer"]), self.dataset_json)
        own = {images: name for name, images in images_of_cases(self._of_dataset).items()}
        stored = self.folder / self._data_identifier
        records = {case.name: make_record(case, "", reader, read_record(stored, case.name)) for case in cases}
        images = {name: tuple(record["images"]) for name, record in records.items()}
        first = {one: name for name, one in reversed(images.items())} | own
        same = {name: _that_of(first[one]) for name, one in images.items() if first[one] != name}
        wanted = [case for case in cases if case.name not in same]
        if same and not wanted:  # what an earlier training learned from stays as it is
            _tell_left_out(same)
            return {}
        failed = preprocess_cases(wanted, self.plans, self.configuration, self.dataset_json, self.folder, num_processes)
        made = [case.name for case in wanted if case.name not in failed]
        same |= {name: _that_of(other) for name, other in _made_alike(stored, made, self._of_dataset).items()}
        _tell_left_out(failed | same)
        digests = {name: digest_of_record(stored, name) for name in made if name not in same}
        return {name: one for name, one in digests.items() if one is not None}

    def require(self, digests: Mapping[str, str]) -> None:
        """See that the cases are there as a training began with them, and are made by its plan.

        Raises:
            CheckpointError: If they are not.
        """
        if not digests:
            return
        stored = self.folder / self._data_identifier
        gone = sorted(name for name, digest in digests.items() if digest_of_record(stored, name) != digest)
        if gone:
            raise CheckpointError(
                f"{stored}: {len(gone)} of the {len(digests)} unlabelled images that this training learns from are no "
                f"longer there, or have other label maps: {shorten(gone)}; train again without --continue"
            )
        maker = maker_of_cases(self.plans, self._data_identifier) or self.configuration
        by_plan = {*made_otherwise(stored, self.plans, maker, self.dataset_json).by_plan} & {*digests}
        if by_plan:
            raise CheckpointError(
                f"{stored}: {len(by_plan)} unlabelled images were preprocessed by another plan than there is now; "
                "train again without --continue"
            )

    def dataset(self, names: Collection[str]) -> CasesOfDataset:
        """Give the preprocessed cases of these names, for nnU-Net's loaders."""
        return nnUNetDatasetBlosc2(str(self.folder / self._data_identifier), sorted(names))


def _to_learn_from(
    found: Sequence[Case], faulty: Mapping[str, str], ending: str, known: Collection[str], validating: Collection[str]
) -> dict[str, Case]:
    """Leave out images of the dataset, of patients that validate, and of names that a case cannot have, and tell so."""
    of_judges = others_of_patients(validating, known, [case.name for case in found if case.name not in known])
    left_out = dict(faulty)
    for case in found:
        fault = fault_of_case(case.name, ending)
        if case.name in known:
            left_out[case.name] = "the dataset has it"
        elif case.name in of_judges:
            left_out[case.name] = "another image of the patient validates"
        elif fault is not None:
            left_out[case.name] = fault
    _tell_left_out(left_out)
    return {case.name: case for case in found if case.name not in left_out}


def _that_of(name: str) -> str:
    return f"its image is that of {name}"


def _made_alike(folder: Path, names: Sequence[str], others: Path) -> dict[str, str]:
    """Find the preprocessed images that are others' voxel by voxel, as of a file that was written anew.

    Args:
        folder: Of preprocessed cases.
        names: Of those.
        others: Folder of further ones.

    Returns:
        Of each the name of the other case; of several alike the first stays.
    """
    by_size: dict[int, list[Path]] = {}
    for file in others.glob(f"*{IMAGE_SUFFIX}"):
        if not file.name.endswith(LABELS_SUFFIX + IMAGE_SUFFIX):
            by_size.setdefault(file.stat().st_size, []).append(file)
    found: dict[str, str] = {}
    for name in names:
        file = folder / f"{name}{IMAGE_SUFFIX}"
        alike = by_size.setdefault(file.stat().st_size, [])
        other = next((one for one in alike if cmp(file, one, shallow=False)), None)
        if other is None:
            alike.append(file)
        else:
            found[name] = other.name.removesuffix(IMAGE_SUFFIX)
    return found


def _tell_left_out(reasons: Mapping[str, str]) -> None:
    if not is_first_process():
        return
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        logger.warning("Warning: %d unlabelled images are left out: %s: %s", len(names), shorten(sorted(names)), why)


def with_something(cases: Iterable[TrainingCase], reader: DatasetReader) -> list[TrainingCase]:
    """Leave out cases in which nothing was found: of those a model would learn to find nothing.

    Args:
        cases: With their pseudo-labels.
        reader: Of these.
    """
    kept, empty = [], {}
    for case in cases:
        if (reader.read_seg(case.label)[0] > 0).any():
            kept.append(case)
        else:
            empty[case.name] = "the model found nothing"
    _tell_left_out(empty)
    return kept
