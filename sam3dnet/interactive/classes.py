"""The classes that prompts can be about: their names, channels of the logits, and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam3dnet.errors import PromptError, did_you_mean
from sam3dnet.preprocessing.geometry import Mask

IGNORE = "ignore"


@dataclass(frozen=True)
class PromptClass:
    """A foreground class, or a region.

    Attributes:
        index: Channel of the logits.
        label: That a voxel gets which is decided to be of the class.
        members: All labels that count as the class.
    """

    index: int
    label: int
    members: tuple[int, ...]

    def mask(self, label_map_ZYX: np.ndarray) -> Mask:
        """Return where a label map has the class."""
        mask = np.asarray(label_map_ZYX == self.members[0])
        for member in self.members[1:]:  # np.isin takes many times longer for a few labels
            mask |= label_map_ZYX == member
        return mask


def prompt_classes(labels: Any) -> Mapping[str, PromptClass]:
    """Read the classes by name from nnU-Net's LabelManager, in the order of the channels of the logits."""
    if labels.has_regions:
        values = [value for name, value in labels.label_dict.items() if name != IGNORE]
        foreground = labels.filter_background(values)
        names = [name for name, value in labels.label_dict.items() if name != IGNORE and value in foreground]
        return {
            name: PromptClass(index, int(label), _members(labels.label_dict[name]))
            for index, (name, label) in enumerate(zip(names, labels.regions_class_order, strict=True))
        }
    named = sorted((_members(value)[0], name) for name, value in labels.label_dict.items() if name != IGNORE)
    return {name: PromptClass(label, label, (label,)) for label, name in named if label != 0}


def _members(value: Any) -> tuple[int, ...]:
    return tuple(int(label) for label in value) if isinstance(value, list | tuple) else (int(value),)


def find_class(classes: Mapping[str, PromptClass], name: str | None) -> str:
    """Check the name of a class; it may be left out where there is only one.

    Raises:
        PromptError: If there is no such class, or none is named where there are more.
    """
    known = ", ".join(f'"{one}"' for one in classes)
    if name is None:
        if len(classes) == 1:
            return next(iter(classes))
        raise PromptError(f"the model has the classes {known}; say with class_name which one is meant")
    if name not in classes:
        raise PromptError(
            f'there is no class "{name}"{did_you_mean(name, classes)}, the model has {known}; give one of these'
        )
    return name
