"""How much memory this job can still take: what the machine has free, and what its control groups allow."""

from pathlib import Path

import psutil

from sam3dnet.preprocessing.control_groups import groups_of

FILES = {True: ("memory.max", "memory.current"), False: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
RECLAIMED = ("inactive_file", "total_inactive_file")  # copies of files, which the system gives up first


def free_memory() -> int:
    """Count the bytes that this process can take before the machine, or a group that it is in, has no more."""
    allowed = (_left(group, is_second) for group, is_second in groups_of("memory"))
    return max(0, min([int(psutil.virtual_memory().available), *(left for left in allowed if left is not None)]))


def _left(group: Path, is_second: bool) -> int | None:
    """Read what a group may still take; None where it has no limit, or does not say."""
    try:
        limit, used = ((group / name).read_text().strip() for name in FILES[is_second])
        if limit == "max":
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        reclaimed = max((int(statistics[name]) for name in RECLAIMED if name in statistics), default=0)
        return int(limit) - int(used) + reclaimed
    except (OSError, ValueError):
        return None
