"""Check that the files of a case lie on one grid, and that the cases of a dataset resemble each other."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sam3dnet.preprocessing.modalities import shows_microscopy
from sam3dnet.preprocessing.problems import DATASET, Problem, error, shorten, warning

# nnU-Net refuses channels whose spacings differ by more than this.
_SPACING_TOLERANCE = 1e-5
# What a label may be off at the far end of the image, and its origin, in voxels.
_DRIFT_VOXELS = 0.1
_DIRECTION_TOLERANCE = 1e-3
_OUTLYING_FACTOR = 3.0
# What the longest side of an image may measure.
_SMALLEST_PATIENT_MM, _SMALLEST_MM, _LARGEST_MM = 5.0, 1e-3, 3000.0


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        shape: (Z, Y, X).
        spacing_mm: (Z, Y, X).
        origin_mm: Centre of the first voxel in the world (x, y, z), LPS.
        direction: Cosines of the file's axes, 3 x 3, row by row, x first.
        is_spaced: Whether the spacing was said, not assumed.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]
    is_spaced: bool = True

    @property
    def orientation(self) -> str:
        """Name the world direction in which each file axis (x, y, z) runs, such as LPS.

        Each direction is given once, as ITK and nibabel do: of an oblique image two axes may be nearest to the same,
        and the one that is nearer gets it.
        """
        columns = np.asarray(self.direction).reshape(3, 3).T
        left, letters = np.abs(columns), [""] * 3
        for _ in letters:
            axis, world = np.unravel_index(left.argmax(), left.shape)
            letters[axis] = ("LPS" if columns[axis, world] > 0 else "RAI")[world]
            left[axis], left[:, world] = -1, -1
        return "".join(letters)


def compare_grids(case: str, reference: tuple[str, Grid], other: tuple[str, Grid], is_label: bool) -> list[Problem]:
    """Compare the grid of a channel or label with that of the first channel.

    Args:
        case: Name of the case.
        reference: What the first channel is called in messages, and its grid.
        other: The same of the file compared.
        is_label: A label may be off by what no voxel notices; nnU-Net refuses channels with the same difference.
    """
    (reference_name, expected), (name, came) = reference, other
    what_to_do = (
        "export the label on the image's grid, or leave the case out"
        if is_label
        else "resample the channels to one grid, or leave the case out"
    )

    def mismatch(check: str, expected_value: object, came_value: object) -> Problem:
        message = f"{reference_name} has {check} {expected_value}, {name} {came_value}; {what_to_do}"
        return error(case, f"{check.split()[0]} mismatch", message)

    problems = []
    if expected.shape != came.shape:
        problems.append(mismatch("shape", expected.shape, came.shape))
    if not _same_spacing(expected, came, is_label):
        problems.append(mismatch("spacing (z, y, x) in mm", _rounded(expected.spacing_mm), _rounded(came.spacing_mm)))
    offset = np.abs(np.subtract(expected.origin_mm, came.origin_mm))
    if offset.max() > _DRIFT_VOXELS * min(expected.spacing_mm):
        problems.append(mismatch("origin (x, y, z) in mm", _rounded(expected.origin_mm), _rounded(came.origin_mm)))
    if np.abs(np.subtract(expected.direction, came.direction)).max() > _DIRECTION_TOLERANCE:
        problems.append(mismatch("direction", _rounded(expected.direction), _rounded(came.direction)))
    return problems


def _same_spacing(expected: Grid, came: Grid, is_label: bool) -> bool:
    if is_label and not (expected.is_spaced and came.is_spaced):
        return True
    if np.allclose(expected.spacing_mm, came.spacing_mm, rtol=_SPACING_TOLERANCE, atol=0):
        return True
    relative = np.abs(np.divide(came.spacing_mm, expected.spacing_mm) - 1)
    return is_label and bool((relative * expected.shape).max() < _DRIFT_VOXELS)


def compare_cases(grids: Mapping[str, Grid], reader_reorients: bool = False) -> list[Problem]:
    """Look for cases that are oriented or spaced unlike the others; most of nnU-Net's readers take them as they are."""
    return ([] if reader_reorients else _check_orientations(grids)) + _check_spacings(grids)


def check_extents(grids: Iterable[Grid], channel_names: Iterable[str]) -> list[Problem]:
    """Look whether images are as large as what they show: headers in micrometres or metres are read as millimetres.

    Args:
        grids: Of the training images.
        channel_names: Tell what made the images.
    """
    extents = [np.multiply(grid.shape, grid.spacing_mm) for grid in grids if grid.is_spaced]
    if not extents:
        return []
    smallest = _SMALLEST_MM if shows_microscopy(channel_names) else _SMALLEST_PATIENT_MM
    median = np.median(extents, axis=0)
    if smallest <= median.max() <= _LARGEST_MM:
        return []
    size = " x ".join(f"{mm:.3g}" for mm in median)
    message = (
        f"the images are {size} mm large (z, y, x, median), by the spacing in their headers; if they are not, write "
        "it there in mm: distances and volumes are measured by it, and the network's resolution is chosen by it"
    )
    return [warning(DATASET, "implausible spacing", message)]


def _check_orientations(grids: Mapping[str, Grid]) -> list[Problem]:
    orientations = {name: grid.orientation for name, grid in grids.items()}
    counts = Counter(orientations.values()).most_common()
    if len(counts) <= 1:
        return []
    usual = counts[0][0]
    others = [f"{name} ({orientation})" for name, orientation in orientations.items() if orientation != usual]
    message = (
        f"{counts[0][1]} cases are oriented {usual}, {len(others)} otherwise: {shorten(others)}; the network sees them "
        f"rotated or mirrored; bring all to {usual} if that is not meant"
    )
    return [warning(DATASET, "mixed orientations", message)]


def _check_spacings(grids: Mapping[str, Grid]) -> list[Problem]:
    if not grids:
        return []
    median = np.median([grid.spacing_mm for grid in grids.values()], axis=0)
    problems = []
    for name, grid in grids.items():
        ratio = np.divide(grid.spacing_mm, median)
        if max(ratio.max(), 1 / ratio.min()) > _OUTLYING_FACTOR:
            message = (
                f"spacing (z, y, x) is {_rounded(grid.spacing_mm)} mm, the dataset's median {_rounded(median)} mm; "
                "check the header: a wrong one makes the object look stretched"
            )
            problems.append(warning(name, "outlying spacing", message))
    return problems


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    # Adding 0 turns -0.0 into 0.0.
    return tuple(float(f"{value:.6g}") + 0.0 for value in values)
