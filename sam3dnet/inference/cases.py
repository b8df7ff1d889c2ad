"""The images to predict: which files belong to which case, and whether a file is whole."""

import gzip
import logging
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.errors import DatasetError
from sam3dnet.inference.nifti_header import HEADER_BYTES, NIFTI_ENDINGS, bytes_by_header, is_compressed, read_header

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".dcm", ".tif", ".tiff", ".png", ".bmp")
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Case:
    """One image, a file a channel, in the order of the channels."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class ImageGrid:
    """Voxels and geometry as a file's header gives them; (X, Y, Z), millimetres, LPS."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]


def find_cases(folder: Path, file_ending: str, num_channels: int) -> tuple[list[Case], dict[str, str]]:
    """Group the files of a folder into cases, named CASE_0000, CASE_0001 and so on before the ending.

    Args:
        folder: Folder with the images.
        file_ending: The ending that the model's dataset has, such as ".nii.gz".
        num_channels: Files that a case must have.

    Returns:
        The complete cases by name, and for every other one the reason why it cannot be predicted.

    Raises:
        DatasetError: If the folder does not exist or holds no file with this ending.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"input folder {folder} does not exist; give a folder with images named CASE_0000{file_ending}"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    wanted = [path for path in files if path.name.endswith(file_ending)]
    foreign = sorted({_ending(path) for path in files if path not in wanted and _ending(path)})
    if not wanted:
        found = f"it holds files ending in {', '.join(foreign)}" if foreign else "it holds no image"
        raise DatasetError(
            f"input folder {folder}: the model wants images ending in {file_ending}, {found}; "
            f"convert the images and name them CASE_0000{file_ending}"
        )
    if foreign:
        logger.warning(
            "%s: files ending in %s are left out, the model wants %s", folder, ", ".join(foreign), file_ending
        )
    return _group(wanted, file_ending, num_channels)


def _group(files: Sequence[Path], file_ending: str, num_channels: int) -> tuple[list[Case], dict[str, str]]:
    pattern = re.compile(rf"(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(file_ending)}")
    channels: dict[str, dict[str, Path]] = defaultdict(dict)
    failed = {}
    for path in files:
        match = pattern.fullmatch(path.name)
        if match is None:
            name = path.name.removesuffix(file_ending)
            failed[name] = f"{path.name} has no channel number; name it {name}_0000{file_ending}"
        else:
            channels[match["case"]][match["channel"]] = path
    expected = [f"{channel:04d}" for channel in range(num_channels)]
    cases = []
    for name, found in sorted(channels.items()):
        if sorted(found) == expected:
            cases.append(Case(name, tuple(found[channel] for channel in expected)))
        else:
            failed[name] = (
                f"the model wants {num_channels} channel(s), files {name}_{{{','.join(expected)}}}{file_ending}; "
                f"there are {{{','.join(sorted(found))}}}"
            )
    return cases, failed


def _ending(path: Path) -> str:
    return next((ending for ending in IMAGE_ENDINGS if path.name.lower().endswith(ending)), "")


def require_whole(case: Case) -> None:
    """Check that the files of a case are whole and lie on one grid.

    Raises:
        DatasetError: If a file is empty, truncated or damaged, or the channels differ in shape or spacing.
    """
    for path in case.files:
        if (problem := damage(path)) is not None:
            raise DatasetError(f"{path.name}: {problem}; export the image again")
    grids = [grid for grid in map(read_grid, case.files) if grid is not None]
    for path, grid in zip(case.files, grids, strict=False):
        if grid.size != grids[0].size or not _close(grid.spacing_mm, grids[0].spacing_mm):
            raise DatasetError(
                f"{path.name} has {_describe(grid)}, {case.files[0].name} {_describe(grids[0])}; "
                "resample the channels to one grid"
            )


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(abs(a - b) <= 1e-4 * max(abs(a), abs(b)) for a, b in zip(first, second, strict=True))


def _describe(grid: ImageGrid) -> str:
    size = " x ".join(map(str, grid.size))
    return f"{size} voxels (X, Y, Z) at {' x '.join(f'{s:g}' for s in grid.spacing_mm)} mm"


def damage(path: Path) -> str | None:
    """Return what is wrong with a file's bytes, or None: empty, broken gzip data, or fewer voxels than its header says.

    Readers fill truncated NIfTI files with zeros without a word, and none looks at gzip's checksum.
    """
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    try:
        header, length = _header_and_length(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"the compressed data are truncated or damaged ({error})"
    if path.name.endswith(NIFTI_ENDINGS):
        expected = bytes_by_header(header)
        if len(header) < HEADER_BYTES or (expected is not None and length < expected):
            return f"the file is truncated: {length:,} of {expected or HEADER_BYTES:,} bytes"
    return None


def _header_and_length(path: Path) -> tuple[bytes, int]:
    header = read_header(path)
    if not is_compressed(path):
        return header, path.stat().st_size
    length = 0
    with gzip.open(path, "rb") as stream:  # to the end, where the checksum is
        while chunk := stream.read(READ_BYTES):
            length += len(chunk)
    return header, length


def read_grid(path: Path) -> ImageGrid | None:
    """Return the grid in a file's header, or None where SimpleITK cannot read it (nnU-Net's other readers may)."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return ImageGrid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
