"""Whether a model's dataset means the same as another one: classes with their labels, and channels in their order."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dnet.preprocessing.cases import channel_names, foreground_classes, has_regions

CT = "ct"  # the one kind of image that nnU-Net normalises by its name

logger = logging.getLogger(__name__)


def differences(theirs: Mapping[str, Any], name: str, dataset_json: Mapping[str, Any]) -> list[str]:
    """Say what keeps a model from labelling the images of a dataset; nothing where nothing does.

    Args:
        theirs: The model's dataset.json.
        name: Of the dataset.
        dataset_json: Of the dataset.
    """
    classes, channels = (tuple(map(of, (theirs, dataset_json))) for of in (_classes, names_of_channels))
    return [
        f"the model has the {what} {', '.join(found)}, {name} {', '.join(expected)}"
        for what, (found, expected), is_other in (
            ("classes", classes, classes[0] != classes[1]),
            ("channels", channels, _are_others(*channels)),
        )
        if is_other
    ]


def tell_other_names(model: Path, theirs: Mapping[str, Any], name: str, dataset_json: Mapping[str, Any]) -> None:
    """Warn where a model has other names for channels that are taken to be the same; arguments as of `differences`."""
    channels = [names_of_channels(one) for one in (theirs, dataset_json)]
    if channels[0] != channels[1]:
        logger.warning(
            "Warning: %s calls its channels %s, %s calls them %s; they are taken to be the same",
            *(model, ", ".join(channels[0]), name, ", ".join(channels[1])),
        )


def names_of_channels(dataset_json: Mapping[str, Any]) -> list[str]:
    """Name the channels in their order."""
    return [str(name) for name in channel_names(dataset_json).values()]


def _classes(dataset_json: Mapping[str, Any]) -> list[str]:
    """Say the labels of each class or region, and the one that a region is drawn with."""
    classes = foreground_classes(dataset_json)
    if not has_regions(dataset_json):
        return [f"{name} ({values[0]})" for name, values in classes.items()]
    drawn = zip(classes.items(), dataset_json.get("regions_class_order", ()), strict=False)
    return [f"{name} ({list(values)} drawn as {label})" for (name, values), label in drawn]


def _are_others(theirs: Sequence[str], own: Sequence[str]) -> bool:
    """Tell whether channels cannot be the same ones under other names."""
    if theirs == own:
        return False
    are_ct = [[name.lower() == CT for name in names] for names in (theirs, own)]
    return are_ct[0] != are_ct[1] or sorted(theirs) == sorted(own)
