"""One process at a time works at a folder; another one waits for it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sam3dnet.errors import DatasetError

logger = logging.getLogger(__name__)

LOCK_FILE = ".sam3d_lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time change what lies in a folder, which is made where it is missing.

    The lock ends with the process, however that ends. On file systems without locks there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Warning: another process works at %s; waiting until it has ended", folder)
        lock.acquire()
    except (NotImplementedError, OSError) as problem:
        logger.debug("%s cannot be locked: %s", folder, problem)
    try:
        yield
    finally:
        lock.release()


def sole_process(folder: Path, otherwise: str) -> FileLock:
    """Take a folder, which is made where it is missing, for this process alone, until the lock is released.

    Args:
        folder: The folder.
        otherwise: What to say if another process has it.

    Raises:
        DatasetError: If another process has it. On file systems without locks nobody has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, thread_local=False)  # servers release it in another thread
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DatasetError(f"{folder}: {otherwise}") from None
    except (NotImplementedError, OSError) as problem:
        logger.debug("%s cannot be locked: %s", folder, problem)
    return lock
