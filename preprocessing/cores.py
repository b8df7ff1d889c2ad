"""How many cores this job has: by its affinity and its group's quota, not those of the machine."""

import os


def cores_of_job() -> int:
    """Count the cores that this process may use."""
    from joblib import cpu_count

    return int(cpu_count())


def limit_threads() -> None:
    """Keep libraries that count the machine's cores to those of this job; what a user has set stays.

    Must come before torch is imported.
    """
    cores = str(cores_of_job())
    os.environ.setdefault("OMP_THREAD_LIMIT", cores)  # nnU-Net's resampling asks for four threads, also on two cores
    if cores_of_job() < len(_affinity()):  # by a quota, of which OpenMP knows nothing
        os.environ.setdefault("OMP_NUM_THREADS", cores)


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
