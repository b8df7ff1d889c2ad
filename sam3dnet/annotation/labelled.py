"""The dataset that is annotated: cases go in and out, whole, and dataset.json stays true."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from filecmp import cmp
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case
from sam3dnet.inference.writing import write_label_map
from sam3dnet.preprocessing.cases import TrainingCase, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.checks_description import DATASET_JSON
from sam3dnet.preprocessing.folders import is_plain_name, remove_partial_files, whole_or_nothing, write_json
from sam3dnet.preprocessing.reading import DatasetReader

IMAGES, LABELS = "imagesTr", "labelsTr"


class LabelVersions:
    """All label maps that cases ever had, each version in a folder of its own; none is ever changed.

    Args:
        folder: Of all.
        file_ending: Of label maps.
        reader: Of the dataset; knows which files belong to a label map.
    """

    def __init__(self, folder: Path, file_ending: str, reader: DatasetReader):
        self._folder, self._ending, self._reader = folder, file_ending, reader

    def file(self, case: str, version: int) -> Path:
        """Say where the label map of a version is; its other files are beside it."""
        return self._folder / case / f"{version:04d}" / f"{case}{self._ending}"

    def files(self, case: str, version: int) -> list[Path]:
        """List the files of a version, the label map last."""
        return label_files(self.file(case, version), self._reader)

    def take(self, label: Path, case: str, version: int) -> str:
        """Copy a label map and what belongs to it into a version that no event names yet.

        Args:
            label: Its file, of any name.
            case: Of the case.
            version: Its number.

        Returns:
            The digest of the version.
        """
        target = self.file(case, version)
        shutil.rmtree(target.parent, ignore_errors=True)  # of a process that was killed before it had happened
        target.parent.mkdir(parents=True)
        for file in label_files(label, self._reader):
            copy_whole(file, target.with_name(file.name.replace(label.name.removesuffix(self._ending), case, 1)))
        return digest_of(self.files(case, version))

    def write(self, labels_ZYX: np.ndarray, case: str, version: int, image: Path, properties: Mapping[str, Any]) -> str:
        """Write a label map as a version that no event names yet; see `take` and `write_label_map`."""
        target = self.file(case, version)
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        write_label_map(labels_ZYX, target, image, properties, self._reader)
        return digest_of(self.files(case, version))


def label_files(label: Path, reader: DatasetReader) -> list[Path]:
    """List the files of a label map, itself last."""
    return [*(file for file in reader.files_of((), label) if file != label), label]


def digest_of(files: Iterable[Path]) -> str:
    """Give the SHA-256 of the contents of files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file; it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(target) as temporary:
        shutil.copyfile(source, temporary)


class LabelledDataset:
    """A raw dataset of nnU-Net's.

    Args:
        folder: The dataset's, with its dataset.json.

    Raises:
        DatasetError: If dataset.json is missing or of no use.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.json = read_dataset_json(folder)
        self.ending = str(self.json["file_ending"])
        for name in (IMAGES, LABELS):
            (folder / name).mkdir(exist_ok=True)
            remove_partial_files(folder / name)

    def cases(self) -> dict[str, TrainingCase]:
        """Give the cases that are there now, by name."""
        return {case.name: case for case in list_training_cases(self.folder, self.json)}

    def label(self, case: str) -> Path:
        """Say where the label map of a case belongs."""
        listed = self._listed().get(case)
        return self.folder / (f"{LABELS}/{case}{self.ending}" if listed is None else listed["label"])

    def require_addable(self, case: Case, there: TrainingCase | None) -> None:
        """See that an image can become a case of the dataset.

        Raises:
            DatasetError: If another image of the dataset has its name.
        """
        if not is_plain_name(case.name):
            raise DatasetError(f"{case.name}: is no name that a case can have; rename the image")
        if there is None:
            return
        same = len(there.images) == len(case.files) and all(
            own.exists() and (own.resolve() == file.resolve() or cmp(own, file, shallow=False))
            for own, file in zip(there.images, case.files, strict=True)
        )
        if not same:
            raise DatasetError(
                f"{case.files[0]}: the dataset has another image of this name, {there.images[0]}; rename one of them"
            )

    def put(self, name: str, images: Sequence[Path], labels: Sequence[Path], reader: DatasetReader) -> None:
        """Put a case in, or another label map in the place of its present one; what is there already stays.

        Args:
            name: Of the case.
            images: Its files, one a channel.
            labels: The files of its label map, itself last.
            reader: Of the dataset.
        """
        there = self.cases().get(name)
        if there is None or len(there.images) < len(images):
            for file in reader.files_of(images):
                target = self.folder / IMAGES / file.name
                if not target.exists():
                    copy_whole(file, target)
        label = self.label(name)
        for file in labels:
            copy_whole(file, label.with_name(file.name.replace(name, label.name.removesuffix(self.ending), 1)))
        if "dataset" in self.json and name not in self._listed():
            channels = [f"{IMAGES}/{file.name}" for file in images]
            self.json["dataset"][name] = {"images": channels, "label": f"{LABELS}/{label.name}"}
            write_json(self.folder / DATASET_JSON, self.json)
        self._count()

    def take_out(self, name: str, images_to: Path, reader: DatasetReader) -> None:
        """Take a case out; its images are kept in a folder, its label map is not."""
        case = self.cases().get(name)
        if case is None:
            return
        images = [file for file in reader.files_of(case.images) if file.exists()]
        for file in images:
            copy_whole(file, images_to / file.name)
        for file in (*label_files(case.label, reader), *images):  # a case without a label is seen, and taken out again
            file.unlink(missing_ok=True)
        if "dataset" in self.json:
            del self.json["dataset"][name]
            write_json(self.folder / DATASET_JSON, self.json)
        self._count()

    def _listed(self) -> dict[str, Any]:
        return self.json.get("dataset", {})

    def _count(self) -> None:
        """Keep the number of cases true."""
        count = len(self.cases())
        if self.json.get("numTraining") != count:
            self.json["numTraining"] = count
            write_json(self.folder / DATASET_JSON, self.json)
