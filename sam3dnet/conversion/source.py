"""A folder in the Decathlon's format or that of nnU-Net's first version: which it is, its cases and their files.

A Decathlon task has one file an image, with all of its channels; nnU-Net's first version one a channel,
CASE_0000.nii.gz and so on, although its dataset.json lists CASE.nii.gz.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sam3dnet.conversion.description import is_second_version
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import channel_of
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.names import entries
from sam3dnet.preprocessing.problems import DATASET, Problem, error, shorten, warning
from sam3dnet.preprocessing.verify import require_sound

Kind = Literal["Medical Segmentation Decathlon", "nnU-Net v1"]
DECATHLON: Kind = "Medical Segmentation Decathlon"
FIRST_VERSION: Kind = "nnU-Net v1"
ENDINGS = (".nii.gz", ".nii")
_TRAINING, _UNTRAINED = "Tr", ("Ts", "Val")


@dataclass(frozen=True)
class SourceCase:
    """The files of a case.

    Attributes:
        name: Without channel and ending.
        part: "Tr", "Ts" or "Val", as in imagesTr.
        images: One file a channel, or one with all channels; none where they are missing.
        label: None where there is none.
    """

    name: str
    part: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Source:
    """What there is to be converted."""

    folder: Path
    kind: Kind
    description: dict[str, Any]
    cases: list[SourceCase]

    @property
    def training(self) -> list[SourceCase]:
        """The cases that are trained on."""
        return [case for case in self.cases if case.part == _TRAINING]

    @property
    def files(self) -> list[Path]:
        """All files of all cases."""
        return [file for case in self.cases for file in (*case.images, *([case.label] if case.label else []))]


def read_source(folder: Path) -> tuple[Source, list[Problem]]:
    """Look what a folder holds; no image is opened.

    Returns:
        What there is, and what is wrong with it.

    Raises:
        DatasetError: If it is no such folder, or in the format of nnU-Net's second version already.
    """
    description = _read_description(folder)
    listed, problems = _read_listing(folder, description)
    if not listed:
        require_sound(problems)
    kind = _recognise(folder, listed)
    training, more = _training_cases(folder, kind, listed)
    problems += more
    others, more = _other_cases(folder, kind, description)
    return Source(folder, kind, description, training + others), problems + more


def ending_of(file: Path) -> str | None:
    """Give a file's ending, one of those that can be converted; None of others."""
    return next((ending for ending in ENDINGS if file.name.endswith(ending)), None)


