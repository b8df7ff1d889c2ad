"""--scheduler: the workers of a Dask cluster in place of processes of this machine."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    from sam3dnet.preprocessing.cluster import DaskCluster


def cluster_at(scheduler: str | None, num_processes: int | None) -> "AbstractContextManager[DaskCluster | None]":
    """Connect to a cluster, or to none without --scheduler.

    Raises:
        DatasetError: If --workers is given too, or, on entering, no scheduler answers at the address.
    """
    if scheduler is None:
        return nullcontext()
    if num_processes is not None:
        raise DatasetError("--workers: not with --scheduler, whose workers do the work")
    from sam3dnet.preprocessing.cluster import open_cluster

    return open_cluster(scheduler)
