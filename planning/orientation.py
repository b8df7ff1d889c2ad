"""Which array axis of a dataset's images runs from left to right of the body."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sam3dnet.preprocessing.reading import DatasetReader

X_AXIS = 2  # of arrays (Z, Y, X)


def left_right_axis(image_files: Iterable[Path | str], reader: DatasetReader) -> int | None:
    """Find the array axis (0, 1, 2 for Z, Y, X) that lies along left and right in most images as they are read.

    Only headers are read. Files without an orientation count as stored along the world's axes, as ITK reads them.

    Args:
        image_files: One image of each case.
        reader: Of the dataset; one that reorients gives arrays along the world's axes, however files are stored.

    Returns:
        The axis, or None if no header could be read.
    """
    if reader.reorients:
        return X_AXIS
    votes: Counter[int] = Counter()
    for file in map(Path, image_files):
        grid, _ = reader.read_grid(file.name, file)
        if grid is not None:
            direction = np.asarray(grid.direction).reshape(3, 3)
            votes[X_AXIS - int(np.argmax(np.abs(direction[0])))] += 1  # the world's first axis is left and right
    return votes.most_common(1)[0][0] if votes else None
