"""Check the files of one case: bytes, grids, voxels."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.checks_description import Description
from sam3dnet.preprocessing.checks_files import CaseFiles
from sam3dnet.preprocessing.checks_geometry import Grid, compare_grids
from sam3dnet.preprocessing.checks_voxels import check_image, check_label_values, count_label_values, digest_voxels
from sam3dnet.preprocessing.problems import Problem, error

_DIMENSIONS = 3
_SPLIT = "write each channel or time step into a file of its own"


@dataclass
class CaseReport:
    """What was found in one case.

    Attributes:
        grid: Of the first image that could be read.
        image_digests: Hash of the voxels by file, without constant images.
        label_counts: Voxels of each label value; None if the label could not be read.
    """

    case: CaseFiles
    problems: list[Problem] = field(default_factory=list)
    grid: Grid | None = None
    image_digests: dict[str, str] = field(default_factory=dict)
    label_counts: dict[int, int] | None = None


def check_case(description: Description, case: CaseFiles) -> CaseReport:
    """Check one case as far as its files can be read; each file is looked at, whatever is wrong with the others."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    report = CaseReport(case)
    reference: tuple[str, Grid] | None = None
    for file in case.images:
        grid = _check_file(report, description, file, is_label=False)
        if grid is None:
            continue
        if reference is None:
            reference = (file.name, grid)
            report.grid = grid
        else:
            report.problems += compare_grids(case.name, reference, (file.name, grid), is_label=False)
    if case.label is not None:
        grid = _check_file(report, description, case.label, is_label=True)
        if grid is not None and reference is not None:
            named_label = (f"label {case.label.name}", grid)
            report.problems += compare_grids(case.name, (f"image {reference[0]}", reference[1]), named_label, True)
    return report


def _check_file(report: CaseReport, description: Description, file: Path, is_label: bool) -> Grid | None:
    """Check one file by itself; returns its grid, None if it has none that can be compared."""
    name = report.case.name
    found = check_bytes(name, file)
    report.problems += found
    checks = {problem.check for problem in found if problem.severity == "error"}
    grid, problems = read_grid(name, file)
    if not checks - {"non-finite voxels"}:
        # Else the reader stumbles over what has been reported already.
        report.problems += problems
        if not problems:
            report.problems += _check_voxels(report, description, file, is_label, not checks)
    return grid


def read_grid(case: str, file: Path) -> tuple[Grid | None, list[Problem]]:
    """Read where the voxels lie from a file's header; None and the reason where it is no grid in three dimensions."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as problem:
        return None, [_unreadable(case, file, problem)]
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != _DIMENSIONS or components != 1:
        came = f"{len(size)} dimensions {size[::-1]}" + (f" of {components} values each" if components != 1 else "")
        message = f"{file}: expected one number a voxel in 3 dimensions (z, y, x), came {came}; {_SPLIT}"
        return None, [error(case, "dimension", message)]
    spacing_mm = reader.GetSpacing()[::-1]
    if not all(math.isfinite(mm) and mm > 0 for mm in spacing_mm):
        message = f"{file}: has spacing {spacing_mm} mm (z, y, x); expected numbers above 0; correct the header"
        return None, [error(case, "impossible spacing", message)]
    grid = Grid(size[::-1], spacing_mm, reader.GetOrigin(), reader.GetDirection())
    return grid, []


def _check_voxels(
    report: CaseReport, description: Description, file: Path, is_label: bool, bytes_were_finite: bool
) -> list[Problem]:
    name = report.case.name
    try:
        array = _read_array(file)
    except (RuntimeError, MemoryError) as problem:
        return [_unreadable(name, file, problem)]
    if not is_label:
        problems = check_image(name, str(file), array, bytes_were_finite)
        if not any(problem.check in ("all-zero image", "constant image") for problem in problems):
            report.image_digests[file.name] = digest_voxels(array)
        return problems
    counts, fractions = count_label_values(array)
    report.label_counts = counts
    return check_label_values(name, str(file), counts, fractions, description.allowed_values, description.ignore)


def _read_array(file: Path) -> Any:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _unreadable(case: str, file: Path, problem: Exception) -> Problem:
    lines = [line for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    reason = lines[-1].removeprefix("sitk::ERROR: ").strip()
    message = f"{file}: cannot be read as an image ({reason}); export it again, or leave the case out"
    return error(case, "unreadable file", message)
