"""Which file of a folder a viewer's array is of: the same voxels, whatever way round.

The protocols of viewers say nothing of files, and most nothing of where an array lies. A folder of images that the
server may read tells both, and has the further channels.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case, find_cases
from sam3dnet.preprocessing.cases import channel_names
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.serving.segment import Found
from sam3dnet.serving.turning import Turn, all_turns

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the range of grey values, for viewers that scale them in float32
SAMPLES = 32  # along each axis, compared before all voxels are

Floats = npt.NDArray[np.float32]
Stamp = tuple[int, int]


class ImageFolder:
    """A folder of images for one model, named as in nnU-Net's imagesTs.

    Args:
        folder: The folder.
        reader: Of the model's dataset.
        dataset_json: Of the model.
        may_be_empty: Whether it may hold no image, now or later.

    Raises:
        DatasetError: If there is no such folder, or it holds no image as the model wants it.
    """

    def __init__(self, folder: Path, reader: DatasetReader, dataset_json: dict[str, Any], may_be_empty: bool = False):
        self.folder, self._reader = folder, reader
        self._ending = dataset_json["file_ending"]
        self._channels = len(channel_names(dataset_json))
        self._shapes: dict[tuple[Path, Stamp], tuple[int, ...]] = {}
        self._marks: dict[tuple[Path, Stamp], npt.NDArray[np.float64]] = {}
        self._may_be_empty = may_be_empty
        for name, reason in self._find()[1].items():
            logger.warning("Warning: %s is left out: %s", name, reason)

    def cases(self) -> list[Case]:
        """List the images that are there now, by name."""
        return self._find()[0]

    def _find(self) -> tuple[list[Case], dict[str, str]]:
        try:
            return find_cases(self.folder, self._ending, self._channels)
        except DatasetError:
            if self._may_be_empty:
                return [], {}
            raise

    def recognise(self, image_CZYX: npt.NDArray[Any]) -> Found | None:
        """Find the image of which a viewer's array is a channel; None if there is none.

        Args:
            image_CZYX: With one channel; arrays with more are taken as they are.
        """
        if len(image_CZYX) != 1:
            return None
        given = _finite(image_CZYX[0])
        mark = _mark(given)
        for case in self.cases():
            for file in case.files:
                turn = self._compare(given, mark, file)
                if turn is not None:
                    logger.info("the viewer's image is %s; its place and its channels are taken from there", file)
                    return Found(case.name, case.files, turn)
        logger.warning(
            "the viewer's image is none of %s; it is taken as it comes, in the orientation of the model's images",
            self.folder,
        )
        return None

    def _compare(self, given: Floats, mark: npt.NDArray[np.float64], file: Path) -> Turn | None:
        """Give the way from a viewer's array to a file's, if they are of one image."""
        key = file, _stamp(file)
        if key not in self._shapes:
            grid, _ = self._reader.read_grid(file.name, file)
            self._shapes[key] = () if grid is None else grid.shape
        if sorted(self._shapes[key]) != sorted(given.shape):
            return None
        if key in self._marks and not _alike(mark, self._marks[key]):
            return None
        read = _finite(self._reader.read_images([file])[0][0])
        self._marks[key] = _mark(read)
        if not _alike(mark, self._marks[key]):
            return None
        step = tuple(slice(None, None, max(1, size // SAMPLES)) for size in read.shape)
        close = TOLERANCE * max(float(np.ptp(read[step])), 1e-6)
        for turn in all_turns(given.shape, read.shape):
            turned = turn.forth(given)
            if np.abs(turned[step] - read[step]).max() <= close and np.abs(turned - read).max() <= close:
                return turn
        return None


def _finite(values: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        return np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0.0, neginf=0.0)


def _mark(values: Floats) -> npt.NDArray[np.float64]:
    """Sum up what no change of axes alters: mean, deviation, least and greatest."""
    wide = values.astype(np.float64)
    return np.array([wide.mean(), wide.std(), wide.min(), wide.max()])


def _alike(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> bool:
    extent = max(abs(other[3] - other[2]), 1e-6)
    return bool(np.abs(one - other).max() <= TOLERANCE * extent)


def _stamp(file: Path) -> Stamp:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
