"""The frames of DICOM images: of classic files one each, of enhanced multi-frame ones many, said in the same way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sam3dnet.dicom.files import Instance

if TYPE_CHECKING:
    from pydicom import Dataset

Vector = npt.NDArray[np.float64]

# What may tell several volumes of one series apart, where slices lie at the same place.
TELL_APART = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "EchoNumbers",
    "EffectiveEchoTime",
    "EchoTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "AcquisitionNumber",
    "ContentTime",
    "ImageType",
    "FrameType",
)


@dataclass(frozen=True, eq=False)
class Frame:
    """A slice that has a place in space.

    Attributes:
        instance: The file.
        number: In the file, from 0.
        parts: Where the frame's elements stand: the most special first.
        position_mm: Centre of the first voxel, (x, y, z) of LPS in mm.
        axes: Directions in which columns and rows are counted, a row of (x, y, z) each.
        spacing_mm: Distance of rows, and of columns.
    """

    instance: Instance
    number: int
    parts: "tuple[Dataset, ...]"
    position_mm: Vector
    axes: Vector
    spacing_mm: Vector

    def of(self, keyword: str, default: Any = None) -> Any:
        """Give an element of the frame; the default also for an empty one."""
        return _element(self.parts, keyword, default)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.of("Rows", 0)), int(self.of("Columns", 0))

    @property
    def kind(self) -> tuple[str, ...]:
        """What the image is, such as ORIGINAL, PRIMARY, AXIAL."""
        value = self.of("FrameType", None) or self.of("ImageType", ())
        return (value,) if isinstance(value, str) else tuple(map(str, value))


def frames_of(instance: Instance) -> Iterator[Frame]:
    """Yield the frames of an image that have a place in space; nothing of what is no image."""
    if "Rows" not in instance.header or "Columns" not in instance.header:
        return
    for number, parts in enumerate(_parts_of_frames(instance)):
        position, axes, spacing = (
            _numbers(parts, keyword, count)
            for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
        )
        if position is not None and axes is not None and spacing is not None and (spacing > 0).all():
            yield Frame(instance, number, parts, position, axes.reshape(2, 3), spacing)


def _parts_of_frames(instance: Instance) -> "Iterator[tuple[Dataset, ...]]":
    per_frame = instance.of("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        yield from ((instance.header,) for _ in range(int(instance.of("NumberOfFrames", 1))))
        return
    shared = [part for group in instance.of("SharedFunctionalGroupsSequence", ()) for part in _opened(group)]
    for group in per_frame:
        yield (*_opened(group), *shared, instance.header)


def _element(parts: "Sequence[Dataset]", keyword: str, default: Any = None) -> Any:
    for part in parts:
        value = part.get(keyword)
        if value is not None and value != "":
            return value
    return default


def _numbers(parts: "Sequence[Dataset]", keyword: str, count: int) -> Vector | None:
    """Give an element of several numbers; None where it is missing or has not so many."""
    try:
        found = np.asarray([float(entry) for entry in _element(parts, keyword, ())])
    except (TypeError, ValueError):
        return None
    return found if found.size == count and np.isfinite(found).all() else None


def _opened(group: "Dataset") -> "Sequence[Dataset]":
    """Give what stands in the sequences of a functional group."""
    return [entry for element in group if element.VR == "SQ" for entry in element.value]
