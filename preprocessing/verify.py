"""Verify a raw dataset: all problems of all cases at once, before anything is made of it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.checks_case import CaseReport, check_case
from sam3dnet.preprocessing.checks_description import (
    DATASET_JSON,
    Description,
    check_description,
    load_dataset_json,
)
from sam3dnet.preprocessing.checks_files import CaseFiles, check_files, guess_ending
from sam3dnet.preprocessing.checks_geometry import check_extents, compare_cases
from sam3dnet.preprocessing.problems import DATASET, Problem, error, shorten, warning
from sam3dnet.preprocessing.reading import DatasetReader, dataset_reader, first_file, reader_by_ending
from sam3dnet.preprocessing.workers import Outcome, Workers, map_cases

MOST_VOXELS_APART = 0.1
NO_READER = "no reader"

__all__ = ["Problem", "require_sound", "verify_dataset"]


def verify_dataset(
    raw_dataset_folder: Path, num_processes: int, progress: bool = True, cluster: Workers | None = None
) -> list[Problem]:
    """Check a dataset in nnU-Net's raw format; a fault in one place hides none in another.

    Images in imagesTs are checked too, but what is wrong with them is only a warning.

    Args:
        raw_dataset_folder: Such as nnUNet_raw/Dataset501_Hippocampus.
        num_processes: Cases at the same time; 0 works in this process.
        progress: Show a progress bar.
        cluster: Does the work in place of processes of this machine.

    Returns:
        The problems, those of the whole dataset first, then by case; none for a sound dataset.
    """
    if not raw_dataset_folder.is_dir():
        return [error(DATASET, "missing folder", f"{raw_dataset_folder}: not found; put the dataset there")]
    description, problems = check_description(raw_dataset_folder)
    cases, more = check_files(raw_dataset_folder, description)
    problems += more
    reader, more = _find_reader(raw_dataset_folder, cases)
    problems += more
    outcomes = map_cases(
        partial(check_case, description, reader),
        cases,
        cluster or num_processes,
        "verify",
        progress,
        folders=[raw_dataset_folder],
    )
    reports = [outcome.result for outcome in outcomes if outcome.result is not None]
    problems += _failed(outcomes)
    problems += (problem for report in reports for problem in _problems_of(report))
    training = [report for report in reports if not report.case.is_test]
    grids = {report.case.name: report.grid for report in training if report.grid is not None}
    problems += compare_cases(grids, reader.reorients)
    problems += check_extents(grids.values(), description.channel_names or ())
    problems += _find_other_orientations(reports, reader)
    problems += _find_two_places(reports)
    problems += _find_duplicates(reports)
    problems += _find_absent_classes(training, description)
    problems = [_accepted(problem, description) for problem in problems if not _is_told_better(problem, problems)]
    return sorted(problems, key=lambda problem: (problem.case != DATASET, problem.case))


def _find_reader(raw_dataset_folder: Path, cases: Sequence[CaseFiles]) -> tuple[DatasetReader, list[Problem]]:
    """Find the reader of a dataset, and if there is none the one with which to look what is wrong with its files."""
    try:
        dataset_json = load_dataset_json(raw_dataset_folder / DATASET_JSON)
    except DatasetError:
        return DatasetReader("SimpleITKIO"), []  # dataset.json has been reported
    if not isinstance(dataset_json.get("file_ending"), str):
        return reader_by_ending({"file_ending": guess_ending(raw_dataset_folder)}), []  # that has been reported too
    example = first_file(image for case in cases for image in case.images[:1])
    try:
        return dataset_reader(dataset_json, example), []
    except DatasetError as problem:
        return reader_by_ending(dataset_json), [error(DATASET, NO_READER, str(problem))]


def _is_told_better(problem: Problem, problems: Sequence[Problem]) -> bool:
    """Tell whether nnU-Net has no reader because something is wrong with a file that has been found too."""
    if problem.check != NO_READER:
        return False
    file = problem.message.split(": ")[0]
    return any(
        other.severity == "error" and other.message.startswith(f"{file}: ") for other in problems if other != problem
    )


def require_sound(problems: Sequence[Problem]) -> None:
    """Do nothing if there are warnings at most.

    Raises:
        DatasetError: With all errors, one a line.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    lines = "\n".join(f"  {_where(problem)}: {problem.check}: {problem.message}" for problem in errors)
    count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
    raise DatasetError(f"the dataset has {count}; nothing was written:\n{lines}")


