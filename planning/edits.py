"""What a user changed in a plans file: found, kept when the dataset is planned again, and told."""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from sam3dnet.planning.rules import Decision
from sam3dnet.planning.single_objects import KEY as SINGLE_OBJECTS

AS_PLANNED = "as_planned"  # in the block "sam3d": what the planner decided, by path
_EDITED = "changed by hand"
_CROP = "patch_size"

logger = logging.getLogger(__name__)


def editable_values(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values that a user may change: those of the configurations, the axes that are mirrored, and the
    classes that are one object, by path.
    """
    found = dict(_leaves("configurations", plans.get("configurations", {})))
    block = plans.get("sam3d", {})
    found |= {f"sam3d.{key}": block[key] for key in ("mirror_axes", SINGLE_OBJECTS) if key in block}
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


def changes_by_hand(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Find what differs in a plan from what its planner wrote; nothing in a plan that does not say what that was.

    Where a configuration inherits, as a cascade's second stage does, what is added to it differs from that.
    """
    planned = plans.get("sam3d", {}).get(AS_PLANNED, {})
    return {path: value for path, value in editable_values(plans).items() if _takes(path, value, planned)}


def _takes(path: str, value: Any, planned: Mapping[str, Any]) -> bool:
    """Tell whether a plan has a place for a value, and something else there."""
    return bool(planned.get(path, value) != value) or (path not in planned and _inherits(path, planned))


def _inherits(path: str, planned: Mapping[str, Any]) -> bool:
    return f"{'.'.join(path.split('.')[:2])}.inherits_from" in planned


def with_changes(plans: Mapping[str, Any], changes: Mapping[str, Any], file_name: str) -> dict[str, Any]:
    """Write down what was planned, and carry over what a user changed in the plan before, each as a decision.

    A crop is carried into the arguments of the network as well, unless these were given another by hand.

    Args:
        plans: A new plan.
        changes: From `changes_by_hand` of the one before.
        file_name: Of the plan.

    Returns:
        A copy; changes of what the new plan does not have, or has planned just so, are left out.
    """
    changed = copy.deepcopy(dict(plans))
    planned = copy.deepcopy(editable_values(plans))
    changed["sam3d"][AS_PLANNED] = planned
    # What others inherit comes first.
    for path, value in sorted(changes.items(), key=lambda change: _inherits(change[0], planned)):
        _give_own_network(path, changed["configurations"], planned)
        if not _takes(path, value, planned):
            continue
        *parents, key = path.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = value
        was = f"planned was {planned[path]}" if path in planned else f"planned was what {parents[1]} inherits"
        reason = f"{_EDITED} in {file_name}, {was}; delete the file to have all planned anew"
        changed["sam3d"]["decisions"].append(vars(Decision(path, value, reason, "user")))
        if parents[0] == "configurations" and (*parents[2:], key) == (_CROP,):
            _carry_crop(parents[1], changed["configurations"], planned, changes)
    return changed


def _give_own_network(path: str, configurations: dict[str, Any], planned: dict[str, Any]) -> None:
    """Copy the network that a configuration inherits, if a change of it or of the crop is to stay its own."""
    root, name, *keys = (*path.split("."), "", "")
    if root != "configurations" or keys[0] not in (_CROP, "architecture") or not _inherits(path, planned):
        return
    own = configurations[name]
    parent = own
    for _ in configurations:  # and no longer: what was changed by hand may lead in a circle
        if "architecture" not in parent:
            parent = configurations.get(str(parent.get("inherits_from")), parent)
    if parent is not own and "architecture" in parent:
        own["architecture"] = copy.deepcopy(parent["architecture"])
        planned.update(_leaves(f"{root}.{name}.architecture", copy.deepcopy(own["architecture"])))


def _carry_crop(
    name: str, configurations: Mapping[str, Any], planned: dict[str, Any], changes: Mapping[str, Any]
) -> None:
    path = f"configurations.{name}.architecture.arch_kwargs.{_CROP}"
    if path in planned and path not in changes:
        crop = configurations[name][_CROP]
        configurations[name]["architecture"]["arch_kwargs"][_CROP] = copy.deepcopy(crop)
        planned[path] = copy.deepcopy(crop)  # so that it is not taken for a change by hand the next time


def tell_changes(plans: Mapping[str, Any], changes: Mapping[str, Any], file_name: str) -> None:
    """Tell which changes a plan has taken over, and which it has no place for.

    Args:
        plans: From `with_changes`.
        changes: That it was given.
        file_name: Of the plan.
    """
    planned = plans["sam3d"][AS_PLANNED]
    for path, value in changes.items():
        if _takes(path, value, planned):
            logger.warning("Warning: %s of %s is kept as changed by hand: %s", path, file_name, value)
        elif path not in planned:
            of_plan = path.split(".")[1] if path.startswith("configurations.") else path
            missing = path if of_plan in plans["configurations"] else of_plan
            logger.warning(
                "Warning: %s of %s, changed by hand to %s, is dropped: the new plan has no %s",
                *(path, file_name, value, missing),
            )
