"""The images to segment: found, checked, read ahead and preprocessed as in training."""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3dnet.errors import DatasetError
from sam3dnet.inference.models import LoadedModel
from sam3dnet.preprocessing.cases import CHANNEL_SUFFIX_LENGTH, channel_names, channel_of
from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.checks_description import accepted_checks
from sam3dnet.preprocessing.checks_geometry import compare_grids
from sam3dnet.preprocessing.names import entries, fault_of_output, has_ending_in_other_case, not_a_file
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.world import WORLD

logger = logging.getLogger(__name__)

ImageSource = str | Path | Sequence[str | Path] | npt.ArrayLike
Preprocessed = tuple[Tensor, dict[str, Any]]

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".dcm", ".tif", ".tiff", ".png", ".bmp")
OF_LABELS = "labels"  # how nnU-Net's folders of label maps begin
_EXPECTED_ARRAY = "expected numbers (Z, Y, X) or (C, Z, Y, X), or the name of a file"
BYTES_AHEAD = 4 << 30  # of all images that are read or wait, unless a single one takes more
BYTES_A_VALUE = 4
PEAK_OF_READING = 4  # times the memory of the image itself: file, copy, mask, resampled


@dataclass(frozen=True)
class Case:
    """One image, a file a channel, in the order of the channels."""

    name: str
    files: tuple[Path, ...]


GONE = "gone"

PreviousLabels = Callable[[Case | None, np.ndarray, Mapping[str, Any]], np.ndarray]


