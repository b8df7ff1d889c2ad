"""What is made of a case beside its label map, from the same logits, and appears with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

Slices = tuple[slice, slice, slice]
WHOLE = (slice(None),) * 3
LabelMaps = tuple[np.ndarray, np.ndarray | None]  # and the same before something was taken out; None where nothing was


class Companion(Protocol):
    """Takes the logits of an image in any order, and writes what it makes of them."""

    def put(self, channels: int | slice, box: Slices, logits: Tensor) -> None:
        """Take the logits of a channel, or of all, in a box of the image that the plan transposed and cropped."""

    def write(self, stem: Path, labels_ZYX: np.ndarray, before_ZYX: np.ndarray | None = None) -> None:
        """Write the files beside a label map.

        Args:
            stem: Their name without the endings.
            labels_ZYX: The label map on the image's grid.
            before_ZYX: The same before something was taken out, by post-processing or since prompts do not name it;
                None where nothing was.
        """

    def close(self) -> None:
        """Give the room back."""


class Companions:
    """Several of a case as one."""

    def __init__(self, several: Sequence[Companion]):
        self._several = several

    def __len__(self) -> int:
        return len(self._several)

    def put(self, channels: int | slice, box: Slices, logits: Tensor) -> None:
        """Hand the logits to each."""
        for one in self._several:
            one.put(channels, box, logits)

    def write(self, stem: Path, labels_ZYX: np.ndarray, before_ZYX: np.ndarray | None = None) -> None:
        """Have each write its files."""
        for one in self._several:
            one.write(stem, labels_ZYX, before_ZYX)

    def close(self) -> None:
        """Give the room of each back."""
        for one in self._several:
            one.close()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What there is to write of a case.

    Attributes:
        labels_ZYX: Label map on the grid of the image as its reader gave it.
        companions: What is written beside it.
        before_ZYX: The label map before something was taken out; None where nothing was.
    """

    labels_ZYX: np.ndarray
    companions: Companions
    before_ZYX: np.ndarray | None = None

    @classmethod
    def of(cls, companions: Companions, segment: Callable[[], LabelMaps]) -> "Segmentation":
        """Segment, and give back the room of companions if that fails.

        Args:
            companions: What is written beside the label map.
            segment: Gives the label map, and before it what the logits say, or None for the same.
        """
        try:
            labels_ZYX, before_ZYX = segment()
            return cls(labels_ZYX, companions, before_ZYX if len(companions) else None)
        except BaseException:
            companions.close()
            raise

    def companions_of(self, name: str) -> Callable[[Path], None]:
        """Give what writes the companions of the case of this name into a folder."""
        return lambda folder: self.companions.write(folder / name, self.labels_ZYX, self.before_ZYX)


def start_companions(*starts: Callable[[], Companion] | Literal[False]) -> Companions:
    """Make those that are wanted, not False; if one cannot be made, the others give their room back."""
    made: list[Companion] = []
    try:
        for start in starts:
            if start:
                made.append(start())
    except BaseException:
        Companions(made).close()
        raise
    return Companions(made)
