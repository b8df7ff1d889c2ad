"""How many cores this job has: by its affinity and its group's quota, not those of the machine."""

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores_of_job() -> int:
    """Count the cores that this process may use, at least one."""
    quota = _quota()
    return len(_affinity()) if quota is None else max(1, min(len(_affinity()), math.ceil(quota)))


def limit_threads() -> None:
    """Keep libraries that count the machine's cores to those of this job; what a user has set stays.

    Must come before torch is imported. OMP_THREAD_LIMIT is not for this: where torch has more threads than that, as
    nnU-Net's commands and a user's OMP_NUM_THREADS may ask for, the backward pass of a convolution waits for ever.
    """
    cores = cores_of_job()
    if cores < len(_affinity()):  # by a quota, of which OpenMP knows nothing
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """Read how many cores' time Linux lets the control groups of this process have; None for no limit."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.strip("/")
        if not controllers:  # the second version of control groups: one tree
            limits += [_limit(group / "cpu.max") for group in _up(GROUPS, inside)]
        elif "cpu" in controllers.split(","):
            limits += [_limit(group) for group in _up(GROUPS / "cpu", inside)]
    found = [limit for limit in limits if limit is not None]
    return min(found) if found else None


def _up(root: Path, inside: str) -> list[Path]:
    """List a group and all that hold it."""
    parts = [part for part in inside.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _limit(place: Path) -> float | None:
    """Read a limit: from the file of the second version, or the folder of a group of the first."""
    try:
        if place.name == "cpu.max":
            quota, period = place.read_text(encoding="utf-8").split()
        else:
            quota, period = ((place / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
