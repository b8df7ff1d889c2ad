"""What is learned from accepted cases, beside this process: trainings, and what is the least sure of what is left."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sam3dnet.annotation.background import BackgroundProcess, end_left, last_lines
from sam3dnet.annotation.history import TrainingBegun
from sam3dnet.annotation.job import REMEDY, Job, Result, read_result
from sam3dnet.annotation.labelled import copy_whole, label_files, named_by_case
from sam3dnet.errors import DatasetError
from sam3dnet.inference.confidence import ENDING
from sam3dnet.inference.images import Case, seen
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.checks_description import DATASET_JSON
from sam3dnet.preprocessing.folders import Folders, write_json
from sam3dnet.preprocessing.json_files import read_json, read_json_if_whole
from sam3dnet.preprocessing.names import fault_of_case
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.schemas import checked

MODULE = "sam3dnet.annotation.job"
NAME = "sam3d_annotation"  # of folders beside those of datasets
JOB, LOG, PROCESS = "job.json", "log.txt", "process.json"
RANKING = "ranking.json"  # the job; not beside the label maps, where a TIFF file's spacing stands in CASE.json
AUTOMATIC, IMAGES = "automatic", "images"
RAW = "nnUNet_raw"  # of the snapshots
PSEUDO_LABELLED = "pseudo_labelled"
MOST_PSEUDO_LABELLED = 60  # each is preprocessed anew where the model is another one

logger = logging.getLogger(__name__)


class Learning:
    """The processes beside, of which one runs at a time.

    Args:
        dataset: Its name.
        folders: nnU-Net's three.
        snapshots: Folder in that of the raw data, for what trainings see of it.
        device: To compute on; None for the best.
        ending: Of the dataset's files.
        reader: Of the dataset.
    """

    def __init__(
        self, dataset: str, folders: Folders, snapshots: Path, device: str | None, ending: str, reader: DatasetReader
    ):
        self._dataset, self._folders, self._device = dataset, folders, device
        self._ending, self._reader = ending, reader
        self._snapshots = snapshots
        self.folder = folders.results / dataset / NAME
        self._process: BackgroundProcess | None = None
        self._ranking: dict[str, tuple[str, ...]] | None = None  # what the process puts in order, as it was seen
        self._ranked_by: tuple[str, tuple[str, ...]] | None = None  # the model and its weights
        self._tried: dict[str, tuple[str, ...]] = {}
        if (self.folder / PROCESS).exists():
            end_left(self.folder / PROCESS)

    def folder_of(self, training: int) -> Path:
        """Say where what a training makes is."""
        return self.folder / f"{training:04d}"

    @property
    def last_number(self) -> int:
        """The highest number that a training's folder has here; 0 for none."""
        return max((int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdecimal()), default=0)

    def is_prepared(self, training: int) -> bool:
        """Tell whether a training has all that it needs to begin or to go on."""
        return (self.folder_of(training) / JOB).exists()

    def prepare(
        self,
        begun: TrainingBegun,
        cases: Mapping[str, TrainingCase],
        description: Mapping[str, object],
        waiting: Mapping[str, Case],
    ) -> None:
        """Make all that a training needs: what it sees of the dataset, and what it is told.

        Args:
            begun: Says on what.
            cases: Of the dataset, by name.
            description: The content of dataset.json.
            waiting: Images without labels, by name; of those that the training is to learn from too, the ones that are
                no longer there, or are not as the model saw them, are left out.

        Raises:
            OSError: If it cannot be written; the training cannot begin then.
        """
        work, raw = self.folder_of(begun.training), self._snapshots / RAW
        names = (*begun.cases, *begun.held_back)
        take_snapshot({name: cases[name] for name in names}, raw / self._dataset, description, self._reader)
        further = {name: waiting[name] for name in begun.pseudo_labelled if name in waiting}
        there = self.pseudo_labelled(begun.start, further)
        if there:
            take_snapshot(there, self._snapshots / PSEUDO_LABELLED, description, self._reader)
        job = Job(
            kind="train",
            dataset=self._dataset,
            model=begun.start,
            device=self._device,
            minutes=begun.minutes,
            cases=begun.cases,
            held_back=begun.held_back,
            **self._places_of(begun, bool(there)),
        )
        for folder in job.folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(work / JOB, job.model_dump())

    def _places_of(self, begun: TrainingBegun, with_images: bool) -> dict[str, Any]:
        """Say where a training finds and leaves everything.

        Args:
            begun: Says which.
            with_images: Whether it learns from images without labels.
        """
        work, raw = self.folder_of(begun.training), self._snapshots / RAW
        return {
            "folders": (str(raw), str(self._folders.preprocessed / NAME), str(work)),
            "work": str(work),
            "pseudo_labelled": str(self._snapshots / PSEUDO_LABELLED) if with_images else "",
        }

    def begin_training(self, begun: TrainingBegun) -> None:
        """Begin a training that was prepared, or go on with one that was cut off, also where all was moved meanwhile.

        Args:
            begun: Says which; an earlier result of this training must not be there.

        Raises:
            DatasetError: If what it was told is damaged.
            OSError: If it cannot be told anew.
        """
        work = self.folder_of(begun.training)
        job = checked(Job, read_json(work / JOB, DatasetError, REMEDY), work / JOB, DatasetError, REMEDY)
        here = self._places_of(begun, bool(job.pseudo_labelled))
        if any(getattr(job, key) != value for key, value in here.items()):
            write_json(work / JOB, job.model_copy(update=here).model_dump())
        self._start(work, work / JOB)

    def begin_ranking(self, model: str, images: Mapping[str, Case]) -> None:
        """Begin to find out of which images a model is the least sure.

        Args:
            model: Its folder.
            images: By name, wherever they are.
        """
        work = self.folder / AUTOMATIC
        self.end()
        known, by, seen = self.expected_dice(model, images), (model, _weights_of(model)), self._seen_of(images)
        if by != self._ranked_by:
            self._ranked_by, self._tried = by, {}
        for file in work.glob(f"*{ENDING}"):  # what another model expects, or of other images
            if file.name.removesuffix(ENDING) not in known:
                file.unlink()
        link_all(
            work / IMAGES,
            {
                name: file
                for case in images.values()
                for name, file in named_by_case(case.name, case.files, self._ending, self._reader).items()
            },
        )
        folders = self._folders
        job = Job(
            kind="rank",
            dataset=self._dataset,
            folders=(str(folders.raw), str(folders.preprocessed), str(folders.results)),
            model=model,
            work=str(work),
            device=self._device,
            images=str(work / IMAGES),
            pending=tuple(images),
            weights=by[1],
            seen=seen,
        )
        write_json(self.folder / RANKING, job.model_dump())
        self._start(work, self.folder / RANKING)
        self._ranking = seen

    def tried(self, model: str, images: Mapping[str, Case]) -> Collection[str]:
        """Name the images that were to be put in order by a model, which need not have come to anything."""
        self._note_tried()
        if not self._tried or (model, _weights_of(model)) != self._ranked_by:
            return set()
        return {name for name, seen in self._seen_of(images).items() if self._tried.get(name) == seen}

    def _seen_of(self, images: Mapping[str, Case]) -> dict[str, tuple[str, ...]]:
        return {name: seen(self._reader.files_of(case.files)) for name, case in images.items()}

    def _note_tried(self) -> None:
        """Take notice of an order that was looked for to the end; one that was cut off is looked for again."""
        status = None if self._process is None else self._process.status
        if self._process is None or self._ranking is None or status is None:
            return
        seen, self._ranking = self._ranking, None
        if status:
            log, lines = self._process.log, self._process.last_lines()
            logger.warning("Warning: the images could not be put in order; the log, %s, ends:\n%s", log, lines)
        self._tried |= seen

    def _start(self, work: Path, job: Path) -> None:
        self.end()
        self._process = BackgroundProcess(MODULE, [str(job)], work / LOG, self.folder / PROCESS)

    @property
    def trains(self) -> bool:
        """Whether a training runs now."""
        return self.is_running and self._ranking is None

    @property
    def is_running(self) -> bool:
        """Whether anything runs now."""
        return self._process is not None and self._process.status is None

    def wait(self) -> None:
        """Wait for what runs."""
        if self._process is not None:
            self._process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let what runs rest until the block ends."""
        if self._process is None or not self.is_running:
            yield
            return
        with self._process.paused():
            yield

    def end(self) -> None:
        """End what runs; a training goes on later from its newest checkpoint."""
        self._note_tried()
        if self._process is not None:
            self._process.end()
            self._process, self._ranking = None, None

    def result_of(self, training: int) -> Result | None:
        """Give what came of a training; None if it has not ended, or was cut off and may go on."""
        work = self.folder_of(training)
        has_ended = self._process is not None and self._process.log.parent == work and self._process.status is not None
        found = read_result(work)  # now, since it may have ended a moment ago
        if found is None and has_ended:
            return Result(problem=f"the training failed; its log, {work / LOG}, ends:\n{last_lines(work / LOG)}")
        return found

    def expected_dice(self, model: str, images: Mapping[str, Case]) -> dict[str, float]:
        """Give the mean Dice over the classes that is to be expected of a model, of images that it has segmented.

        A class that it has not found in an image has Dice 0 there if the image has it, and counts by how likely that
        is: by the share of all these images in which it was found.

        Args:
            model: Its folder; what it expected before it was trained on does not count.
            images: By name; of those that are others now nothing is known.
        """
        work = self.folder / AUTOMATIC
        job = read_json_if_whole(self.folder / RANKING) or {}
        if job.get("model") != model or job.get("weights") != list(_weights_of(model)):
            return {}
        by_class = {}
        for name, now in self._seen_of(images).items():
            if job.get("seen", {}).get(name) != list(now):
                continue
            content = read_json_if_whole(work / f"{name}{ENDING}")
            if content is not None:
                by_class[name] = {class_name: one["dice"] for class_name, one in content["classes"].items()}
        found_in = Counter(one for of in by_class.values() for one, dice in of.items() if dice is not None)
        return {name: _mean_over_classes(of, found_in, len(by_class)) for name, of in by_class.items()}

    def pseudo_labelled(self, model: str | None, images: Mapping[str, Case]) -> dict[str, TrainingCase]:
        """Give the images in which a model has found something, with its label maps, as far as it has looked at them.

        Args:
            model: Its folder; None for no model, which has looked at nothing.
            images: By name.

        Returns:
            The surest ones, by name, no more than `MOST_PSEUDO_LABELLED`.
        """
        known = {} if model is None else self.expected_dice(model, images)
        found: dict[str, TrainingCase] = {}
        for name in sorted(known, key=lambda name: (-known[name], name)):
            label = self.folder / AUTOMATIC / f"{name}{self._ending}"
            if known[name] > 0 and label.is_file() and fault_of_case(name, self._ending) is None:
                found[name] = TrainingCase(name, images[name].files, label)
        return dict(list(found.items())[:MOST_PSEUDO_LABELLED])

    def forget_model_of(self, training: int) -> None:
        """Remove the model of a training that is not used; what it said stays."""
        shutil.rmtree(self.folder_of(training) / self._dataset, ignore_errors=True)


def _mean_over_classes(dice: Mapping[str, float | None], found_in: Mapping[str, int], num_images: int) -> float:
    there = [one for one in dice.values() if one is not None]
    missed = sum(found_in[name] / num_images for name, one in dice.items() if one is None)
    return sum(there) / (len(there) + missed) if there else 0.0  # it has found nothing


def _weights_of(model: str) -> tuple[str, ...]:
    """Say by what a model is known again: the sizes and times of its checkpoints, or of the file that it is."""
    source = Path(model)
    files = sorted(source.glob("fold_*/checkpoint_*.pth")) if source.is_dir() else [source]
    return tuple(f"{file.parent.name}/{file.name} {seen([file])[0]}" for file in files)


def take_snapshot(
    cases: Mapping[str, TrainingCase], folder: Path, description: Mapping[str, object], reader: DatasetReader
) -> None:
    """Make a raw dataset of some cases that does not change while another one does, without copying the images.

    All files are named by their case, whatever they are called in the dataset.

    Args:
        cases: By name.
        folder: Of the dataset; what is there goes.
        description: The content of its dataset.json.
        reader: Of the dataset.
    """
    shutil.rmtree(folder, ignore_errors=True)
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for made in (images, labels):
        made.mkdir(parents=True)
    ending = str(description["file_ending"])
    for case in cases.values():
        for name, file in named_by_case(case.name, case.images, ending, reader).items():
            _link(file, images / name)
        for file in label_files(case.label, reader):
            own = case.label.name.removesuffix(ending)
            shutil.copy2(file, labels / file.name.replace(own, case.name, 1))
    told = {key: value for key, value in description.items() if key != "dataset"}
    write_json(folder / DATASET_JSON, told | {"numTraining": len(cases)})


def link_all(folder: Path, files: Mapping[str, Path]) -> None:
    """Have a folder hold links to these files by name, and nothing else; those that are there stay as they are.

    A link that is made anew changes what the file system knows of the file, so that it would have to be read again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for there in folder.iterdir():
        if there.name not in files or not _is_same(there, files[there.name]):
            there.unlink()
    for name, file in files.items():
        if not (folder / name).exists():
            _link(file, folder / name)


def _is_same(there: Path, file: Path) -> bool:
    """Tell whether a link leads to a file, or a copy is one of the file as it is."""
    try:
        one, other = there.stat(), file.stat()
    except OSError:
        return False
    is_copy = not there.is_symlink() and (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
    return there.samefile(file) or is_copy


def _link(file: Path, target: Path) -> None:
    """Link a file, or copy it where that is impossible; what is there already may be a link to another one.

    Raises:
        FileExistsError: If something is there.
    """
    for link in (os.link, os.symlink):
        try:
            link(file.resolve(), target)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            continue
        return
    copy_whole(file, target)
    shutil.copystat(file, target)  # by which the copy is known