def find_cases(folder: Path, file_ending: str, num_channels: int) -> tuple[list[Case], dict[str, str]]:
    """Group the files of a folder into cases, named CASE_0000, CASE_0001 and so on before the ending.

    Files of other formats are left out, which is told once.

    Args:
        folder: Folder with the images.
        file_ending: The ending that the model's dataset has, such as ".nii.gz".
        num_channels: Files that a case must have.

    Returns:
        The complete cases by name, and for every other one the reason why it cannot be predicted.

    Raises:
        DatasetError: If the folder does not exist, holds no file with this ending, or is one of label maps.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise DatasetError(f"input folder {folder} {what}; give a folder with images named CASE_0000{file_ending}")
    files = entries(folder)
    wanted: list[Path] = []
    others: list[Path] = []
    for path in files:
        (wanted if path.name.lower().endswith(file_ending.lower()) else others).append(path)
    foreign = sorted({ending for path in others if (ending := _ending(path))})
    if not wanted:
        folders = [path.name for path in files if path.is_dir()]
        found, remedy = "it holds no image", "put images there"
        if foreign:
            found, remedy = f"it holds files ending in {', '.join(foreign)}", "convert the images"
        elif folders:
            found, remedy = f"it holds no image, but the folders {shorten(folders)}", "name the folder of the images"
        raise DatasetError(
            f"input folder {folder}: the model wants images ending in {file_ending}, {found}; {remedy}, each as "
            f"CASE_0000{file_ending}"
        )
    if folder.name.startswith(OF_LABELS) and all(channel_of(path, file_ending) is None for path in wanted):
        raise DatasetError(f"input folder {folder}: holds label maps, by its name and theirs; name that of the images")
    if foreign:
        _tell_left_out(folder, ", ".join(foreign), file_ending)
    return _group(wanted, file_ending, num_channels)


@cache
def _tell_left_out(folder: Path, foreign: str, file_ending: str) -> None:
    """Say what is left out; once, since whoever watches a folder asks for its cases every few seconds."""
    logger.warning("%s: files ending in %s are left out, the model wants %s", folder, foreign, file_ending)


def _group(files: Sequence[Path], file_ending: str, num_channels: int) -> tuple[list[Case], dict[str, str]]:
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    failed: dict[str, str] = {}
    names = {path.name for path in files}
    for path in files:
        channel = channel_of(path, file_ending)
        name = path.name.removesuffix(file_ending)
        first = f"{name}_0000{file_ending}"
        if has_ending_in_other_case(path, file_ending):
            failed[path.name] = f"{path.name}: expected the ending {file_ending}; rename it"
        elif channel is None and first in names:  # as a label map beside its image
            failed[path.name] = f"{path.name} has no channel number, and there is {first}; move it away"
        elif channel is None:
            failed[name] = f"{path.name} has no channel number; name it {first}"
        else:
            channels[name[:-CHANNEL_SUFFIX_LENGTH]][channel] = path
    cases = []
    for name, found in sorted(channels.items()):
        lost = [f"{path.name} is {what}" for path in found.values() if (what := not_a_file(path)) is not None]
        overwritten = fault_of_output(name, file_ending)
        if lost or overwritten:
            failed[name] = f"{'; '.join(lost)}; put the image there" if lost else str(overwritten)
        elif sorted(found) == list(range(num_channels)):
            cases.append(Case(name, tuple(found[channel] for channel in range(num_channels))))
        else:
            failed[name] = (
                f"the model wants {num_channels} channel(s), files {name}_{_numbers(range(num_channels))}{file_ending};"
                f" there are {_numbers(sorted(found))}"
            )
    return cases, failed


def seen(files: Iterable[Path]) -> tuple[str, ...]:
    """Say by what files are known again without being read: their sizes and the times when they were written."""
    found = []
    for file in files:
        try:
            status = file.stat()
            found.append(f"{status.st_size} {status.st_mtime_ns}")
        except OSError:
            found.append(GONE)
    return tuple(found)


def seen_by_file(files: Sequence[Path]) -> dict[Path, str]:
    """Say of each file by what it is known again, see `seen`."""
    return dict(zip(files, seen(files), strict=True))


def changed_since(image: Mapping[Path, str]) -> list[Path]:
    """List the files that are there, but not as they were seen."""
    return [file for file, known in image.items() if seen([file])[0] not in (known, GONE)]


def _numbers(channels: Iterable[int]) -> str:
    return f"{{{','.join(f'{channel:04d}' for channel in channels)}}}"


def _ending(path: Path) -> str:
    return next((ending for ending in IMAGE_ENDINGS if path.name.lower().endswith(ending)), "")


def require_whole(case: Case, reader: DatasetReader, accepted: Collection[str] = (), label: Path | None = None) -> None:
    """Check the files of a case as a dataset is verified before training: whole, finite numbers, on one grid.

    Args:
        case: What to check.
        reader: Of the model's dataset.
        label: Checked with the channels.
        accepted: Names of checks that the model's dataset accepts (`accepted_checks`).

    Raises:
        DatasetError: With all that is wrong.
    """
    problems, grids = [], []
    for file in (*case.files, *([label] if label else [])):
        damages = check_bytes(case.name, file)
        grid, more = reader.read_grid(case.name, file, is_label=file is label)
        problems += damages if damages and grid is None else damages + more
        grids += [] if grid is None else [(file, grid)]
    for file, grid in grids[1:]:
        first, expected = grids[0]
        problems += compare_grids(case.name, (first.name, expected), (file.name, grid), is_label=file is label)
    errors = [problem.message for problem in problems if problem.severity == "error" and problem.check not in accepted]
    if errors:
        raise DatasetError("; ".join(errors))


def is_damaged(path: Path) -> bool:
    """Tell whether a file is truncated or its bytes are not what was written."""
    return any(problem.severity == "error" for problem in check_bytes(path.name, path))


class ImageInput:
    """Reads and preprocesses images for one model.

    Args:
        model: Whose plan says how.
        previous: (case, image as its reader gave it, properties) -> label map (Z, Y, X) of the first stage, for a
            cascade's second stage; see `cascade.make_input`.

    Attributes:
        reader: Of the model's dataset.
    """

    def __init__(self, model: LoadedModel, previous: PreviousLabels | None = None):
        assert (previous is not None) == bool(model.input_labels), "a second stage needs the first stage's label maps"
        self._model, self._previous = model, previous
        self.reader = model.reader
        self._preprocessor = model.configuration.preprocessor_class(verbose=False)

    def take(self, image: ImageSource, spacing_mm: Sequence[float] | None = None) -> Preprocessed:
        """Read and preprocess one image, in files or in memory.

        Args:
            image: A file, of which further channels lie beside the first (CASE_0000, CASE_0001, ...); the files of all
                channels; or an array (Z, Y, X) or (C, Z, Y, X).
            spacing_mm: (Z, Y, X) of an array; a file says its own.

        Raises:
            DatasetError: As of `read` and `preprocess`, and if an array comes without its spacing.
        """
        if not _names_files(image):
            return self.preprocess(as_channels(image), {"spacing": as_spacing(spacing_mm)})
        if spacing_mm is not None:
            raise DatasetError("spacing_mm came with a file, which says its own; give it with an array only")
        return self.read(self._case(image))

    def voxels(self, image: ImageSource) -> npt.NDArray[np.float32]:
        """Give an image as its reader gives it, (C, Z, Y, X); arguments and errors as of `take`."""
        return self.reader.read_images(self._case(image).files)[0] if _names_files(image) else as_channels(image)

    def _case(self, image: str | Path | Sequence[str | Path]) -> Case:
        """Find the files of all channels."""
        ending = self._model.dataset_json["file_ending"]
        files = [Path(image)] if isinstance(image, str | Path) else [Path(file) for file in image]
        first, channels = files[0], len(channel_names(self._model.dataset_json))
        if len(files) == 1 and channels > 1 and channel_of(first, ending) is not None:
            stem = first.name.removesuffix(ending)[:-CHANNEL_SUFFIX_LENGTH]
            files = [first.with_name(f"{stem}_{channel:04d}{ending}") for channel in range(channels)]
        return Case(first.name.removesuffix(ending), tuple(files))

    def read(self, case: Case) -> Preprocessed:
        """Read and preprocess one case.

        Raises:
            DatasetError: If a file is damaged, or the case is not as the model wants it.
        """
        require_whole(case, self.reader, accepted_checks(self._model.dataset_json))
        remark = self._other_orientation(case)
        if remark is not None:
            logger.warning("Warning: %s", remark)
        image, properties = self.reader.read_images(case.files)
        world = self.reader.world_of(case.files[0])
        return self.preprocess(image, properties if world is None else {**properties, WORLD: world}, case)

    def remarks(self, image: ImageSource) -> list[str]:
        """Say what is unusual of an image, for its user; of an array nothing is known."""
        if not _names_files(image):
            return []
        remark = self._other_orientation(self._case(image))
        return [] if remark is None else [remark]

    def _other_orientation(self, case: Case) -> str | None:
        """Say that an image is stored in another orientation than all that the model was trained on; None if not."""
        known = self._model.plans.plans.get("sam3d", {}).get("orientations")
        grid, _ = self.reader.read_grid(case.name, case.files[0])
        if not known or grid is None or grid.orientation in known:
            return None
        return (
            f"{case.files[0]} is stored in the orientation {grid.orientation}, all images of the training were in "
            f"{', '.join(known)}: the model sees it rotated or mirrored; bring it to one of these"
        )

    def preprocess(
        self, image_CZYX: np.ndarray, properties: Mapping[str, Any], case: Case | None = None
    ) -> Preprocessed:
        """Preprocess an image.

        Args:
            image_CZYX: Float32, a channel a file of the dataset.
            properties: Of nnU-Net's reader; "spacing" in mm (Z, Y, X) is enough.
            case: Whose files it is from, if it is from files.

        Returns:
            The preprocessed image (C, Z, Y, X), in a cascade with a channel for each label of the first stage, and the
            properties, completed by where it was cropped.

        Raises:
            DatasetError: If the number of channels is another one, or the image is not finite.
        """
        model = self._model
        image_CZYX = self._finite(image_CZYX)
        expected = len(channel_names(model.dataset_json))
        if len(image_CZYX) != expected:
            raise DatasetError(
                f"the files hold {len(image_CZYX)} channels, the model wants {expected}; leave the others out"
            )
        before = None
        if self._previous is not None:
            before = self._previous(case, image_CZYX, properties)[None].astype(np.float32)  # as a reader gives it
        image, labels, completed = self._preprocessor.run_case_npy(
            image_CZYX, before, dict(properties), model.plans, model.configuration, model.dataset_json
        )
        completed.pop("class_locations", None)
        return as_tensor(image if before is None else with_labels(image, labels[0], model.input_labels)), completed

    def _finite(self, image_CZYX: np.ndarray) -> np.ndarray:
        """See that all voxels are finite, or make those 0 that are not where the model's dataset accepts them."""
        if np.isfinite(image_CZYX).all():
            return image_CZYX
        if self.reader.zeroes_non_finite:
            return np.nan_to_num(image_CZYX, nan=0.0, posinf=0.0, neginf=0.0)
        raise DatasetError(
            "the image has voxels that are NaN, infinite or beyond float32; replace them by the value of air"
        )


