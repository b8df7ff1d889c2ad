"""nnU-Net's loaders, with a further transform of whole batches that runs in their workers.

nnU-Net makes its loaders without one and starts their workers at once. So it makes them without workers here, and they
get them afterwards, as many as it would have started.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

Batch = dict[str, Any]
WORKERS = "nnUNet_n_proc_DA"  # nnU-Net's environment variable


@contextmanager
def without_workers() -> Iterator[int]:
    """Let nnU-Net make loaders that run in this process; give how many workers the training's would have had."""
    before = os.environ.get(WORKERS)
    workers = int(get_allowed_n_proc_DA())
    os.environ[WORKERS] = "0"
    try:
        yield workers
    finally:
        if before is None:
            del os.environ[WORKERS]
        else:
            os.environ[WORKERS] = before


def transforming_loader(
    loader: SingleThreadedAugmenter, transform: Callable[..., Batch], workers: int, cached: int, pin_memory: bool
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Give a loader that was made without workers a transform of its batches, and workers that run both.

    Args:
        loader: Gives batches.
        transform: Is called with what a batch holds as keyword arguments; returns a batch.
        workers: Processes, which are started; 0: it runs in this one.
        cached: How many batches the workers make in advance.
        pin_memory: Whether tensors are put where a card reads them fast.
    """
    if workers == 0:
        loader.transform = transform
        return loader
    augmenter = NonDetMultiThreadedAugmenter(
        loader.data_loader, transform, workers, num_cached=cached, pin_memory=pin_memory, wait_time=0.002
    )
    next(augmenter)  # starts them
    return augmenter
