"""How many cores this job has: by its affinity and its group's quota, not those of the machine."""

import math
import os
from pathlib import Path

from sam3dnet.preprocessing.control_groups import groups_of


def cores_of_job() -> int:
    """Count the cores that this process may use, at least one."""
    quota = _quota()
    return len(_affinity()) if quota is None else max(1, min(len(_affinity()), math.ceil(quota)))


def augmentation_processes(device: str, cores: int) -> int:
    """Say how many processes are to load and augment images for a training; nnU-Net by itself would start twelve.

    On two cores one takes from torch what it gives: 0.31 s a step, 0.26 s with the loader in turn.
    """
    return 0 if device == "cpu" and cores <= 2 else min(12, max(1, cores - 1))


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
    limits = (_limit(group, is_second) for group, is_second in groups_of("cpu"))
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path, is_second: bool) -> float | None:
    """Read the limit of a group; None where it has none, or does not say."""
    try:
        if is_second:
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