def _names_files(image: Any) -> TypeGuard[str | Path | Sequence[str | Path]]:
    if isinstance(image, list | tuple):
        return bool(image) and all(isinstance(one, str | Path) for one in image)
    return isinstance(image, str | Path)


def as_channels(image: Any) -> npt.NDArray[np.float32]:
    """Take an image in memory: an array of any real type, or what numpy makes one of, such as a tensor.

    Args:
        image: (Z, Y, X) or (C, Z, Y, X).

    Returns:
        A copy (C, Z, Y, X).

    Raises:
        DatasetError: If it is none.
    """
    try:
        given = np.asarray(image)
    except (ValueError, TypeError, RuntimeError) as problem:  # lists of uneven lengths, tensors on a card
        raise DatasetError(f"the image cannot be made an array ({problem}); {_EXPECTED_ARRAY}") from problem
    if given.dtype.kind not in "buif" or given.ndim not in (3, 4) or given.size == 0:
        raise DatasetError(f"the image has shape {given.shape} and type {given.dtype}; {_EXPECTED_ARRAY}")
    with np.errstate(over="ignore"):
        return np.array(given if given.ndim == 4 else given[None], dtype=np.float32)


def as_spacing(spacing_mm: Sequence[float] | None) -> list[float]:
    """Check the spacing of an image in memory.

    Raises:
        DatasetError: If it is not three lengths.
    """
    try:
        found = [] if spacing_mm is None or isinstance(spacing_mm, str) else [float(mm) for mm in spacing_mm]
    except (TypeError, ValueError):
        found = []
    if len(found) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in found):
        raise DatasetError(
            f"spacing_mm is {spacing_mm!r}; expected three millimetres above 0 (Z, Y, X), which an array does not say"
        )
    return found


