"""What an output folder knows of its label maps: of which images, by which model and settings, and as we wrote them.

Each has an entry of its own, RECORDS_FOLDER/CASE.nii.gz.json, so that runs into one folder leave each other's alone. It
is written before work on a case begins, and completed just before the label map appears. Label maps without one, of
versions that wrote none, are known by name, shape and time alone, and by the settings of the whole folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case
from sam3dnet.inference.writing import has_shape_of, is_whole, write_label_map
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.records import file_digest
from sam3dnet.preprocessing.schemas import Part

logger = logging.getLogger(__name__)

SETTINGS_FILE = "sam3d_prediction.json"
RECORDS_FOLDER = "sam3d_records"
SOURCE_FILE = ".sam3d_source.json"  # beside images that were made of DICOM
PROMPTS_ENDING = "_prompts.json"  # of what was said in the page, which lies beside what was corrected there
ENTRIES, EARLIER = "entries", "earlier"  # in the settings' file
LONGEST_NAME = 200  # bytes; file systems allow 255, and a temporary name is longer
WHAT_TO_DO = "give another folder with -o, or move it away"


class Mark(Part):
    """By what a file is known again.

    Attributes:
        seen: Of its place and times, by which it need not be read.
        digest: Of its bytes.
    """

    size: int
    seen: str
    digest: str

    @classmethod
    def of(cls, file: Path) -> "Mark":
        """Read a file."""
        return cls(size=file.stat().st_size, seen=_seen(file), digest=file_digest(file))

    def fits(self, file: Path) -> bool:
        """Tell whether a file holds these bytes, wherever it lies now."""
        try:
            if not file.is_file() or file.stat().st_size != self.size:
                return False
            return _seen(file) == self.seen or file_digest(file) == self.digest
        except OSError:
            return False


def _seen(file: Path) -> str:
    status = file.stat()
    return digest_of([str(file.absolute()), status.st_mtime_ns, status.st_ctime_ns])


def digest_of(content: Any) -> str:
    """Hash what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Series(Part):
    """A series of DICOM, or those of its slices that are a volume.

    Attributes:
        uid: SeriesInstanceUID.
        slices: Digest of their SOPInstanceUIDs and frames.
    """

    uid: str
    slices: str


class DicomOrigin(Part):
    """The series of a study that a case's channels are."""

    study: str
    series: tuple[Series, ...]

    def in_words(self) -> str:
        """Name them."""
        return f"series {', '.join(one.uid for one in self.series)} of study {self.study}"


class Source(Part):
    """What images were made of, told to who predicts them.

    Attributes:
        origins: Of each case of DICOM.
        known: Names of all cases that there are, also those that are not among the images.
    """

    origins: dict[str, DicomOrigin] = Field(default_factory=dict)
    known: tuple[str, ...] = ()

    @classmethod
    def of_images(cls, folder: Path) -> "Source":
        """Read what lies beside the images; nothing is known of those that were no DICOM."""
        return _part(cls, folder / SOURCE_FILE) or cls()

    def write(self, folder: Path) -> None:
        """Write it beside the images."""
        write_json(folder / SOURCE_FILE, self.model_dump())


class Entry(Part):
    """What is known of a label map.

    Attributes:
        settings, prompts: Digests of what it is made with.
        files: The images, and what else it is made of, while it is not there yet.
        images: The same, once it is there, the images first.
        dicom: What the images were made of.
        label_map: As it was written; None while it is not there yet.
        written_ns: When that was.
        companions: What else was written of the case, by the file's name.
    """

    settings: str
    prompts: str
    files: tuple[str, ...] = ()
    images: tuple[Mark, ...] = ()
    dicom: DicomOrigin | None = None
    label_map: Mark | None = None
    written_ns: int = 0
    companions: dict[str, Mark] = Field(default_factory=dict)

    def is_of(self, images: Sequence[Path], dicom: DicomOrigin | None) -> bool:
        """Tell whether it was made of these images; those of DICOM are known by their series."""
        if self.dicom != dicom or len(self.images) < len(images):
            return False
        return dicom is not None or all(mark.fits(file) for mark, file in zip(self.images, images, strict=False))


def _part(kind: Any, file: Path) -> Any:
    content = read_json_if_whole(file)
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError:
        return None


def _entry_file(label_map: Path) -> Path:
    name = label_map.name if len(label_map.name.encode()) <= LONGEST_NAME else digest_of(label_map.name)
    return label_map.parent / RECORDS_FOLDER / f"{name}.json"


def read_entry(label_map: Path) -> Entry | None:
    """Read what is known of a label map; None if nothing is, or it cannot be read."""
    found: Entry | None = _part(Entry, _entry_file(label_map))
    return found


def _write_entry(label_map: Path, entry: Entry) -> None:
    write_json(_entry_file(label_map), entry.model_dump())


