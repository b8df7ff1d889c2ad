"""Room for arrays that are larger than memory: files that are mapped into it."""

import errno
import logging
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sam3dnet.preprocessing.free_memory import free_memory

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.25  # of what is free to this job: larger arrays go to disk
_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_ZEROS = bytes(1 << 20)
_MAPPED: MutableMapping[Tensor, mmap.mmap] = WeakTensorKeyDictionary()


def reserve(file: Path, size: int, what: str) -> None:
    """Make a file of zeros that the disk has room for: writing to a mapped one that it has not ends the process.

    Args:
        file: It is replaced.
        size: In bytes.
        what: Will be in it, for the message.

    Raises:
        OSError: If there is no room.
    """
    with file.open("wb") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, size)
            return
        except AttributeError:  # not on every system
            pass
        except OSError as problem:
            if problem.errno not in _CANNOT_RESERVE:
                raise OSError(problem.errno, f"no room for {what} of {size / 1e9:.2f} GB", str(file)) from None
        for start in range(0, size, len(_ZEROS)):
            opened.write(_ZEROS[: size - start])


def room_for(shape: Sequence[int], dtype: torch.dtype, what: str) -> Tensor:
    """Make a tensor of zeros on the CPU: in memory, or where it is large, in a temporary file.

    The file lies in the system's folder for such, which the variable TMPDIR names, and goes with the tensor. Where that
    has no room either, memory is all there is.

    Args:
        shape: Of the tensor.
        dtype: Of the tensor.
        what: Will be in it, for the message.
    """
    size = dtype.itemsize * math.prod(shape)
    if size <= SHARE_OF_MEMORY * free_memory():
        return torch.zeros(tuple(shape), dtype=dtype)
    try:
        return _mapped(tuple(shape), dtype, what)
    except OSError as problem:
        advice = "they stay in memory; let TMPDIR name a folder with more room if that is too little"
        logger.warning("Warning: %s: %s; %s", tempfile.gettempdir(), problem.strerror, advice)
        return torch.zeros(tuple(shape), dtype=dtype)


def let_go(x: Tensor) -> None:
    """Leave to the system what a tensor from `room_for` has in memory and on disk alike; else do nothing."""
    mapped = _MAPPED.get(x)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    folder = tempfile.TemporaryDirectory(prefix="sam3d_", ignore_cleanup_errors=True)
    try:
        file = Path(folder.name) / "values"
        reserve(file, dtype.itemsize * math.prod(shape), what)
        with file.open("r+b") as opened:
            mapped = mmap.mmap(opened.fileno(), 0)
    except BaseException:
        folder.cleanup()
        raise
    if os.name == "posix":  # what is mapped stays there without its name, and goes even if the process is killed
        folder.cleanup()
    else:
        weakref.finalize(mapped, folder.cleanup)
    tensor = torch.frombuffer(mapped, dtype=dtype).view(shape)
    _MAPPED[tensor] = mapped
    return tensor
