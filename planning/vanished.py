"""Objects that are in the files and no longer in the preprocessed cases: smaller than a planned voxel."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.planning.fingerprint import BLOCK, FINGERPRINT_FILE
from sam3dnet.planning.plan import load_plan
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import shorten

logger = logging.getLogger(__name__)


def tell_vanished(plan_file: Path, chosen: Sequence[str]) -> None:
    """Tell the classes that vanish in the configurations of a plan that were preprocessed just now."""
    fingerprint = read_json(plan_file.with_name(FINGERPRINT_FILE), DatasetError, "plan again")
    configurations = load_plan(plan_file).configurations
    for folder in sorted({configurations[name].data_identifier for name in chosen}):
        find_vanished(plan_file.parent / folder, fingerprint[BLOCK]["classes"])


def find_vanished(cases_folder: Path, classes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Find and tell the classes that vanish when cases are resampled; of cases that are not there nothing is known.

    Args:
        cases_folder: Of the preprocessed cases of one configuration.
        classes: Of the fingerprint: by name, with "label_values", "cases" that have it, and their "voxels".

    Returns:
        The cases by class.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(cases_folder))(str(cases_folder))
    vanished: dict[str, list[str]] = {}
    labelled = {case for measures in classes.values() for case in measures["cases"]}
    for case in sorted(labelled.intersection(dataset.identifiers)):
        stored = _sampled_voxels(dataset, case)
        for name, measures in classes.items():
            if case in measures["cases"] and stored.get(_key(measures["label_values"], stored)) == 0:
                vanished.setdefault(name, []).append(case)
    for name, cases in vanished.items():
        measures = classes[name]
        voxels = sum(measures["voxels"][measures["cases"].index(case)] for case in cases)
        logger.warning(
            "Warning: %s has %d voxels in the files and none at the planned spacing in %d of %d cases: %s; it cannot "
            'be learned there; write a finer "spacing" into the plan and plan again, which keeps it',
            *(name, voxels, len(cases), len(measures["cases"]), shorten(cases)),
        )
    return vanished


def _sampled_voxels(dataset: Any, case: str) -> dict[Any, int]:
    """Count the voxels of each class that nnU-Net has drawn from a preprocessed case; 0 means that there is none."""
    *_, properties = dataset.load_case(case)
    return {key: len(places) for key, places in properties["class_locations"].items()}


def _key(values: list[int], stored: Mapping[Any, int]) -> Any:
    region = tuple(values)
    return region if region in stored else values[0]
