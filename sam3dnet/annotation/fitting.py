"""Whether a model can propose label maps for a dataset: its classes and channels mean the same."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.inference.models import read_model_dataset
from sam3dnet.portable.sources import model_folder
from sam3dnet.preprocessing.cases import channel_names, foreground_classes, has_regions

CT = "ct"  # the one kind of image that nnU-Net normalises by its name

logger = logging.getLogger(__name__)


def require_fitting(model: Path, name: str, dataset_json: Mapping[str, Any]) -> None:
    """See that a model has the classes and channels of a dataset; channels that are called otherwise are told.

    Args:
        model: Its folder, or an exported file; its weights are not loaded.
        name: Of the dataset.
        dataset_json: Of the dataset.

    Raises:
        DatasetError: If it has other classes, or channels that are others or in another order.
        CheckpointError, PlanError: If there is no such model.
    """
    with model_folder(model) as folder:
        theirs = read_model_dataset(folder)
    classes, channels = (tuple(map(of, (theirs, dataset_json))) for of in (_classes, _channels))
    differ = [
        f"the model has the {what} {', '.join(found)}, {name} {', '.join(expected)}"
        for what, (found, expected), is_other in (
            ("classes", classes, classes[0] != classes[1]),
            ("channels", channels, _are_others(*channels)),
        )
        if is_other
    ]
    if differ:
        raise DatasetError(
            f"{model}: {'; '.join(differ)}; train a model of this dataset that starts from it: "
            f"sam3d_plan_and_preprocess -d {name} --like {model}, then sam3d_train {name} all --from {model}; or "
            "choose another one with -m"
        )
    if channels[0] != channels[1]:
        logger.warning(
            "Warning: %s calls its channels %s, %s calls them %s; they are taken to be the same",
            *(model, ", ".join(channels[0]), name, ", ".join(channels[1])),
        )


def _classes(dataset_json: Mapping[str, Any]) -> list[str]:
    """Say the labels of each class or region, and the one that a region is drawn with."""
    classes = foreground_classes(dataset_json)
    if not has_regions(dataset_json):
        return [f"{name} ({values[0]})" for name, values in classes.items()]
    drawn = zip(classes.items(), dataset_json.get("regions_class_order", ()), strict=False)
    return [f"{name} ({list(values)} drawn as {label})" for (name, values), label in drawn]


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in channel_names(dataset_json).values()]


def _are_others(theirs: Sequence[str], own: Sequence[str]) -> bool:
    """Tell whether channels cannot be the same ones under other names."""
    if theirs == own:
        return False
    are_ct = [[name.lower() == CT for name in names] for names in (theirs, own)]
    return are_ct[0] != are_ct[1] or sorted(theirs) == sorted(own)
