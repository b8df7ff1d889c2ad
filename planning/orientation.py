"""How a dataset's images are oriented, and which array axis runs from left to right of the body."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.reading import DatasetReader

X_AXIS = 2  # of arrays (Z, Y, X)
DIRECTIONS = ("LR", "PA", "SI")  # of each axis of the world


def read_grids(image_files: Iterable[Path | str], reader: DatasetReader) -> list[Grid]:
    """Read where images lie from their headers; those that cannot be read are left out."""
    found = (reader.read_grid(file.name, file)[0] for file in map(Path, image_files))
    return [grid for grid in found if grid is not None]


def orientations(grids: Sequence[Grid], reader: DatasetReader) -> list[str]:
    """Name the orientations of images, such as LPS; none where the reader gives arrays along the world's axes."""
    return [] if reader.reorients else sorted({grid.orientation for grid in grids})


def left_right_axis(grids: Sequence[Grid], reader: DatasetReader) -> int | None:
    """Find the array axis (0, 1, 2 for Z, Y, X) that lies along left and right in most images as they are read.

    Files without an orientation count as stored along the world's axes, as ITK reads them.

    Args:
        grids: From `read_grids`.
        reader: Of the dataset; one that reorients gives arrays along the world's axes, however files are stored.

    Returns:
        The axis, or None if there is no image.
    """
    if reader.reorients:
        return X_AXIS
    votes = Counter(axis_along_world(grid, reader, 0) for grid in grids)
    return votes.most_common(1)[0][0] if votes else None


def axis_along_world(grid: Grid, reader: DatasetReader, world_axis: int) -> int:
    """Find the array axis (0, 1, 2 for Z, Y, X) that lies nearest to an axis of the world, for an image as it is read.

    Args:
        grid: Of the image.
        reader: Of the dataset.
        world_axis: 0 is left and right, 1 front and back, 2 feet and head.
    """
    if reader.reorients:
        return X_AXIS - world_axis
    return X_AXIS - next(axis for axis, letter in enumerate(grid.orientation) if letter in DIRECTIONS[world_axis])
