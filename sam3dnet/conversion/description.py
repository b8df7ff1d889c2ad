"""dataset.json of nnU-Net's second version from that of a Decathlon task or of its first version."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sam3dnet.preprocessing.checks_description import describe
from sam3dnet.preprocessing.problems import DATASET, Problem, error, warning

# What the other keys say in another way, what no longer holds, and "dataset", which means something else now.
_REPLACED = (
    *("modality", "channel_names", "labels", "file_ending", "tensorImageSize", "dataset"),
    *("training", "validation", "test", "numTraining", "numValidation", "numTest"),
)
_LIKE_CT = re.compile(r"\b(?:ct|cta|cbct|cect|computed tomography|hounsfield)\b", re.IGNORECASE)


def is_second_version(description: Mapping[str, Any]) -> bool:
    """Tell whether a dataset.json is written for nnU-Net's second version already."""
    return "file_ending" in description or "channel_names" in description


def converted(
    description: Mapping[str, Any], num_training: int, file_ending: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Write a description anew for nnU-Net's second version; description, reference, licence and such stay.

    Args:
        description: Content of the source's dataset.json.
        num_training: Training cases that there are.
        file_ending: Of the images.

    Returns:
        The content, and what is wrong with it or was changed.
    """
    channels, problems = _channels(description)
    labels, more = _labels(description)
    content = {"channel_names": channels, "labels": labels, "numTraining": num_training, "file_ending": file_ending}
    kept = {key: value for key, value in description.items() if key not in _REPLACED}
    problems += more
    if not any(problem.severity == "error" for problem in problems):
        problems += describe(content)[1]
    return content | kept, problems


def _error(message: str) -> Problem:
    return error(DATASET, "dataset.json", f"dataset.json: {message}")


def _warning(message: str) -> Problem:
    return warning(DATASET, "dataset.json", f"dataset.json: {message}")


def _channels(description: Mapping[str, Any]) -> tuple[dict[str, str], list[Problem]]:
    named = description.get("modality")
    if not isinstance(named, dict) or not named or not all(map(_is_number, named)):
        came = "is missing" if named is None else f"is {named!r}"
        return {}, [_error(f'"modality" {came}; expected names of channels by number, such as {{"0": "CT"}}')]
    channels = {str(int(number)): str(named[number]).strip() for number in sorted(named, key=int)}
    return channels, [
        _warning(
            f'channel {number} is called "{name}"; nnU-Net takes voxels for Hounsfield units only in a channel that is '
            f'called "CT"; if they are, call it so'
        )
        for number, name in channels.items()
        if name.casefold() != "ct" and _LIKE_CT.search(name)
    ]


def _labels(description: Mapping[str, Any]) -> tuple[dict[str, int], list[Problem]]:
    """Give the values of the labels by name, in the order of the values; "background" is 0."""
    given = description.get("labels")
    pairs = _values_and_names(given) if isinstance(given, dict) else None
    if not pairs:
        came = "is missing" if given is None else f"is {given!r}"
        example = '{"0": "background", "1": "liver"}'
        return {}, [_error(f'"labels" {came}; expected names by whole numbers, such as {example}')]
    values_of: dict[str, list[int]] = defaultdict(list)
    problems = []
    for value, name in [(0, "background")] * (min(pairs)[0] > 0) + sorted(pairs):
        values_of["background" if value == 0 else name].append(value)
        if value == 0 and name.casefold() != "background":
            problems.append(_warning(f'label 0 is called "{name}"; it is "background" now, as nnU-Net wants it'))
    twice = {name: values for name, values in values_of.items() if len(values) > 1}
    problems += [
        _error(f'labels {", ".join(map(str, values))} are all called "{name}"; give each a name of its own')
        for name, values in twice.items()
    ]
    return {name: values[0] for name, values in values_of.items()}, problems


def _values_and_names(given: Mapping[Any, Any]) -> list[tuple[int, str]] | None:
    """Read names by value, or values by name; None where it is neither."""
    if all(_is_number(key) and isinstance(value, str) for key, value in given.items()):
        return [(int(key), value.strip()) for key, value in given.items()]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in given.values()):
        return [(value, str(key).strip()) for key, value in given.items()]
    return None


def _is_number(text: Any) -> bool:
    return str(text).strip().isdecimal()
