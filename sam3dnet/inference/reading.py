"""Read images ahead of the prediction, no more of them at a time than fit into a fixed share of memory."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from sam3dnet.inference.cases import Case
from sam3dnet.preprocessing.checks_case import read_grid

logger = logging.getLogger(__name__)

Preprocessed = tuple[Tensor, dict[str, Any]]

BYTES_AHEAD = 4 << 30  # of all images that are read or wait, unless a single one takes more
BYTES_A_VALUE = 4
PEAK_OF_READING = 4  # times the memory of the image itself: file, copy, mask, resampled


def image_bytes(case: Case, spacing_mm: Sequence[float]) -> int:
    """Estimate from the header what an image takes in memory, in float32, on the finer of its own grid and the plan's.

    Args:
        case: The image.
        spacing_mm: Of the plan, in any order.

    Returns:
        The bytes; 0 if the header cannot be read.
    """
    grid = read_grid(case.name, case.files[0])[0]
    if grid is None:
        return 0
    voxels = math.prod(grid.shape)
    resampled = voxels * math.prod(grid.spacing_mm) / math.prod(spacing_mm)
    return int(len(case.files) * BYTES_A_VALUE * max(voxels, resampled))


def read_ahead(
    cases: Sequence[Case],
    read: Callable[[Case], Preprocessed],
    ahead: int,
    bytes_of: Callable[[Case], int],
) -> Iterator[tuple[Case, Future[Preprocessed]]]:
    """Yield each case with its reading, while the next ones are being read.

    Args:
        cases: In the order in which they are yielded.
        read: Reads and preprocesses a case; what it raises is raised by the future's result.
        ahead: Number of images that are read ahead, each in a thread; 0 reads each in this thread when its turn comes.
        bytes_of: What an image takes in memory once it is read.
    """
    if ahead == 0:
        for case in cases:
            yield case, _read_now(read, case)
        return
    readers = ThreadPoolExecutor(ahead)
    waiting: deque[tuple[Case, Future[Preprocessed], int]] = deque()
    try:
        for case in cases:
            size = bytes_of(case)
            while waiting and (len(waiting) > ahead or not _fits(size, waiting)):
                yield waiting.popleft()[:2]
            waiting.append((case, readers.submit(read, case), size))
        while waiting:
            yield waiting.popleft()[:2]
    except BaseException:  # nobody wants the rest any more
        readers.shutdown(wait=False, cancel_futures=True)
        raise
    readers.shutdown(wait=False)


def _fits(size: int, waiting: Sequence[tuple[Case, Future[Preprocessed], int]]) -> bool:
    taken = sum(other * (1 if reading.done() else PEAK_OF_READING) for _, reading, other in waiting)
    return taken + size * PEAK_OF_READING <= BYTES_AHEAD


def _read_now(read: Callable[[Case], Preprocessed], case: Case) -> Future[Preprocessed]:
    reading: Future[Preprocessed] = Future()
    try:
        reading.set_result(read(case))
    except Exception as error:  # as a thread of a pool does
        reading.set_exception(error)
    return reading