def image_bytes(
    case: Case, reader: DatasetReader, spacing_mm: Sequence[float], label_channels: int = 0, is_label: bool = False
) -> int:
    """Estimate from the header what an image takes in memory, in float32, on the finer of its own grid and the plan's.

    Args:
        case: The image.
        reader: Of its dataset.
        spacing_mm: Of the plan, in any order.
        label_channels: Beside the image's, in a cascade.
        is_label: Whether the file is the image's label map.

    Returns:
        The bytes; 0 if the header cannot be read.
    """
    grid = reader.read_grid(case.name, case.files[0], is_label)[0]
    if grid is None:
        return 0
    voxels = math.prod(grid.shape)
    resampled = voxels * math.prod(grid.spacing_mm) / math.prod(spacing_mm)
    return int((len(case.files) + label_channels) * BYTES_A_VALUE * max(voxels, resampled))


def read_ahead(
    cases: Sequence[Case],
    read: Callable[[Case], Preprocessed],
    ahead: int,
    bytes_of: Callable[[Case], int],
) -> Iterator[tuple[Case, Future[Preprocessed]]]:
    """Yield each case with its reading, while the next ones are being read.

    Args:
        cases: In the order in which they are yielded.
        read: Reads and preprocesses a case; what it raises is raised by the future's result.
        ahead: Number of images that are read ahead, each in a thread; 0 reads each in this thread when its turn comes.
        bytes_of: What an image takes in memory once it is read.
    """
    if ahead == 0:
        for case in cases:
            yield case, _read_now(read, case)
        return
    readers = ThreadPoolExecutor(ahead)
    waiting: deque[tuple[Case, Future[Preprocessed], int]] = deque()
    try:
        for case in cases:
            size = bytes_of(case)
            while waiting and (len(waiting) > ahead or not _fits(size, waiting)):
                yield waiting.popleft()[:2]
            waiting.append((case, readers.submit(read, case), size))
        while waiting:
            yield waiting.popleft()[:2]
    except BaseException:  # nobody wants the rest any more
        readers.shutdown(wait=False, cancel_futures=True)
        raise
    readers.shutdown(wait=False)


def _fits(size: int, waiting: Sequence[tuple[Case, Future[Preprocessed], int]]) -> bool:
    taken = sum(other * (1 if reading.done() else PEAK_OF_READING) for _, reading, other in waiting)
    return taken + size * PEAK_OF_READING <= BYTES_AHEAD


def _read_now(read: Callable[[Case], Preprocessed], case: Case) -> Future[Preprocessed]:
    reading: Future[Preprocessed] = Future()
    try:
        reading.set_result(read(case))
    except Exception as error:  # as a thread of a pool does
        reading.set_exception(error)
    return reading


def with_labels(image_CZYX: np.ndarray, labels_ZYX: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Add a channel for each of these labels, 1 where a label map has it, as nnU-Net does for a second stage."""
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    return np.vstack((image_CZYX, convert_labelmap_to_one_hot(labels_ZYX, list(values), image_CZYX.dtype)))


def as_tensor(image_CZYX: np.ndarray) -> Tensor:
    """Return the image as a contiguous float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image_CZYX, dtype=np.float32))