def write_noted_label_map(
    label_map_ZYX: np.ndarray,
    path: Path,
    image: Path,
    properties: Mapping[str, Any],
    reader: DatasetReader,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write a label map as `write_label_map` does, and complete its entry before it appears."""
    write_label_map(label_map_ZYX, path, image, properties, reader, write_more, partial(_complete, path))


def _complete(label_map: Path, written: Path) -> None:
    entry = read_entry(label_map)
    if entry is not None:
        images = entry.images or tuple(Mark.of(Path(file)) for file in entry.files)
        mark, written_ns = Mark.of(written), written.stat().st_mtime_ns
        made = {"files": (), "images": images, "label_map": mark, "written_ns": written_ns}
        made["companions"] = _without_ours(label_map, entry.companions)  # those of the label map before
        _write_entry(label_map, entry.model_copy(update=made))


def _without_ours(label_map: Path, companions: Mapping[str, Mark]) -> dict[str, Mark]:
    """Remove what was written beside a label map, as it was written; give what is left since somebody changed it."""
    for name, mark in companions.items():
        if mark.fits(label_map.with_name(name)):
            label_map.with_name(name).unlink()
    return {name: mark for name, mark in companions.items() if label_map.with_name(name).is_file()}


def _note_places(label_map: Path, entry: Entry, images: Sequence[Path]) -> None:
    """Note where images are now that were elsewhere, so that they need not be read the next time."""
    there = [mark.model_copy(update={"seen": _seen(file)}) for mark, file in zip(entry.images, images, strict=False)]
    marks = (*there, *entry.images[len(there) :])
    if entry.dicom is None and marks != entry.images:
        _write_entry(label_map, entry.model_copy(update={"images": marks}))


def note_companion(label_map: Path, file: Path) -> None:
    """Note what was written beside a label map."""
    entry = read_entry(label_map)
    if entry is not None:
        companions = entry.companions | {file.name: Mark.of(file)}
        _write_entry(label_map, entry.model_copy(update={"companions": companions}))


def is_changed(label_map: Path, file: Path) -> bool:
    """Tell whether what lies beside a label map was changed after we wrote it, as far as that is known."""
    entry = read_entry(label_map)
    mark = None if entry is None else entry.companions.get(file.name)
    return mark is not None and file.is_file() and not mark.fits(file)


@dataclass(frozen=True)
class Sorting:
    """What a run does with its cases.

    Attributes:
        to_do: To be predicted.
        kept: Names of those of them whose label maps stay until the new ones are there, since they are the same: only
            something beside them is missing.
        skipped: Names of those whose label maps stay.
        refused: Those of which neither can be, and why.
    """

    to_do: list[Case] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputRecord:
    """An output folder, and what a run makes its label maps with.

    Attributes:
        output: The folder.
        file_ending: Of label maps.
        reader: Of the model's dataset.
        settings: What a prediction depends on besides the image.
        prompts: By case.
        source: Of the images.
        before: The settings' file of the run before; None where there was none.
        more_files: What a case is made of besides its images.
    """

    output: Path
    file_ending: str
    reader: DatasetReader
    settings: Mapping[str, Any]
    prompts: Mapping[str, Any]
    source: Source
    before: Mapping[str, Any] | None
    more_files: Callable[[str], Sequence[Path]] = lambda _name: ()

    @property
    def earlier(self) -> Mapping[str, Any] | None:
        """What label maps without an entry were made with, of a version that wrote none; None where there are none."""
        if self.before is None:
            return None
        earlier = self.before.get(EARLIER) if ENTRIES in self.before else self.before
        return earlier if isinstance(earlier, dict) else None

    def write_settings(self) -> None:
        """Write what the run makes its label maps with, for people, and for label maps without an entry."""
        earlier = {} if self.earlier is None else {EARLIER: dict(self.earlier)}
        content = {**self.settings, "prompts": dict(self.prompts), ENTRIES: RECORDS_FOLDER}
        write_json(self.output / SETTINGS_FILE, content | earlier)

    def sort(self, cases: Iterable[Case], has_companions: Callable[[Case, Path], bool]) -> Sorting:
        """Tell what to do with each case, and say what is unusual of it.

        Args:
            cases: All of the run.
            has_companions: Tells whether all that is wanted lies beside a case's label map.
        """
        found = Sorting()
        worked_on: list[str] = []
        otherwise: list[str] = []
        for case in cases:
            if not is_whole(self.label_map(case.name)):
                found.to_do.append(case)
                continue
            other_image, differs = self._other_image(case), self._differs(case)
            is_current = other_image is None and not differs and self._same_prompts(case.name)
            if is_current and has_companions(case, self.label_map(case.name)):
                found.skipped.append(case.name)
            elif not self._is_worked_on(case.name):
                found.to_do.append(case)
                found.kept.extend([case.name] if is_current else [])
                otherwise += [case.name] if differs else []
                self._tell_other_dicom(case.name, other_image)
            elif other_image is None:
                found.skipped.append(case.name)
                worked_on.append(case.name)
            else:
                found.refused[case.name] = self._why_refused(case.name, other_image)
        self._tell(worked_on, otherwise)
        return found

    def begin(self, cases: Iterable[Case]) -> None:
        """Take away what is made anew, and note what of and what with.

        Args:
            cases: Without those whose label maps are kept.

        Raises:
            DatasetError: If the folder cannot be written to.
        """
        for case in cases:
            try:
                self._begin(case)
            except OSError as problem:
                raise DatasetError(f"{self.output} cannot be written to ({problem}); choose another with -o") from None

    def label_map(self, name: str) -> Path:
        """Give the label map of a case."""
        return self.output / f"{name}{self.file_ending}"

    def _begin(self, case: Case) -> None:
        label_map, dicom = self.label_map(case.name), self.source.origins.get(case.name)
        before = read_entry(label_map)
        companions = {} if before is None else before.companions
        label_map.unlink(missing_ok=True)
        left = _without_ours(label_map, companions)
        files = tuple(str(file) for file in self._files_of(case))
        settings, prompts = digest_of(self.settings), self._prompts_of(case.name)
        entry = Entry(settings=settings, prompts=prompts, files=files, dicom=dicom, companions=left)
        _write_entry(label_map, entry)

    def _files_of(self, case: Case) -> list[Path]:
        return [*self.reader.files_of(case.files), *(file for file in self.more_files(case.name) if file.is_file())]

    def _prompts_of(self, name: str) -> str:
        return digest_of(self.prompts.get(name))

    def _made(self, name: str) -> Entry | None:
        entry = read_entry(self.label_map(name))
        return None if entry is None or entry.label_map is None else entry

    def _other_image(self, case: Case) -> str | None:
        """Say what a label map was made of, if not of this image."""
        label_map, entry = self.label_map(case.name), self._made(case.name)
        if entry is None and self._is_older(label_map, case):
            return "is older than what it is made of"
        images = self.reader.files_of(case.files)
        if entry is not None and entry.is_of(images, self.source.origins.get(case.name)):
            _note_places(label_map, entry, images)
        elif entry is not None:
            return f"was made of {'another image' if entry.dicom is None else entry.dicom.in_words()}"
        return None if has_shape_of(label_map, case, self.reader) else "has another shape than the image"

    def _is_older(self, label_map: Path, case: Case) -> bool:
        return any(file.stat().st_mtime_ns > label_map.stat().st_mtime_ns for file in self._files_of(case))

    def _differs(self, case: Case) -> bool:
        """Tell whether a label map was made with other settings; of one of others, in a folder without any, not.

        Another label map of the first stage is another setting; of one that is missing nothing is known.
        """
        entry = self._made(case.name)
        if entry is not None:
            marks = entry.images[len(self.reader.files_of(case.files)) :]
            more = [file for file in self.more_files(case.name) if file.is_file()]
            other_stage = len(marks) == len(more) and not all(
                mark.fits(file) for mark, file in zip(marks, more, strict=True)
            )
            return other_stage or entry.settings != digest_of(self.settings)
        before = self.before if self.earlier is None else self.earlier
        return before is not None and digest_of(_without_notes(before)) != digest_of(self.settings)

    def _same_prompts(self, name: str) -> bool:
        entry = self._made(name)
        if entry is not None:
            return entry.prompts == self._prompts_of(name)
        before = (self.before if self.earlier is None else self.earlier) or {}
        return digest_of(before.get("prompts", {}).get(name)) == self._prompts_of(name)

    def _is_worked_on(self, name: str) -> bool:
        """Tell whether a label map may be somebody's work: it is not as we wrote it, or newer prompts lie beside it.

        One without an entry is, but in folders of a version that wrote none.
        """
        label_map = self.label_map(name)
        entry, prompts = read_entry(label_map), self.output / f"{name}{PROMPTS_ENDING}"
        if entry is not None and entry.label_map is not None:
            said_later = prompts.is_file() and prompts.stat().st_mtime_ns > entry.written_ns
            return said_later or not entry.label_map.fits(label_map)
        return entry is not None or self.earlier is None or prompts.is_file()

    def _why_refused(self, name: str, other_image: str) -> str:
        dicom = self.source.origins.get(name)
        these = "" if dicom is None else f" (these images are {dicom.in_words()})"
        return f"{self.label_map(name)} is not as sam3d_predict wrote it, and {other_image}{these}; {WHAT_TO_DO}"

    def _tell_other_dicom(self, name: str, other_image: str | None) -> None:
        dicom, entry = self.source.origins.get(name), self._made(name)
        if other_image is None or dicom is None or entry is None or entry.dicom == dicom:
            return
        of_now = f"these images are {dicom.in_words()}; it is made anew"
        logger.warning("Warning: %s %s, and %s", self.label_map(name), other_image, of_now)

    def _tell(self, worked_on: Sequence[str], otherwise: Sequence[str]) -> None:
        if otherwise:
            logger.warning(
                "%s holds predictions of another model or with other settings; those of these images are made anew",
                self.output,
            )
        if worked_on:
            logger.warning(
                "Warning: %s: these label maps are not as sam3d_predict wrote them and stay, though other settings, "
                "prompts or files beside them are asked for: %s; give another folder with -o, or move them away",
                self.output,
                ", ".join(worked_on),
            )


def _without_notes(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ("prompts", ENTRIES, EARLIER)}
