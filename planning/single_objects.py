"""Classes that are one object wherever they are labelled, as organs are and metastases are not.

What a model finds of such a class beside its largest object is most often false. Whether it is taken out of label
maps is decided by the training's validation, see `sam3dnet.training.single_objects`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sam3dnet.planning.rules import Decision

KEY = "single_objects"  # in the plan's block "sam3d", with the names of the classes
WHOLE = 0.95  # share of a class's voxels that its largest object has: label maps hold stray voxels
CASES = 0.95  # share of the cases with the class, of which this holds: labels have faults


def find_single_objects(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the classes that are one object.

    Args:
        classes: Of the fingerprint: by name, with "voxels" and "largest_voxels" of each case that has it.
    """
    return [name for name, measures in classes.items() if is_single(measures["largest_voxels"], measures["voxels"])]


def is_single(largest: Sequence[int], voxels: Sequence[int]) -> bool:
    """Tell whether what has so many voxels in its largest object and in all, case by case, is one object."""
    whole = sum(of_largest >= WHOLE * of_class for of_largest, of_class in zip(largest, voxels, strict=True))
    return bool(voxels) and whole >= CASES * len(voxels)


def single_objects_decision(names: list[str]) -> Decision:
    """Say which classes are one object."""
    reason = (
        f"the largest object has {WHOLE:.0%} of the class's voxels in {CASES:.0%} of the label maps that have it; "
        "predictions keep the largest alone, and before it that of all classes together if that is one object too, "
        "unless that makes the validation worse"
    )
    return Decision("single objects", names, reason, "sam3dnet")
