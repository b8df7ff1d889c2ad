"""From a Decathlon task, or a task of nnU-Net's first version, to a dataset of its second version."""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sam3dnet.conversion.checks import check_source, common_ending
from sam3dnet.conversion.description import converted
from sam3dnet.conversion.new_dataset import FIRST_OF_USERS, dataset_name, made_aside, require_free
from sam3dnet.conversion.nifti_volumes import read_volumes, write_volumes
from sam3dnet.conversion.source import DECATHLON, Kind, Source, SourceCase, read_source
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.folders import Folders, dataset_number, write_json
from sam3dnet.preprocessing.problems import Problem, shorten
from sam3dnet.preprocessing.verify import require_sound
from sam3dnet.preprocessing.workers import Outcome, default_num_processes, map_cases
from sam3dnet.settings.conversion import ConversionSettings

_log = logging.getLogger(__name__)

_SPACE = 3


@dataclass(frozen=True)
class Conversion:
    """What was made.

    Attributes:
        dataset: Name of the dataset.
        kind: Format of the source.
        num_training: Training cases.
        num_others: Images that are not trained on.
        num_channels: Of each image.
        root: Where the dataset lies, if that was asked for.
    """

    dataset: str
    kind: Kind
    num_training: int
    num_others: int
    num_channels: int
    root: str | Path | None

    @property
    def number(self) -> int:
        """Number of the dataset."""
        return dataset_number(self.dataset)


@dataclass(frozen=True)
class _Transfer:
    """A file, and those that it becomes, one for each of its volumes."""

    source: Path
    targets: tuple[Path, ...]


def convert(settings: ConversionSettings, folders: Folders) -> Conversion:
    """Convert a folder.

    Raises:
        DatasetError: See `ConversionSettings`; nothing is left behind then.
    """
    folder = Path(os.path.abspath(Path(settings.folder).expanduser()))
    source, problems = read_source(folder)
    dataset = _dataset_name(settings, folder)
    require_free(dataset, folders)
    content, more = converted(source.description, len(source.training), common_ending(source))
    problems += more
    if content["channel_names"]:
        problems += check_source(source, len(content["channel_names"]))
    _warn(problems)
    require_sound(problems)
    _log.info("%s: %s, %s training cases", folder, source.kind, len(source.training))
    with made_aside(dataset, folders) as made:
        _transfer_files(source, made, content["file_ending"], settings)
        write_json(made / "dataset.json", content)
    trained, others = len(source.training), len(source.cases) - len(source.training)
    return Conversion(dataset, source.kind, trained, others, len(content["channel_names"]), settings.root)


def _dataset_name(settings: ConversionSettings, folder: Path) -> str:
    task = re.fullmatch(r"Task(\d+)_(.+)", folder.name)
    number = settings.number if settings.number is not None else int(task[1]) if task else None
    name = settings.name or (task[2] if task else folder.name)
    if number is None:
        raise DatasetError(
            f"{folder}: is not called TaskXX_Name, so the dataset's number is not known; give one with -d, such as "
            f"-d {FIRST_OF_USERS}"
        )
    return dataset_name(number, name)


def _warn(problems: Sequence[Problem]) -> None:
    for problem in problems:
        if problem.severity == "warning":
            _log.warning("Warning: %s", problem.message)


def _transfer_files(source: Source, made: Path, ending: str, settings: ConversionSettings) -> None:
    transfers = [one for case in source.cases for one in _transfers_of(case, source.kind, made, ending)]
    for folder in sorted({target.parent for one in transfers for target in one.targets}):
        folder.mkdir(exist_ok=True)
    workers = default_num_processes() if settings.num_processes is None else settings.num_processes
    outcomes = map_cases(partial(_transfer, settings.link), transfers, workers, "convert", unit="files")
    _require_done(outcomes)


def _transfers_of(case: SourceCase, kind: Kind, made: Path, ending: str) -> Iterator[_Transfer]:
    images = made / f"images{case.part}"
    if kind == DECATHLON:
        (file,) = case.images
        targets = [images / f"{case.name}_{channel:04d}{ending}" for channel in range(read_volumes(file).count)]
        yield _Transfer(file, tuple(targets))
    else:
        yield from (_Transfer(file, (images / file.name,)) for file in case.images)
    if case.label is not None:
        yield _Transfer(case.label, (made / f"labels{case.part}" / f"{case.name}{ending}",))


def _transfer(link: bool, transfer: _Transfer) -> None:
    if read_volumes(transfer.source).dimensions > _SPACE:
        write_volumes(transfer.source, transfer.targets)
    elif link:
        transfer.targets[0].symlink_to(transfer.source.resolve())
    else:
        shutil.copyfile(transfer.source, transfer.targets[0])


def _require_done(outcomes: Sequence[Outcome[_Transfer, None]]) -> None:
    failed = [_failure(outcome.item.source, outcome.error) for outcome in outcomes if outcome.error is not None]
    if failed:
        raise DatasetError(f"{len(failed)} files could not be converted; nothing is left behind: {shorten(failed, 4)}")


def _failure(source: Path, problem: Exception) -> str:
    return str(problem) if str(source) in str(problem) else f"{source}: {problem}"
