"""Check the files of one case: bytes, grids, voxels."""

from dataclasses import dataclass, field
from pathlib import Path

from sam3dnet.preprocessing.checks_bytes import check_bytes
from sam3dnet.preprocessing.checks_description import NON_FINITE, Description
from sam3dnet.preprocessing.checks_files import CaseFiles
from sam3dnet.preprocessing.checks_geometry import Grid, compare_grids
from sam3dnet.preprocessing.checks_voxels import check_image, check_label_values, count_label_values, digest_voxels
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.problems import Problem
from sam3dnet.preprocessing.reading import DatasetReader


@dataclass
class CaseReport:
    """What was found in one case.

    Attributes:
        grid: Of the first image that could be read.
        voxels_apart: How far apart the two places are that its header says, see `World`.
        image_digests: Hash of the voxels by file, without constant images.
        label_counts: Voxels of each label value; None if the label could not be read.
    """

    case: CaseFiles
    problems: list[Problem] = field(default_factory=list)
    grid: Grid | None = None
    voxels_apart: float = 0.0
    image_digests: dict[str, str] = field(default_factory=dict)
    label_counts: dict[int, int] | None = None


def check_case(description: Description, reader: DatasetReader, case: CaseFiles) -> CaseReport:
    """Check one case as far as its files can be read; each file is looked at, whatever is wrong with the others."""
    report = CaseReport(case)
    reference: tuple[str, Grid] | None = None
    for file in case.images:
        grid = _check_file(report, description, reader, file, is_label=False)
        if grid is None:
            continue
        if reference is None:
            reference = (file.name, grid)
            report.grid = grid
            report.voxels_apart = reader.voxels_apart(file)
        else:
            report.problems += compare_grids(case.name, reference, (file.name, grid), is_label=False)
    if case.label is not None:
        grid = _check_file(report, description, reader, case.label, is_label=True)
        if grid is not None and reference is not None:
            named_label = (f"label {case.label.name}", grid)
            report.problems += compare_grids(case.name, (f"image {reference[0]}", reference[1]), named_label, True)
    return report


def _check_file(
    report: CaseReport, description: Description, reader: DatasetReader, file: Path, is_label: bool
) -> Grid | None:
    """Check one file by itself; returns its grid, None if it has none that can be compared."""
    name = report.case.name
    found = check_bytes(name, file)
    report.problems += found
    if not_a_file(file) is not None:
        return None
    checks = {problem.check for problem in found if problem.severity == "error"}
    grid, problems = reader.read_grid(name, file, is_label)
    if not checks - {NON_FINITE}:
        # Else the reader stumbles over what has been reported already.
        report.problems += problems
        if not problems:
            report.problems += _check_voxels(report, description, reader, file, is_label, not checks)
    return grid


def _check_voxels(
    report: CaseReport,
    description: Description,
    reader: DatasetReader,
    file: Path,
    is_label: bool,
    bytes_were_finite: bool,
) -> list[Problem]:
    name = report.case.name
    array, problems = reader.read_voxels(name, file)
    if array is None:
        return problems
    if not is_label:
        problems = check_image(name, str(file), array, bytes_were_finite)
        if not any(problem.check in ("all-zero image", "constant image") for problem in problems):
            report.image_digests[file.name] = digest_voxels(array)
        return problems
    counts, fractions = count_label_values(array)
    report.label_counts = counts
    return check_label_values(name, str(file), counts, fractions, description.allowed_values, description.ignore)
