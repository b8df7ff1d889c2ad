"""Which array axis of a dataset's images runs from left to right of the body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def left_right_axis(image_files: Iterable[Path | str]) -> int | None:
    """Find the array axis (0, 1, 2 for Z, Y, X as the files store them) that lies along left and right in most images.

    Only headers are read. Files without an orientation count as stored along the world's axes, as ITK reads them.

    Args:
        image_files: One image of each case.

    Returns:
        The axis, or None if no header could be read.
    """
    votes: Counter[int] = Counter()
    for file in image_files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue
        if reader.GetDimension() == 3:
            direction = np.asarray(reader.GetDirection()).reshape(3, 3)
            votes[2 - int(np.argmax(np.abs(direction[0])))] += 1  # the first world axis of ITK is left and right
    return votes.most_common(1)[0][0] if votes else None
