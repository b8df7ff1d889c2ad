"""What a preprocessed case was made from; it is stale as soon as any of it differs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.checks_description import NON_FINITE, accepted_checks
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader

# nnU-Net takes every other kind of file in the folder of the cases for a case of another format.
RECORDS_FOLDER = "sam3d_records"
FILE_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")
RECORD_VERSION = 1
NNUNET = "nnunetv2"
UNNOTED_VERSIONS = ("2.8.1", "2.8.0")  # of nnU-Net, one of which made the cases whose record does not name it

_PLAN_KEYS = ("transpose_forward", "image_reader_writer", "label_manager")
_CONFIGURATION_KEYS = (
    "preprocessor_name",
    "spacing",
    "patch_size",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
_DATASET_KEYS = ("labels", "regions_class_order")
# These look at the case alone, so the intensities of the dataset change nothing.
_SCHEMES_BY_CASE = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}


class MadeOtherwise(NamedTuple):
    """Preprocessed cases that would be others now, by name.

    Attributes:
        by_plan: Made by another plan, or for another dataset.json.
        by_version: Made just so, but by another version of nnU-Net.
    """

    by_plan: list[str]
    by_version: list[str]


def settings_digest(
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    nnunet_version: str | None = None,
) -> str:
    """Hash everything but the case's own files that a preprocessed case depends on.

    Args:
        plans: The plan.
        configuration: One of its configurations, with what it inherits.
        dataset_json: Of the dataset.
        nnunet_version: Of nnU-Net, which preprocesses; None: the one that is installed.

    Returns:
        A hexadecimal digest; a different one means that all cases are stale.
    """
    statistics = plans.get("foreground_intensity_properties_per_channel", {})
    schemes = enumerate(configuration["normalization_schemes"])
    settings = {
        "record": RECORD_VERSION,
        NNUNET: nnunet_version or version(NNUNET),
        "plans": {key: plans.get(key) for key in _PLAN_KEYS},
        "configuration": {key: configuration.get(key) for key in _CONFIGURATION_KEYS},
        "dataset": {key: dataset_json.get(key) for key in _DATASET_KEYS},
        "intensities": {i: statistics.get(str(i)) for i, scheme in schemes if scheme not in _SCHEMES_BY_CASE},
    }
    if NON_FINITE in accepted_checks(dataset_json):
        settings[NON_FINITE] = "read as 0"
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def configuration_of_cases(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give a configuration with what it inherits, as its cases are preprocessed.

    Cases are laid out in blocks for the crop of the configuration that they are made for; others that share them, as a
    cascade's second stage does, may have another crop.

    Args:
        plans: The plan.
        name: Of the configuration.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dict(plans))
    of_name = manager.get_configuration(name)
    maker = maker_of_cases(plans, of_name.data_identifier) or name
    return {**of_name.configuration, "patch_size": manager.get_configuration(maker).configuration.get("patch_size")}


def maker_of_cases(plans: Mapping[str, Any], folder: str) -> str | None:
    """Name the configuration that the cases of a folder are made for: the first that inherits nothing, else the first.

    Returns:
        None if no configuration has its cases there.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager, configurations = PlansManager(dict(plans)), plans["configurations"]
    sharing = [name for name in configurations if manager.get_configuration(name).data_identifier == folder]
    return min(sharing, key=lambda name: "inherits_from" in configurations[name], default=None)


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name what two configurations, with what they inherit, say differently of how cases are preprocessed."""
    return [key for key in _CONFIGURATION_KEYS if one.get(key) != other.get(key)]


def make_record(
    case: TrainingCase, settings: str, reader: DatasetReader, stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Say what a case is made from: the settings, and its files by content, with those that belong to them.

    Args:
        case: The case.
        settings: From `settings_digest`.
        reader: Of the dataset.
        stored: An earlier record of the case. A file that has kept its size and times since is not read.

    Returns:
        The record, which also has the size and times of each file, as "seen", and the version of nnU-Net.
    """
    files = _files_of(case, reader)
    seen = [_seen(file) for file in files]
    before = stored or {}
    digests_before = [*(before.get("images") or []), before.get("label")]
    known = {tuple(kept): digest for kept, digest in zip(before.get("seen") or [], digests_before, strict=False)}
    digests = [known.get(tuple(one)) or file_digest(file) for one, file in zip(seen, files, strict=True)]
    return {"settings": settings, "images": digests[:-1], "label": digests[-1], "seen": seen, NNUNET: version(NNUNET)}


def read_record(output_folder: Path, name: str) -> dict[str, Any] | None:
    """Read the record of a case; None if there is none that is whole."""
    stored = read_json_if_whole(_record_file(output_folder, name))
    return stored if isinstance(stored, dict) else None


