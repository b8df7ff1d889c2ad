"""What a user changed in a plans file: found, kept when the dataset is planned again, and told."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from sam3dnet.planning.rules import Decision
from sam3dnet.planning.single_objects import KEY as SINGLE_OBJECTS

AS_PLANNED = "as_planned"  # in the block "sam3d": what the planner decided, by path
_EDITED = "changed by hand"


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
    return {
        path: value
        for path, value in editable_values(plans).items()
        if planned.get(path, value) != value or (path not in planned and _inherits(path, planned))
    }


def _inherits(path: str, planned: Mapping[str, Any]) -> bool:
    return f"{'.'.join(path.split('.')[:2])}.inherits_from" in planned


def with_changes(plans: Mapping[str, Any], changes: Mapping[str, Any], file_name: str) -> dict[str, Any]:
    """Write down what was planned, and carry over what a user changed in the plan before, each as a decision.

    Args:
        plans: A new plan.
        changes: From `changes_by_hand` of the one before.
        file_name: Of the plan.

    Returns:
        A copy; changes of what the new plan does not have, or has planned just so, are left out.
    """
    changed = copy.deepcopy(dict(plans))
    planned = editable_values(plans)
    changed["sam3d"][AS_PLANNED] = planned
    for path, value in changes.items():
        if planned.get(path, value) != value or (path not in planned and _inherits(path, planned)):
            *parents, key = path.split(".")
            place = changed
            for parent in parents:
                place = place.setdefault(parent, {})
            place[key] = value
            was = f"planned was {planned[path]}" if path in planned else f"planned was what {parents[1]} inherits"
            reason = f"{_EDITED} in {file_name}, {was}; delete the file to have all planned anew"
            changed["sam3d"]["decisions"].append(vars(Decision(path, value, reason, "user")))
    return changed
