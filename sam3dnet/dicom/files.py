"""The DICOM files of a folder of any depth, or of a zip file, and what their headers say."""

import importlib
import logging
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

EXTRA = "pip install 'sam3dnet[dicom]'"
MARK_AT, MARK = 128, b"DICM"  # after the preamble
FIRST_GROUPS = (0x0002, 0x0008)  # that files without preamble, as older archives export, begin with
FIRST_VALUES = {b"UL", b"OB", b"CS", b"UI", b"LO", b"SH", b"DA", b"DT", b"TM"}  # kinds of the elements there
LONGEST_FIRST_VALUE = 256  # bytes
INDEX = "DICOMDIR"
LARGEST_HEADER_VALUE = 1 << 16  # bytes; longer ones, of private elements and images, are not read with a header

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance:
    """One file, as far as its header goes."""

    file: Path
    header: "Dataset"

    def of(self, keyword: str, default: Any = None) -> Any:
        """Give an element of the header; the default also for an empty one."""
        value = self.header.get(keyword)
        return default if value is None or value == "" else value


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        instances: Its DICOM files, in the order of their names.
        damaged: Files that begin as DICOM does and cannot be read, and why.
        others: How many files are something else.
    """

    instances: tuple[Instance, ...]
    damaged: dict[Path, str]
    others: int


def require_pydicom() -> Any:
    """Import pydicom.

    Raises:
        DatasetError: If it is not installed.
    """
    return _require("pydicom")


def require_highdicom() -> Any:
    """Import highdicom.

    Raises:
        DatasetError: If it is not installed.
    """
    return _require("highdicom")


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as problem:
        raise DatasetError(f"DICOM needs {package}, which is not installed; {EXTRA}") from problem


def is_dicom_file(file: Path) -> bool:
    """Tell whether a file begins as one of DICOM's."""
    try:
        with file.open("rb") as opened:
            return _begins_as_dicom(opened.read(MARK_AT + len(MARK)))
    except OSError:
        return False


def _begins_as_dicom(start: bytes) -> bool:
    """Tell by the mark after the preamble, or where there is none, by a first element of DICOM's first groups."""
    if start[MARK_AT:] == MARK:
        return True
    if len(start) < MARK_AT + len(MARK):
        return False
    if int.from_bytes(start[:2], "little") not in FIRST_GROUPS:
        return False
    return start[4:6] in FIRST_VALUES or 0 < int.from_bytes(start[4:8], "little") <= LONGEST_FIRST_VALUE


def read_dataset(file: Path, **options: Any) -> "FileDataset":
    """Read a file of DICOM's, with or without preamble and the group that says how the rest is written.

    Args:
        file: The file.
        options: Of pydicom.dcmread.

    Raises:
        DatasetError: If pydicom is not installed.
    """
    pydicom = require_pydicom()
    dataset: FileDataset = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in dataset.file_meta:
        explicit = pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if dataset.original_encoding[0] else explicit
        )
    return dataset


def holds_dicom(source: Path) -> bool:
    """Tell whether a file, a folder of any depth, or a zip file holds DICOM; the first such file is enough."""
    if source.is_dir():
        return any(is_dicom_file(file) for file in _files_below(source))
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            return any(_is_dicom_member(archive, member) for member in archive.infolist() if not member.is_dir())
    return is_dicom_file(source)


def _is_dicom_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as opened:
            return _begins_as_dicom(opened.read(MARK_AT + len(MARK)))
    except (OSError, RuntimeError, zipfile.BadZipFile):  # RuntimeError: a password is needed
        return False


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


@contextmanager
def as_folder(source: Path) -> Iterator[Path]:
    """Give the folder itself, or one that a zip file is unpacked into and that goes afterwards.

    Raises:
        DatasetError: If there is nothing, or the zip file is damaged, or its names lead out of it.
    """
    if source.is_dir():
        yield source
    elif zipfile.is_zipfile(source):
        with tempfile.TemporaryDirectory(prefix="sam3d_dicom-") as name:
            _unpack(source, Path(name))
            yield Path(name)
    elif is_dicom_file(source):
        yield source
    else:
        what = "is neither a folder, nor a zip file, nor DICOM" if source.exists() else "does not exist"
        raise DatasetError(f"{source} {what}; give a folder or a zip file with DICOM files")


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a zip file's DICOM files, each under a number: its own names stay inside of it."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            room = shutil.disk_usage(folder).free
            if (wanted := sum(member.file_size for member in members)) > room:
                raise DatasetError(
                    f"{source}: takes {wanted / 1e9:.1f} GB unpacked, and {folder.parent} has {room / 1e9:.1f} GB; "
                    "make room, or set TMPDIR to another disk"
                )
            for number, member in enumerate(members):
                with archive.open(member) as packed, (folder / f"{number:06d}").open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    except (OSError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as problem:
        raise DatasetError(f"{source}: cannot be unpacked ({problem}); pack it again, without a password") from problem


def read_headers(source: Path) -> Found:
    """Read the headers of all DICOM files of a folder, or of one file.

    Raises:
        DatasetError: If pydicom is not installed.
    """
    require_pydicom()
    instances, damaged, others = [], {}, 0
    for file in _files_below(source) if source.is_dir() else [source]:
        if file.name.upper() == INDEX:
            continue
        if not is_dicom_file(file):
            others += 1
            continue
        try:
            header = read_dataset(file, stop_before_pixels=True, defer_size=LARGEST_HEADER_VALUE)
            header.SOPClassUID, header.SOPInstanceUID, header.SeriesInstanceUID  # noqa: B018 - those that all have
        except Exception as problem:  # pydicom raises many kinds
            damaged[file] = f"{type(problem).__name__}: {problem}"
            continue
        instances.append(Instance(file, header))
    return Found(tuple(_without_copies(instances)), damaged, others)


def _without_copies(instances: list[Instance]) -> list[Instance]:
    """Leave out files that hold the same instance as an earlier one: exports hold them twice."""
    counts = Counter(str(instance.header.SOPInstanceUID) for instance in instances)
    copies = sum(counts.values()) - len(counts)
    if copies:
        logger.info("%d files hold an image that another one holds too; each counts once", copies)
    return list({str(instance.header.SOPInstanceUID): instance for instance in reversed(instances)}.values())[::-1]
