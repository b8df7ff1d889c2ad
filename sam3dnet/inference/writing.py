"""A label map in a file that appears whole or not at all, in the image's own place."""

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sam3dnet.inference.images import Case, is_damaged
from sam3dnet.preprocessing.geometry import as_stored
from sam3dnet.preprocessing.reading import DatasetReader

UNFINISHED = ".sam3d_unfinished-"  # of a label map's own folder, so that runs into one folder leave each other alone
SECONDS_TO_RUN = 7 * 86400.0  # a prediction on another machine at most: its folder may hold images of all its cases
CLOCKS = 5.0  # seconds by which that of a disk may be behind
LARGEST_BYTE = 255


def unfinished_folder(output: Path) -> tempfile.TemporaryDirectory:
    """Make a folder for what is not finished; one that a run leaves when it is killed is removed by the next run."""
    return tempfile.TemporaryDirectory(prefix=f"{UNFINISHED}{socket.gethostname()}-{os.getpid()}-", dir=output)


def write_label_map(
    label_map_ZYX: np.ndarray,
    path: Path,
    image: Path,
    properties: Mapping[str, Any],
    reader: DatasetReader,
    write_more: Callable[[Path], None] | None = None,
    note: Callable[[Path], None] | None = None,
) -> None:
    """Write a label map that lies wherever the image lies, in whatever opens the image; under a temporary name first.

    Args:
        label_map_ZYX: Labels on the image's grid.
        path: Final name.
        image: The image's file; what its header says of its place is taken over.
        properties: That the reader gave.
        reader: Of the model's dataset.
        write_more: Writes further files of the case, which appear with the label map, into the folder that it is given.
        note: Called with the label map's file when it is whole, before it gets its final name.

    Raises:
        OSError, RuntimeError: If writing fails; nothing is left under the final name then.
    """
    with unfinished_folder(path.parent) as name:
        if write_more is not None:
            write_more(Path(name))
        _write(as_stored(label_map_ZYX, properties), Path(name) / path.name, image, properties["spacing"], reader)
        written = sorted(Path(name).iterdir(), key=lambda file: file.name == path.name)
        if note is not None:
            note(written[-1])
        for file in written:  # the label map last: it says that the case is finished
            os.replace(file, path.parent / file.name)


def _write(
    label_map_ZYX: np.ndarray, path: Path, image: Path, spacing_mm: Sequence[float], reader: DatasetReader
) -> None:
    smallest = np.uint8 if label_map_ZYX.max() < LARGEST_BYTE else np.uint16  # as nnU-Net's writers
    try:
        reader.format.write(label_map_ZYX.astype(smallest), path, image, spacing_mm)
    except OSError as error:
        raise _not_whole(path, error) from error
    if is_damaged(path):  # on a full disk ITK's writers may end in silence and leave half a file
        raise _not_whole(path)


def remove_abandoned(folder: Path) -> None:
    """Remove what runs that were killed left of label maps in the making."""
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another run may do the same
            if _is_abandoned(unfinished):
                shutil.rmtree(unfinished, ignore_errors=True)


def _is_abandoned(unfinished: Path) -> bool:
    """Tell whether the process that made a folder has ended; of another machine's nothing is known but the time."""
    host, process, _ = unfinished.name.removeprefix(UNFINISHED).rsplit("-", 2)
    written = unfinished.stat().st_mtime
    if host != socket.gethostname():
        return time.time() - written > SECONDS_TO_RUN
    try:
        return psutil.Process(int(process)).create_time() > written + CLOCKS  # another one that has its number now
    except psutil.Error:
        return True


def _not_whole(path: Path, problem: OSError | None = None) -> OSError:
    """Say why, where the writer has; it may have been unable to read the image's place."""
    if problem is None:
        return OSError(errno.ENOSPC, "could not be written whole; is the disk full?", str(path))
    of = f" ({problem.filename})" if problem.filename and Path(problem.filename).parent != path.parent else ""
    reason = problem.strerror or str(problem)
    return OSError(problem.errno or errno.EIO, f"could not be written whole: {reason}{of}", str(path))


def is_whole(output: Path) -> bool:
    """Tell whether a label map is there, and not damaged."""
    return output.is_file() and not is_damaged(output)


def has_shape_of(output: Path, case: Case, reader: DatasetReader) -> bool:
    """Tell whether a label map has as many voxels along each axis as the image."""
    written, _ = reader.read_grid(case.name, output, is_label=True)
    image, _ = reader.read_grid(case.name, case.files[0])
    return written is not None and image is not None and written.shape == image.shape
