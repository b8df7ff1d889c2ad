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
from sam3dnet.preprocessing.cases import TrainingCase, channel_names, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.checks_description import ACCEPT_KEY, DATASET_JSON
from sam3dnet.preprocessing.checks_voxels import EMPTY_LABEL
from sam3dnet.preprocessing.folders import is_plain_name, remove_partial_files, whole_or_nothing, write_json
from sam3dnet.preprocessing.reading import DatasetReader

IMAGES, LABELS = "imagesTr", "labelsTr"
REPLACED = "image"  # in the folder of a version, the newest that lies on it: an image that made way for another


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

    def keep_image(self, case: str, version: int, images: Sequence[Path]) -> None:
        """Keep an image that makes way for another of its name.

        Args:
            case: Of the case.
            version: The newest that lies on it; 0 for none.
            images: Its files, one a channel.
        """
        folder = f"{version:04d}" if version else f"0000-{digest_of(images)[:8]}"
        for name, file in named_by_case(case, images, self._ending, self._reader).items():
            copy_whole(file, self._folder / case / folder / REPLACED / name)

    def replaced_images(self, case: str) -> list[tuple[int, Path]]:
        """List the images that made way: the newest version that lies on each, 0 for none, and its folder, in order."""
        folders = (self._folder / case).glob(f"[0-9]*/{REPLACED}")
        return sorted((int(folder.parent.name.partition("-")[0]), folder) for folder in folders)


def label_files(label: Path, reader: DatasetReader) -> list[Path]:
    """List the files of a label map, itself last."""
    return [*(file for file in reader.files_of((), label) if file != label), label]


def named_by_case(case: str, images: Sequence[Path], ending: str, reader: DatasetReader) -> dict[str, Path]:
    """Name the files of an image by its case, as nnU-Net does in imagesTr, with what belongs to them.

    Args:
        case: Its name.
        images: Its files, one a channel, of any name.
        ending: Of the dataset's images.
        reader: Of the dataset.

    Returns:
        Each file by the name that it has there.
    """
    named = {f"{case}_{channel:04d}{ending}": file for channel, file in enumerate(images)}
    for file in reader.files_of(images):
        if file not in images:
            named.setdefault(f"{case}{file.suffix}", file)
    return named