def _read_description(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; give a folder with dataset.json, imagesTr and labelsTr")
    inside = [path for path in entries(folder) if (path / "dataset.json").is_file()]
    nested = f"; did you mean {inside[0]}?" if inside else ""
    missing = f"a Decathlon task or a task of nnU-Net v1 has one, beside imagesTr and labelsTr{nested}"
    content: dict[str, Any] = read_json(
        folder / "dataset.json", DatasetError, "correct it in a text editor", missing=missing
    )
    if is_second_version(content):
        raise DatasetError(
            f"{folder}: is in the format of nnU-Net v2 already (dataset.json has channel_names or file_ending); there "
            "is nothing to convert; move or link it to nnUNet_raw/DatasetXXX_Name"
        )
    return content


@dataclass(frozen=True)
class _Entry:
    """A line of the listing: where it says that image and label are."""

    image: Path
    label: Path

    @property
    def name(self) -> str:
        return _stem(self.image)


def _read_listing(folder: Path, description: Mapping[str, Any]) -> tuple[list[_Entry], list[Problem]]:
    """Read what is listed as training data; all labels of labelsTr where nothing is."""
    listed = description.get("training") or []
    if not isinstance(listed, list):
        return [], [_error(f'dataset.json: "training" is {listed!r:.80}; expected a list of images and labels')]
    if not listed:
        labels = [file for file in entries(folder / "labelsTr") if ending_of(file)]
        return [_Entry(folder / "imagesTr" / label.name, label) for label in labels], []
    found, problems = [], []
    for one in listed:
        try:
            entry = _Entry(_inside(folder, one["image"]), _inside(folder, one["label"]))
        except (TypeError, KeyError):
            came = f'dataset.json: "training" holds {one!r:.80}'
            problems.append(_error(f'{came}; expected {{"image": "./imagesTr/...", "label": "./labelsTr/..."}}'))
        except DatasetError as problem:
            problems.append(_error(str(problem)))
        else:
            if not entry.image.name.startswith("."):  # a companion of macOS
                found.append(entry)
    twice = [name for name, count in Counter(entry.name for entry in found).items() if count > 1]
    problems += [_error(f'dataset.json: "training" lists {name} more than once; leave one', name) for name in twice]
    return found, problems


def _inside(folder: Path, listed: str) -> Path:
    path = Path(os.path.normpath(folder / listed))
    if not path.is_relative_to(folder):
        raise DatasetError(f'dataset.json: "training" lists {listed}, which lies outside of {folder}; copy it there')
    return path


def _recognise(folder: Path, listed: Sequence[_Entry]) -> Kind:
    whole = sum(entry.image.is_file() for entry in listed)
    split = sum(bool(_with_channel(entry.image, 0).is_file()) for entry in listed)
    if not whole and not split:
        example = listed[0].image if listed else folder / "imagesTr" / "CASE.nii.gz"
        raise DatasetError(
            f"{folder}: no training image is there; expected such as {example} (Decathlon) or "
            f"{_with_channel(example, 0).name} beside it (nnU-Net v1), with a label in labelsTr"
        )
    return DECATHLON if whole >= split else FIRST_VERSION


def _training_cases(folder: Path, kind: Kind, listed: Sequence[_Entry]) -> tuple[list[SourceCase], list[Problem]]:
    cases, problems = [], []
    channels = _images_by_case(folder / "imagesTr", FIRST_VERSION) if kind == FIRST_VERSION else {}
    for entry in {entry.name: entry for entry in listed}.values():
        images = channels.get(entry.name, []) if kind == FIRST_VERSION else [entry.image] * entry.image.is_file()
        if not images:
            first = _with_channel(entry.image, 0) if kind == FIRST_VERSION else entry.image
            problems.append(_not_found(entry.name, "image", first))
        if not entry.label.is_file():
            problems.append(_not_found(entry.name, "label", entry.label))
        if images and entry.label.is_file():
            cases.append(SourceCase(entry.name, _TRAINING, tuple(images), entry.label))
    return cases, problems + _not_listed(folder, kind, listed)


def _not_found(case: str, what: str, file: Path) -> Problem:
    return error(case, f"missing {what}", f"{file}: not found; add it, or take the case out of dataset.json")


def _not_listed(folder: Path, kind: Kind, listed: Sequence[_Entry]) -> list[Problem]:
    known = {file for entry in listed for file in (entry.label, entry.image)}
    names = {entry.name for entry in listed}
    if kind == FIRST_VERSION:
        images = _images_by_case(folder / "imagesTr", kind)
        found = [file for name, files in images.items() if name not in names for file in files]
    else:
        found = [file for file in entries(folder / "imagesTr") if ending_of(file) and file not in known]
    found += [file for file in entries(folder / "labelsTr") if ending_of(file) and file not in known]
    if not found:
        return []
    told = shorten([str(file.relative_to(folder)) for file in sorted(found)])
    message = f'{len(found)} files are left out: {told}; no line of "training" in dataset.json names them'
    return [warning(DATASET, "not listed", message)]


def _other_cases(folder: Path, kind: Kind, description: Mapping[str, Any]) -> tuple[list[SourceCase], list[Problem]]:
    """Find the images that are not trained on, with their labels where there are some."""
    cases, problems = [], []
    for part in _UNTRAINED:
        labels = {_stem(file): file for file in entries(folder / f"labels{part}") if ending_of(file)}
        images = _images_by_case(folder / f"images{part}", kind)
        cases += [SourceCase(name, part, tuple(files), labels.get(name)) for name, files in images.items()]
        if alone := [str(file.relative_to(folder)) for name, file in labels.items() if name not in images]:
            message = f"{len(alone)} labels have no image: {shorten(alone)}; they are left out"
            problems.append(warning(DATASET, "label without image", message))
    return cases, problems + _missing_tests(cases, description)


def _missing_tests(cases: Sequence[SourceCase], description: Mapping[str, Any]) -> list[Problem]:
    listed = description.get("test")
    paths = [one.get("image") if isinstance(one, dict) else one for one in listed] if isinstance(listed, list) else []
    names = {_stem(Path(path)) for path in paths if isinstance(path, str) and not Path(path).name.startswith(".")}
    missing = sorted(names - {case.name for case in cases if case.part == "Ts"})
    if not missing:
        return []
    message = f'{len(missing)} images that dataset.json lists in "test" are not in imagesTs: {shorten(missing)}'
    return [warning(DATASET, "missing test image", message)]


def _images_by_case(folder: Path, kind: Kind) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in entries(folder):
        ending = ending_of(file)
        if ending is None:
            continue
        if kind == DECATHLON:
            found.setdefault(_stem(file), []).append(file)
        elif channel_of(file, ending) is not None:
            found.setdefault(_stem(file)[: -len("_0000")], []).append(file)
    return found


def _with_channel(image: Path, channel: int) -> Path:
    return image.with_name(f"{_stem(image)}_{channel:04d}{ending_of(image) or ''}")


def _stem(file: Path) -> str:
    return file.name.removesuffix(ending_of(file) or "")


def _error(message: str, case: str = DATASET) -> Problem:
    return error(case, "dataset.json", message)
