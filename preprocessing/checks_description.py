"""Check dataset.json, and read from it what the other checks need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.preprocessing.folders import is_plain_name
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import DATASET, Problem, error

DATASET_JSON = "dataset.json"
NUM_TRAINING = "numTraining"
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
    channel_names: tuple[str, ...] | None = None
    labels: dict[str, tuple[int, ...]] | None = None
    ignore: int | None = None
    num_training: int | None = None
    listed: dict[str, Any] | None = None
    accepted: frozenset[str] = frozenset()

    @property
    def num_channels(self) -> int | None:
        """How many files an image has."""
        return None if self.channel_names is None else len(self.channel_names)

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
        content = load_dataset_json(dataset_folder / DATASET_JSON)
    except DatasetError as problem:
        return Description(), [error(DATASET, DATASET_JSON, str(problem))]
    return describe(content)


def load_dataset_json(file: Path, error: type[Sam3dError] = DatasetError, missing: str = "") -> dict[str, Any]:
    """Read a dataset.json as it is, whatever it says.

    Args:
        file: Its place.
        error: Raised if it cannot be read.
        missing: What to do where there is none.

    Raises:
        Sam3dError: `error`, if it is missing, cannot be read, or does not hold a JSON object.
    """
    missing = missing or "every dataset in nnU-Net's raw format has one"
    content: dict[str, Any] = read_json(
        file, error, "correct it in a text editor", missing=missing, nnunet_reads_it=True
    )
    return content


def describe(content: Mapping[str, Any]) -> tuple[Description, list[Problem]]:
    """Understand what dataset.json says.

    Returns:
        What can be understood of it, and the problems.
    """
    problems = _check_keys(content)
    ending, more = _read_ending(content)
    problems += more
    channels, more = _read_channels(content)
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
    return Description(ending, channels, labels, ignore, num_training, listed, frozenset(accepted)), problems


def require_usable(content: Mapping[str, Any], file: Path, error: type[Sam3dError] = DatasetError) -> None:
    """See that networks can be planned, trained and used with what a dataset.json says, but for what it accepts.

    The number of training cases is left out: a model does not need it.

    Raises:
        Sam3dError: `error`, with the first thing that is wrong.
    """
    description, problems = describe({"numTraining": 0, **content})
    for problem in problems:
        if problem.check not in (NUM_TRAINING, *description.accepted):
            raise error(_in_file(problem, file))


def require_labels(content: Mapping[str, Any], file: Path) -> None:
    """See that label maps can be scored with what a dataset.json says: it names the ending, and values of the classes.

    Raises:
        DatasetError: With the first thing that is wrong.
    """
    missing = [key for key in ("labels", "file_ending") if key not in content]
    if missing:
        raise DatasetError(f"{file}: has no {' and no '.join(missing)}; give nnU-Net's dataset.json")
    if not is_plain_name(content["file_ending"]):
        raise DatasetError(f'{file}: "file_ending" is {content["file_ending"]!r}; expected such as ".nii.gz"')
    _, problems = _read_values(content["labels"])
    if problems:
        raise DatasetError(_in_file(problems[0], file))


def _in_file(problem: Problem, file: Path) -> str:
    return f"{file}: {problem.message.removeprefix(f'{DATASET_JSON}: ')}"


def accepted_checks(dataset_json: Mapping[str, Any]) -> frozenset[str]:
    """Give the names of the checks whose errors a dataset accepts."""
    return frozenset(dataset_json.get(ACCEPT_KEY, ()))


def _error(message: str, check: str = DATASET_JSON) -> Problem:
    return error(DATASET, check, f"{DATASET_JSON}: {message}")


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


def _read_channels(content: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, list[Problem]]:
    key = "channel_names" if "channel_names" in content else "modality"
    if key not in content:
        return None, []
    channels = content[key]
    if not isinstance(channels, dict) or not channels:
        return None, [_error(f'"{key}" is {channels!r}; expected names by number, such as {{"0": "CT"}}')]
    names = tuple(map(str, channels.values()))
    expected = [str(index) for index in range(len(channels))]
    if sorted(channels, key=lambda name: (len(name), name)) != expected:
        message = f'"{key}" has the numbers {", ".join(channels)}; expected {", ".join(expected)}, none left out'
        return names, [_error(message)]
    return names, []


def _read_num_training(content: Mapping[str, Any]) -> tuple[int | None, list[Problem]]:
    if "numTraining" not in content:
        return None, []
    number = content["numTraining"]
    if isinstance(number, int) and not isinstance(number, bool):
        return number, []
    return None, [_error(f'"numTraining" is {number!r}; expected a whole number', NUM_TRAINING)]


def _read_labels(
    content: Mapping[str, Any],
) -> tuple[dict[str, tuple[int, ...]] | None, int | None, list[Problem]]:
    """Read the values of each class and that of the ignore label."""
    if "labels" not in content:
        return None, None, []
    labels = content["labels"]
    values, problems = _read_values(labels)
    if problems:
        return None, None, problems
    classes = {name: found for name, found in values.items() if name != "ignore"}
    ignore = values["ignore"][0] if "ignore" in values else None
    problems = _check_background(labels) + _check_ignore(labels, classes) + _check_consecutive(classes)
    return classes, ignore, problems + _check_regions(content, classes)


def _read_values(labels: Any) -> tuple[dict[str, tuple[int, ...]], list[Problem]]:
    """Read the values of each entry of "labels"."""
    if not isinstance(labels, dict) or not labels:
        message = f'"labels" is {labels!r}; expected values by name, such as {{"background": 0, "liver": 1}}'
        return {}, [_error(message, "labels")]
    if all(key.isdecimal() and isinstance(value, str) for key, value in labels.items()):
        message = '"labels" gives names by value; expected values by name, such as {"background": 0, "liver": 1}'
        return {}, [_error(message + "; swap them", "labels")]
    values = {name: _whole_numbers(value) for name, value in labels.items()}
    broken = [f"{name}: {labels[name]!r}" for name, found in values.items() if not found]
    if broken:
        message = f'"labels" has {", ".join(broken)}; expected a whole number from 0 up, or a list of them (a region)'
        return {}, [_error(message, "labels")]
    return values, []


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
