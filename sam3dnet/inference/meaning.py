"""Whether a model's dataset means the same as another one: classes with their labels, and channels in their order."""

from collections.abc import Mapping, Sequence
from typing import Any

from sam3dnet.preprocessing.cases import channel_names, foreground_classes, has_regions

CT = "ct"  # the one kind of image that nnU-Net normalises by its name


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
