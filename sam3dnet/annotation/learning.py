"""What is learned from accepted cases, beside this process: trainings, and what is the least sure of what is left."""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sam3dnet.annotation.background import BackgroundProcess, end_left, last_lines
from sam3dnet.annotation.history import TrainingBegun
from sam3dnet.annotation.job import Job, Result, read_result
from sam3dnet.annotation.judging import mean_of
from sam3dnet.inference.confidence import ENDING
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.checks_description import DATASET_JSON
from sam3dnet.preprocessing.folders import Folders, write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader

MODULE = "sam3dnet.annotation.job"
NAME = "sam3d_annotation"  # of folders beside those of datasets
JOB, LOG, PROCESS = "job.json", "log.txt", "process.json"
AUTOMATIC = "automatic"

logger = logging.getLogger(__name__)


class Learning:
    """The processes beside, of which one runs at a time.

    Args:
        dataset: Its name.
        folders: nnU-Net's three.
        snapshots: Folder in that of the raw data, for what trainings see of it.
        device: To compute on; None for the best.
    """

    def __init__(self, dataset: str, folders: Folders, snapshots: Path, device: str | None):
        self._dataset, self._folders, self._device = dataset, folders, device
        self._snapshots = snapshots
        self.folder = folders.results / dataset / NAME
        self._process: BackgroundProcess | None = None
        self._ranks = False
        if (self.folder / PROCESS).exists():
            end_left(self.folder / PROCESS)

    def folder_of(self, training: int) -> Path:
        """Say where what a training makes is."""
        return self.folder / f"{training:04d}"

    def begin_training(
        self,
        begun: TrainingBegun,
        cases: Mapping[str, TrainingCase],
        description: Mapping[str, object],
        reader: DatasetReader,
    ) -> None:
        """Begin a training, or go on with one that was cut off.

        Args:
            begun: Says on what; an earlier result of this training must not be there.
            cases: Of the dataset, by name.
            description: The content of dataset.json.
            reader: Of the dataset.
        """
        work = self.folder_of(begun.training)
        if not (work / JOB).exists():
            names = (*begun.cases, *begun.held_back)
            raw = self._snapshots / "nnUNet_raw"
            take_snapshot({name: cases[name] for name in names}, raw / self._dataset, description, reader)
            job = Job(
                kind="train",
                dataset=self._dataset,
                folders=(str(raw), str(self._folders.preprocessed / NAME), str(work)),
                model=begun.start,
                work=str(work),
                device=self._device,
                minutes=begun.minutes,
                cases=begun.cases,
                held_back=begun.held_back,
            )
            for folder in job.folders:
                Path(folder).mkdir(parents=True, exist_ok=True)
            write_json(work / JOB, job.model_dump())
        self._start(work)
        self._ranks = False

    def begin_ranking(self, model: str, images: Path, pending: Sequence[str]) -> None:
        """Begin to find out of which images a model is the least sure."""
        work = self.folder / AUTOMATIC
        work.mkdir(parents=True, exist_ok=True)
        folders = self._folders
        job = Job(
            kind="rank",
            dataset=self._dataset,
            folders=(str(folders.raw), str(folders.preprocessed), str(folders.results)),
            model=model,
            work=str(work),
            device=self._device,
            images=str(images),
            pending=tuple(pending),
        )
        write_json(work / JOB, job.model_dump())
        self._start(work)
        self._ranks = True

    def _start(self, work: Path) -> None:
        self.end()
        self._process = BackgroundProcess(MODULE, [str(work / JOB)], work / LOG, self.folder / PROCESS)

    @property
    def trains(self) -> bool:
        """Whether a training runs now."""
        return self.is_running and not self._ranks

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
        if self._process is not None:
            self._process.end()
            self._process = None

    def result_of(self, training: int) -> Result | None:
        """Give what came of a training; None if it has not ended, or was cut off and may go on."""
        work = self.folder_of(training)
        found = read_result(work)
        if found is None and self._process is not None and not self._ranks and self._process.status:
            return Result(problem=f"the training failed; its log, {work / LOG}, ends:\n{last_lines(work / LOG)}")
        return found

    def expected_dice(self, model: str, names: Collection[str]) -> dict[str, float]:
        """Give the mean Dice over the classes that is to be expected of a model, of images that it has segmented."""
        work = self.folder / AUTOMATIC
        if (read_json_if_whole(work / JOB) or {}).get("model") != model:
            return {}
        found = {}
        for name in names:
            content = read_json_if_whole(work / f"{name}{ENDING}")
            if content is not None:
                value = mean_of(one["dice"] for one in content["classes"].values())
                found[name] = 0.0 if value is None else value  # it has found nothing
        return found

    def forget_model_of(self, training: int) -> None:
        """Remove the model of a training that is not used; what it said stays."""
        shutil.rmtree(self.folder_of(training) / self._dataset, ignore_errors=True)


def take_snapshot(
    cases: Mapping[str, TrainingCase], folder: Path, description: Mapping[str, object], reader: DatasetReader
) -> None:
    """Make a raw dataset of some cases that does not change while another one does, without copying the images.

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
    for case in cases.values():
        for file in reader.files_of(case.images):
            _link(file, images / file.name)
        for file in reader.files_of((), case.label):
            shutil.copy2(file, labels / file.name)
    told = {key: value for key, value in description.items() if key != "dataset"}
    write_json(folder / DATASET_JSON, told | {"numTraining": len(cases)})


def _link(file: Path, target: Path) -> None:
    for link in (os.link, os.symlink):
        with suppress(OSError, NotImplementedError):
            link(file.resolve(), target)
            return
    shutil.copy2(file, target)
