"""Check dataset.json, and read from it what the other checks need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import read_dataset_json
from sam3dnet.preprocessing.problems import DATASET, Problem, error

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")
SUPPORTED_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tif", ".tiff")
# Names of checks that a dataset.json accepts, and that are warnings then.
ACCEPT_KEY = "sam3d_accept"
NON_FINITE = "non-finite voxels"  # the one of them that changes how images are read


@dataclass(frozen=True)
class Description:
    """What dataset.json says, as far as it can be understood; None where it cannot.

    Attributes:
        labels: Values of each class, without the ignore label.
        ignore: Value of the ignore label.
        listed: The key "dataset", in datasets that name their files one by one.
        accepted: Names of checks whose errors the user takes for warnings.
    """

    file_ending: str | None = None
    num_channels: int | None = None
    labels: dict[str, tuple[int, ...]] | None = None
    ignore: int | None = None
    num_training: int | None = None
    listed: dict[str, Any] | None = None
    accepted: frozenset[str] = frozenset()

    @property
    def allowed_values(self) -> set[int] | None:
        """All values that may occur in a label file."""
        if self.labels is None:
            return None
        values = {value for values in self.labels.values() for value in values}
        return values if self.ignore is None else values | {self.ignore}


def check_description(dataset_folder: Path) -> tuple[Description, list[Problem]]:
    """Check dataset.json by itself, without a look at the images.

    Returns:
        What can be understood of it, and the problems.
    """
    try:
        content = read_dataset_json(dataset_folder)
    except DatasetError as problem:
        return Description(), [error(DATASET, "dataset.json", str(problem))]
    return check_content(content)


def check_content(content: Mapping[str, Any]) -> tuple[Description, list[Problem]]:
    """Check what dataset.json holds; see `check_description`."""
    problems = _check_keys(content)
    ending, more = _read_ending(content)
    problems += more
    num_channels, more = _read_channels(content)
    problems += more
    num_training, more = _read_num_training(content)
    problems += more
    labels, ignore, more = _read_labels(content)
    problems += more
    listed, more = _read_listed(content)
    problems += more
    accepted = content.get(ACCEPT_KEY, [])
    if not isinstance(accepted, list) or not all(isinstance(name, str) for name in accepted):
        problems.append(_error(f'"{ACCEPT_KEY}" is {accepted!r}; expected a list of names of checks'))
        accepted = []
    return Description(ending, num_channels, labels, ignore, num_training, listed, frozenset(accepted)), problems


def accepted_checks(dataset_json: Mapping[str, Any]) -> frozenset[str]:
    """Give the names of the checks whose errors a dataset accepts."""
    return frozenset(dataset_json.get(ACCEPT_KEY, ()))


def _error(message: str, check: str = "dataset.json") -> Problem:
    return error(DATASET, check, f"dataset.json: {message}")


def _check_keys(content: Mapping[str, Any]) -> list[Problem]:
    examples = {
        "channel_names": '{"0": "CT"}',
        "labels": '{"background": 0, "liver": 1}',
        "numTraining": "the number of training cases",
        "file_ending": '".nii.gz"',
    }
    return [
        _error(f'the key "{key}" is missing; add it, such as {examples[key]}')
        for key in REQUIRED_KEYS
        if key not in content and not (key == "channel_names" and "modality" in content)
    ]


def _read_ending(content: Mapping[str, Any]) -> tuple[str | None, list[Problem]]:
    if "file_ending" not in content:
        return None, []
    ending = content["file_ending"]
    if isinstance(ending, str) and ending.lower() in SUPPORTED_ENDINGS:
        return ending, []
    problem = _error(f'"file_ending" is {ending!r}; expected one of {", ".join(SUPPORTED_ENDINGS)}; convert the images')
    return (ending if isinstance(ending, str) and ending else None), [problem]


def _read_channels(content: Mapping[str, Any]) -> tuple[int | None, list[Problem]]:
    key = "channel_names" if "channel_names" in content else "modality"
    if key not in content:
        return None, []
    channels = content[key]
    if not isinstance(channels, dict) or not channels:
        return None, [_error(f'"{key}" is {channels!r}; expected names by number, such as {{"0": "CT"}}')]
    expected = [str(index) for index in range(len(channels))]
    if sorted(channels, key=lambda name: (len(name), name)) != expected:
        message = f'"{key}" has the numbers {", ".join(channels)}; expected {", ".join(expected)}, none left out'
        return len(channels), [_error(message)]
    return len(channels), []


def _read_num_training(content: Mapping[str, Any]) -> tuple[int | None, list[Problem]]:
    if "numTraining" not in content:
        return None, []
    number = content["numTraining"]
    if isinstance(number, int) and not isinstance(number, bool):
        return number, []
    return None, [_error(f'"numTraining" is {number!r}; expected a whole number', "numTraining")]


def _read_labels(
    content: Mapping[str, Any],
) -> tuple[dict[str, tuple[int, ...]] | None, int | None, list[Problem]]:
    """Read the values of each class and that of the ignore label."""
    if "labels" not in content:
        return None, None, []
    labels = content["labels"]
    if not isinstance(labels, dict) or not labels:
        message = f'"labels" is {labels!r}; expected values by name, such as {{"background": 0, "liver": 1}}'
        return None, None, [_error(message, "labels")]
    if all(key.isdecimal() and isinstance(value, str) for key, value in labels.items()):
        message = '"labels" gives names by value; expected values by name, such as {"background": 0, "liver": 1}'
        return None, None, [_error(message + "; swap them", "labels")]
    values = {name: _whole_numbers(value) for name, value in labels.items()}
    broken = [f"{name}: {labels[name]!r}" for name, found in values.items() if not found]
    if broken:
        message = f'"labels" has {", ".join(broken)}; expected a whole number from 0 up, or a list of them (a region)'
        return None, None, [_error(message, "labels")]
    classes = {name: found for name, found in values.items() if name != "ignore"}
    ignore = values["ignore"][0] if "ignore" in values else None
    problems = _check_background(labels) + _check_ignore(labels, classes) + _check_consecutive(classes)
    return classes, ignore, problems + _check_regions(content, classes)


def _whole_numbers(value: Any) -> tuple[int, ...]:
    """Give the values of a class, none if they are not whole numbers from 0 up."""
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    whole = all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in found)
    return found if whole else ()


def _check_background(labels: Mapping[str, Any]) -> list[Problem]:
    if labels.get("background") == 0:
        return []
    came = f"is {labels['background']!r}" if "background" in labels else "is missing"
    return [_error(f'"labels": "background" {came}; expected "background": 0', "labels")]


def _check_ignore(labels: Mapping[str, Any], classes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    if "ignore" not in labels:
        return []
    highest = max((value for values in classes.values() for value in values), default=0)
    if labels["ignore"] == highest + 1:
        return []
    message = f'"labels": "ignore" is {labels["ignore"]!r}; expected {highest + 1}, one above all other values'
    return [_error(message, "labels")]


def _check_consecutive(classes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    values = sorted({value for values in classes.values() for value in values} | {0})
    if values == list(range(len(values))):
        return []
    expected = ", ".join(str(value) for value in range(len(values)))
    came = ", ".join(str(value) for value in values)
    message = f'"labels": the values are {came}; expected consecutive ones, {expected}; renumber them, in the files too'
    return [_error(message, "labels")]


def _check_regions(content: Mapping[str, Any], classes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    if all(len(values) == 1 for values in classes.values()):
        return []
    regions = {name: values for name, values in classes.items() if set(values) != {0}}
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions) or not all(map(_whole_numbers, order)):
        message = (
            f'"regions_class_order" is {order!r}; expected a list of {len(regions)} label values, one for each of '
            f"{', '.join(regions)}, in the order in which they are painted over each other"
        )
        return [_error(message, "labels")]
    wrong = _repainted(regions, order)
    if not wrong:
        return []
    came = ", ".join(f"{value} becomes {painted}" for value, painted in wrong.items())
    message = (
        f'"regions_class_order" is {order!r}: painted over each other, {", ".join(regions)} give other labels than '
        f'there were ({came}); expected for each region, in the order of "labels", a value that it alone has or that '
        "later regions paint over"
    )
    return [_error(message, "labels")]


def _repainted(regions: Mapping[str, tuple[int, ...]], order: Sequence[int]) -> dict[int, int]:
    """Find the labels that become another one when the regions that hold them are painted, last one on top.

    Two labels that are in the same regions are one to the network, so either may come out.
    """
    holding = {
        value: [index for index, values in enumerate(regions.values()) if value in values]
        for value in sorted({value for values in regions.values() for value in values})
    }
    painted = {value: int(order[indices[-1]]) for value, indices in holding.items()}
    return {value: label for value, label in painted.items() if holding.get(label) != holding[value]}


def _read_listed(content: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Read the key "dataset", with which nnU-Net takes files from anywhere."""
    if "dataset" not in content:
        return None, []
    listed, problems = {}, []
    cases = content["dataset"]
    if not isinstance(cases, dict):
        return None, [_error(f'"dataset" is a {type(cases).__name__}; expected cases by name')]
    for name, files in cases.items():
        if (
            isinstance(files, dict)
            and isinstance(files.get("images"), list)
            and all(isinstance(image, str) for image in files["images"])
            and isinstance(files.get("label"), str)
        ):
            listed[name] = files
        else:
            problems.append(_error(f'"dataset": {name}: expected {{"images": [one a channel], "label": file}}'))
    return listed, problems