def digest_of(files: Iterable[Path]) -> str:
    """Give the SHA-256 of the contents of files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def are_same(one: Sequence[Path], other: Sequence[Path]) -> bool:
    """Tell whether files, one a channel, have the same content."""
    return len(one) == len(other) and all(
        first.resolve() == second.resolve() or cmp(first, second, shallow=False)
        for first, second in zip(one, other, strict=True)
    )


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
        self.num_channels = len(channel_names(self.json))

    def prepare(self) -> None:
        """Make the folders that are missing, and remove what was never finished; for whoever has the dataset alone."""
        remove_partial_files(self.folder)
        for name in (IMAGES, LABELS):
            (self.folder / name).mkdir(exist_ok=True)
            remove_partial_files(self.folder / name)

    def to_train_on(self) -> dict[str, Any]:
        """Give dataset.json for a training: as somebody has left it, and without objection to empty label maps.

        Whoever accepts one says that there is nothing.
        """
        accepted = read_dataset_json(self.folder).get(ACCEPT_KEY, [])
        return self.json | {ACCEPT_KEY: sorted({*accepted, EMPTY_LABEL})}

    def cases(self) -> dict[str, TrainingCase]:
        """Give the cases that nnU-Net sees now, by name, whether or not all of their files are there."""
        return {case.name: case for case in list_training_cases(self.folder, self.json)}

    def labelled(self) -> dict[str, TrainingCase]:
        """Give the cases that have all channels and a label map, by name."""
        return {name: case for name, case in self.cases().items() if self.has_image(case) and case.label.is_file()}

    def has_image(self, case: TrainingCase) -> bool:
        """Tell whether all channels of a case are there."""
        return len(case.images) == self.num_channels and all(file.is_file() for file in case.images)

    def image_in(self, folder: Path, name: str) -> Case | None:
        """Give the image of a case from a folder where files are named by their case; None if it is not whole there."""
        files = tuple(folder / f"{name}_{channel:04d}{self.ending}" for channel in range(self.num_channels))
        return Case(name, files) if all(file.is_file() for file in files) else None

    def is_out_of_reach(self, name: str) -> bool:
        """Tell whether files of a case are links to what is not there now, as on a disk that is not mounted."""
        case = self.cases().get(name)
        return case is not None and any(file.is_symlink() and not file.exists() for file in (*case.images, case.label))

    def label(self, case: str) -> Path:
        """Say where the label map of a case belongs."""
        listed = self._listed().get(case)
        return self.folder / (f"{LABELS}/{case}{self.ending}" if listed is None else listed["label"])

    def require_addable(self, case: Case, reader: DatasetReader) -> None:
        """See that an image can become a case of the dataset.

        Raises:
            DatasetError: If another image of the dataset has its name.
        """
        if not is_plain_name(case.name):
            raise DatasetError(f"{case.name}: is no name that a case can have; rename the image")
        if (other := self.another_image(case, reader)) is not None:
            raise DatasetError(
                f"{case.files[0]}: the dataset has another image of this name, {other}; rename one of them"
            )

    def another_image(self, case: Case, reader: DatasetReader) -> Path | None:
        """Give a file of another image that lies where one belongs; None where there is none, or a part of this one."""
        listed = self._listed_images(case.name)
        if listed and len(listed) != len(case.files):
            return listed[0]
        places = self._places(case.name, case.files, reader).items()
        channels = ((place, file) for place, file in places if file in case.files and place.exists())
        return next((place for place, file in channels if not are_same([place], [file])), None)

    def put(self, name: str, images: Sequence[Path], labels: Sequence[Path], reader: DatasetReader) -> None:
        """Put a case in, or another label map in the place of its present one; what is there already stays.

        Args:
            name: Of the case.
            images: Its files, one a channel.
            labels: The files of its label map, itself last.
            reader: Of the dataset.
        """
        for place, file in self._places(name, images, reader).items():
            if not place.exists():
                copy_whole(file, place)
        label = self.label(name)
        for file in labels:
            place = label.with_name(file.name.replace(name, label.name.removesuffix(self.ending), 1))
            if not (place.is_file() and cmp(file, place, shallow=False)):
                copy_whole(file, place)
        channels = [f"{IMAGES}/{name}_{channel:04d}{self.ending}" for channel in range(len(images))]
        self._tell(name, {"images": channels, "label": f"{LABELS}/{label.name}"})

    def take_out(self, name: str, images_to: Path | None, reader: DatasetReader) -> None:
        """Take a case out; its images are kept in a folder, named by the case, its label map is not.

        Args:
            name: Of the case.
            images_to: The folder; None if the images are kept elsewhere already.
            reader: Of the dataset.
        """
        cases = self.cases()
        case = cases.pop(name, None)
        if case is None:
            self._tell(name, None)  # where a process was killed that had removed the files already
            return
        files = reader.files_of(case.images)
        is_listed = name in self._listed()
        named = named_by_case(name, case.images, self.ending, reader) if is_listed else {one.name: one for one in files}
        for new_name, file in named.items():
            if images_to is not None and file.exists():
                copy_whole(file, images_to / new_name)
        used = {file for other in cases.values() for file in reader.files_of(other.images, other.label)}
        for file in (*label_files(case.label, reader), *files):
            if file not in used:  # a case without a label is seen, and taken out again
                file.unlink(missing_ok=True)
        self._tell(name, None)

    def _places(self, name: str, images: Sequence[Path], reader: DatasetReader) -> dict[Path, Path]:
        """Say where each file of an image belongs: as nnU-Net names it, or where somebody has put the case's."""
        named = named_by_case(name, images, self.ending, reader)
        places = {self.folder / IMAGES / one: file for one, file in named.items()}
        listed = self._listed_images(name)
        return places if {*listed} <= {*places} else dict(zip(listed, images, strict=False))

    def _listed_images(self, name: str) -> Sequence[Path]:
        return self.cases()[name].images if name in self._listed() else ()

    def _listed(self) -> dict[str, Any]:
        return self.json.get("dataset", {})

    def _tell(self, name: str, entry: Mapping[str, Any] | None) -> None:
        """Keep dataset.json true, the number of cases and one that it lists; all else stays as somebody has left it.

        Args:
            name: Of the case.
            entry: Of the case, unless it has one; None if it is no longer.

        Raises:
            DatasetError: If somebody has made dataset.json unreadable.
        """
        content = read_dataset_json(self.folder)
        before = dict(content)
        if "dataset" in content:
            listed = {case: files for case, files in content["dataset"].items() if case != name or entry is not None}
            content["dataset"] = listed if entry is None or name in listed else {**listed, name: dict(entry)}
        content["numTraining"] = len(list_training_cases(self.folder, content))
        if content != before:
            write_json(self.folder / DATASET_JSON, content)
        self.json = {key: value for key, value in self.json.items() if key != "dataset"} | {
            key: content[key] for key in ("dataset", "numTraining") if key in content
        }