def digest_of_record(output_folder: Path, name: str) -> str | None:
    """Say by what a preprocessed case is known again: the settings and files that it was made from; None if unknown."""
    record = read_record(output_folder, name)
    if record is None:
        return None
    made_from = [record.get(key) for key in ("settings", "images", "label")]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def images_of_cases(output_folder: Path) -> dict[str, tuple[str, ...]]:
    """Give the digests of the images that each preprocessed case was made from, as far as that is recorded."""
    files = (output_folder / RECORDS_FOLDER).glob("*.json")
    records = ((file.stem, read_record(output_folder, file.stem) or {}) for file in files)
    return {name: tuple(record["images"]) for name, record in records if record.get("images")}


def is_current(output_folder: Path, name: str, record: Mapping[str, Any]) -> bool:
    """Whether a preprocessed case lies there whole and was made from what `record` says."""
    stored, now = read_record(output_folder, name), {**record, "sizes": _sizes(output_folder, name)}
    told_otherwise = {"seen": None, NNUNET: None}  # by the digests of the files and of the settings
    return stored is not None and {**stored, **told_otherwise} == {**now, **told_otherwise}


def made_otherwise(
    output_folder: Path, plans: Mapping[str, Any], name: str, dataset_json: Mapping[str, Any]
) -> MadeOtherwise:
    """Find the preprocessed cases that were made under other settings; of cases without a record nothing is known.

    Args:
        output_folder: Of the preprocessed cases.
        plans: The plan as it is now.
        name: Of its configuration that has its cases there.
        dataset_json: Of the dataset as it is now.
    """
    records = {file.stem: read_json_if_whole(file) for file in sorted((output_folder / RECORDS_FOLDER).glob("*.json"))}
    digest = cache(partial(settings_digest, plans, configuration_of_cases(plans, name), dataset_json))
    stale = {case: record for case, record in records.items() if record and record.get("settings") != digest()}
    by_plan: list[str] = []
    by_version: list[str] = []
    for case, record in stale.items():
        is_by_version = record.get("settings") in [digest(one) for one in _versions_that_made(record)]
        (by_version if is_by_version else by_plan).append(case)
    return MadeOtherwise(by_plan, by_version)


def seen_otherwise(output_folder: Path, cases: Sequence[TrainingCase], reader: DatasetReader) -> list[str]:
    """Name the preprocessed cases whose files have another path, size or time than when they were made.

    No file is read; of cases whose record does not say, nothing is known.

    Args:
        output_folder: Of the preprocessed cases.
        cases: Of the raw dataset, whose files are there.
        reader: Of the dataset.
    """
    records = {case.name: read_record(output_folder, case.name) or {} for case in cases}
    known = [case for case in cases if records[case.name].get("seen")]
    return [c.name for c in known if records[c.name]["seen"] != [_seen(file) for file in _files_of(c, reader)]]


def store_record(output_folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Store the record of a case whose files are in place."""
    write_json(_record_file(output_folder, name), {**record, "sizes": _sizes(output_folder, name)})


def remove_case(output_folder: Path, name: str) -> None:
    """Remove a preprocessed case; its record first, and the file by which nnU-Net finds the case next."""
    _record_file(output_folder, name).unlink(missing_ok=True)
    for suffix in FILE_SUFFIXES:
        (output_folder / f"{name}{suffix}").unlink(missing_ok=True)


def list_stored_names(output_folder: Path) -> set[str]:
    """Give the names of all cases of which a file or a record lies there."""
    names = set()
    for file in output_folder.iterdir():
        suffix = next((s for s in ("_seg.b2nd", ".b2nd", ".pkl") if file.name.endswith(s)), None)
        if suffix and file.is_file():
            names.add(file.name.removesuffix(suffix))
    return names | {file.stem for file in (output_folder / RECORDS_FOLDER).glob("*.json")}


def file_digest(path: Path) -> str:
    """Hash a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _versions_that_made(record: Mapping[str, Any]) -> Sequence[str]:
    """Name the versions of nnU-Net, one of which made a case."""
    return [str(record[NNUNET])] if NNUNET in record else UNNOTED_VERSIONS


def _files_of(case: TrainingCase, reader: DatasetReader) -> list[Path]:
    return [*reader.files_of(case.images), case.label]


def _seen(file: Path) -> list[str | int]:
    """Say by what a file is known again without being read: its path, its size in bytes, and its times."""
    status = file.stat()
    return [str(file.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _record_file(output_folder: Path, name: str) -> Path:
    return output_folder / RECORDS_FOLDER / f"{name}.json"


def _sizes(output_folder: Path, name: str) -> list[int]:
    """Sizes of the files of a case in bytes, -1 for one that is missing."""
    files = (output_folder / f"{name}{suffix}" for suffix in FILE_SUFFIXES)
    return [file.stat().st_size if file.is_file() else -1 for file in files]
