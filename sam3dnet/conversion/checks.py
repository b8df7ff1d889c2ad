"""What is wrong with the files of a dataset that is to be converted, found before anything is written."""

from collections.abc import Iterator
from pathlib import Path

from sam3dnet.conversion.nifti_volumes import read_volumes
from sam3dnet.conversion.source import DECATHLON, Source, SourceCase, ending_of
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import channel_of
from sam3dnet.preprocessing.checks_files import check_names
from sam3dnet.preprocessing.problems import DATASET, Problem, error, shorten


def check_source(source: Source, num_channels: int) -> list[Problem]:
    """Check endings, names, and by their headers that the images have the channels that dataset.json names."""
    problems = _check_endings(source)
    for part in {case.part: None for case in source.cases}:
        names = [case.name for case in source.cases if case.part == part]
        problems += check_names(names, common_ending(source))
    for case in source.cases:
        problems += _check_case(case, source, num_channels)
    return problems


def common_ending(source: Source) -> str:
    """Give the ending of a dataset's files."""
    return next((ending for file in source.files if (ending := ending_of(file))), ".nii.gz")


def _check_endings(source: Source) -> list[Problem]:
    ending = common_ending(source)
    others = [file.name for file in source.files if ending_of(file) != ending]
    if not others:
        return []
    message = f"{shorten(others)}: expected the ending {ending}, as the others have; write all in one format"
    return [error(DATASET, "file ending", message)]


def _check_case(case: SourceCase, source: Source, num_channels: int) -> Iterator[Problem]:
    if source.kind == DECATHLON:
        expected, why = num_channels, 'one for each channel that dataset.json names in "modality"'
    else:
        expected, why = 1, "a file for each channel"
        yield from _check_channels(case, num_channels)
    for file in case.images:
        yield from _check_volumes(case, file, expected, why)
    if case.label is not None:
        yield from _check_volumes(case, case.label, 1, "a label has no channels")


def _check_channels(case: SourceCase, num_channels: int) -> Iterator[Problem]:
    came = sorted(channel for file in case.images if (channel := channel_of(file, ending_of(file) or "")) is not None)
    if came != list(range(num_channels)):
        message = (
            f"has the channels {', '.join(map(str, came))}; expected {', '.join(map(str, range(num_channels)))}, which "
            'dataset.json names in "modality"; add what is missing, or leave the case out'
        )
        yield error(case.name, "channels", message)


def _check_volumes(case: SourceCase, file: Path, expected: int, why: str) -> Iterator[Problem]:
    try:
        count = read_volumes(file).count
    except DatasetError as problem:
        yield error(case.name, "unreadable file", str(problem))
        return
    if count != expected:
        yield error(case.name, "volumes", f"{file}: holds {count} volumes; expected {expected}, {why}")