def _where(problem: Problem) -> str:
    return DATASET if problem.case == DATASET else f'case "{problem.case}"'


def _problems_of(report: CaseReport) -> list[Problem]:
    if not report.case.is_test:
        return report.problems
    return [replace(problem, severity="warning") for problem in report.problems]


def _failed(outcomes: Iterable[Outcome[CaseFiles, CaseReport]]) -> list[Problem]:
    return [
        error(
            outcome.item.name,
            "verification failed",
            f"the check stopped with {type(outcome.error).__name__}: {outcome.error}; look at "
            f"{shorten([str(file) for file in outcome.item.images])}, or leave the case out",
        )
        for outcome in outcomes
        if outcome.error is not None
    ]


def _find_other_orientations(reports: Sequence[CaseReport], reader: DatasetReader) -> list[Problem]:
    """Find test images in an orientation that no training image has."""
    known = {report.grid.orientation for report in reports if report.grid is not None and not report.case.is_test}
    others = [
        f"{report.case.name} ({report.grid.orientation})"
        for report in reports
        if report.case.is_test and report.grid is not None and report.grid.orientation not in known
    ]
    if not others or not known or reader.reorients:
        return []
    message = (
        f"{len(others)} test images are stored in an orientation that no training image has "
        f"({', '.join(sorted(known))}): {shorten(others)}; the network sees them rotated or mirrored; bring them to "
        "one of these"
    )
    return [warning(DATASET, "other orientation", message)]


def _find_two_places(reports: Iterable[CaseReport]) -> list[Problem]:
    """Find NIfTI headers whose two transforms, or whose units, say two places, of which each viewer takes one."""
    apart = {report.case.name: report.voxels_apart for report in reports if report.voxels_apart > MOST_VOXELS_APART}
    if not apart:
        return []
    message = (
        f"the headers of {len(apart)} images say two places, up to {max(apart.values()):.3g} voxels apart, by sform, "
        f"qform or units: {shorten(list(apart))}; 3D Slicer and ITK-SNAP show them in one, FSLeyes and napari in the "
        "other; masks lie on the image in each; clicks in LPS millimetres are taken as the former show them, those in "
        "RAS as the latter; correct the headers if that is not meant"
    )
    return [warning(DATASET, "two places", message)]


def _find_duplicates(reports: Iterable[CaseReport]) -> list[Problem]:
    """Find images that are there under two names; a copy among the test images is only a warning."""
    places: dict[str, list[tuple[CaseFiles, str]]] = defaultdict(list)
    for report in reports:
        for file, digest in report.image_digests.items():
            places[digest].append((report.case, file))
    problems = []
    for found in places.values():
        if len(found) == 1:
            continue
        message = f"the same image lies in {', '.join(file for _, file in found)}; remove all but one of them"
        training = {case.name for case, _ in found if not case.is_test}
        make = error if len(training) > 1 else warning
        problems.append(make(found[0][0].name, "duplicate image", message))
    return problems


def _find_absent_classes(reports: Sequence[CaseReport], description: Description) -> list[Problem]:
    """Find classes of dataset.json that no label has; nothing is said if no label could be read."""
    counts = [report.label_counts for report in reports if report.label_counts is not None]
    if not counts or description.labels is None:
        return []
    present = {value for found in counts for value in found}
    return [
        warning(
            DATASET,
            "class never occurs",
            f"no label has a voxel of class {name!r} (value {', '.join(str(value) for value in values)}); it cannot be "
            "learned; remove it from dataset.json, or look for the labels that should have it",
        )
        for name, values in description.labels.items()
        if not present & set(values)
    ]


def _accepted(problem: Problem, description: Description) -> Problem:
    return replace(problem, severity="warning") if problem.check in description.accepted else problem
