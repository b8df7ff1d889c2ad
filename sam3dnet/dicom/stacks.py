"""Slices of a series that make up a volume, and on which grid: right, or refused with the reason.

A series is no volume by itself: it may hold several orientations, times or echoes, a slice may be missing or there
twice, and slices of a tilted gantry lie askew. Positions are in LPS and mm, as DICOM's are.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sam3dnet.dicom.files import Instance
from sam3dnet.dicom.frames import TELL_APART, Frame, Vector, frames_of
from sam3dnet.errors import DatasetError

SAME_DIRECTION = 1e-3  # difference of direction cosines; those of a series are written with as few as four digits
SAME_LENGTH = 1e-3  # share by which the distances of voxels may differ
SAME_PLACE_MM = 1e-2
EVEN = 0.05  # share of the distance of slices by which one may lie off its place: positions are rounded
STRAIGHT = 0.1  # voxels by which slices may be shifted against each other
NO_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "PR", "SR")  # modalities; some have frames with places
NO_CHOICE = ("LOCALIZER", "SCOUT", "PROJECTION IMAGE", "MIP")


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        origin_mm: Centre of the first voxel, (x, y, z).
        axes: Rows: directions (x, y, z) in which columns, rows and slices are counted.
        spacing_mm: Distances along these.
        shape: Columns, rows, slices.
        tilt_voxels: Shift of each slice against the one before, (columns, rows): of a tilted gantry, else 0.
    """

    origin_mm: Vector
    axes: npt.NDArray[np.float64]
    spacing_mm: Vector
    shape: tuple[int, int, int]
    tilt_voxels: Vector = field(default_factory=lambda: np.zeros(2))

    @property
    def is_tilted(self) -> bool:
        """Whether slices are shifted against each other."""
        return bool(self.tilt_voxels.any())

    @property
    def shifts_voxels(self) -> npt.NDArray[np.float64]:
        """Shift of each slice against the first one, (columns, rows)."""
        return np.arange(self.shape[2])[:, None] * self.tilt_voxels

    @property
    def room_voxels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Columns and rows that an image with right angles has before those of the first slice, and after them."""
        shifts = self.shifts_voxels
        return np.ceil(-shifts.min(0)).astype(np.int64), np.ceil(shifts.max(0)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one series that belong together, sorted along their normal.

    Attributes:
        frames: At least one.
        fault: Why they are no volume; None where they are one.
        grid: Of the volume; None where they are none.
        units: That the values are wanted in, "SUV"; None for those that the files have.
    """

    frames: tuple[Frame, ...]
    fault: str | None
    grid: Grid | None
    units: str | None = None

    @property
    def instance(self) -> Instance:
        """The file of the first slice."""
        return self.frames[0].instance

    @property
    def series(self) -> str:
        """SeriesInstanceUID."""
        return str(self.instance.header.SeriesInstanceUID)

    @property
    def modality(self) -> str:
        """Such as CT, MR or PT."""
        return str(self.instance.of("Modality", ""))

    @property
    def description(self) -> str:
        """SeriesDescription."""
        return str(self.instance.of("SeriesDescription", ""))

    @property
    def frame_of_reference(self) -> str:
        """What the positions refer to; "" where nothing is said."""
        return str(self.instance.of("FrameOfReferenceUID", ""))

    @property
    def study(self) -> str:
        """StudyInstanceUID."""
        return str(self.instance.of("StudyInstanceUID", ""))

    @cached_property
    def files(self) -> "tuple[Instance, ...]":
        """Their files, in the order of the slices."""
        return tuple({id(frame.instance): frame.instance for frame in self.frames}.values())

    @property
    def is_no_choice(self) -> bool:
        """Whether it is a localizer or the like, which nobody wants segmented unless it is asked for."""
        return any(word in NO_CHOICE for word in self.frames[0].kind)

    def in_words(self) -> str:
        """Say what it is."""
        rows, columns = self.frames[0].shape
        size = f"{columns} x {rows} x {len(self.frames)}"
        return f"{self.modality or 'unknown modality'}, {size}, {self.description or 'no description'}, {self.series}"


def find_stacks(instances: Iterable[Instance]) -> list[Stack]:
    """Find the stacks of all images, those of the most slices first.

    What has no place in space, as photographs and reports, belongs to none.
    """
    by_series: dict[str, list[Frame]] = defaultdict(list)
    for instance in instances:
        if instance.of("Modality") not in NO_IMAGES:
            by_series[str(instance.header.SeriesInstanceUID)] += frames_of(instance)
    stacks = [
        stack
        for frames in by_series.values()
        for alike in _alike(frames)
        for volume in _volumes(alike)
        for stack in [_stack(volume)]
    ]
    return sorted(stacks, key=lambda stack: -len(stack.frames))


def _alike(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Part the frames of a series by size, orientation and distance of voxels."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _are_alike(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _are_alike(one: Frame, other: Frame) -> bool:
    return (
        one.shape == other.shape
        and np.allclose(one.axes, other.axes, rtol=0, atol=SAME_DIRECTION)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=SAME_LENGTH, atol=0)
        and one.of("SamplesPerPixel", 1) == other.of("SamplesPerPixel", 1)
    )


def _volumes(frames: list[Frame]) -> list[list[Frame]]:
    """Part slices of which several lie at the same place: by the first element that leaves one at each place."""
    if _most_at_a_place(frames) == 1:
        return [frames]
    for keyword in TELL_APART:
        parts: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            parts[str(frame.of(keyword, ""))].append(frame)
        if 1 < len(parts) < len(frames) and all(_most_at_a_place(part) == 1 for part in parts.values()):
            return list(parts.values())
    return [frames]


def _distances(frames: Sequence[Frame]) -> Vector:
    """Give the place of each frame along the normal, in mm."""
    normal = np.cross(*_axes(frames[0]))
    return np.asarray([frame.position_mm @ normal for frame in frames])


def _axes(frame: Frame) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(frame.axes, axis=1, keepdims=True)
    return np.asarray(frame.axes / np.where(lengths > 0, lengths, 1))


def _most_at_a_place(frames: Sequence[Frame]) -> int:
    places = np.sort(_distances(frames))
    runs = np.split(places, np.flatnonzero(np.diff(places) > SAME_PLACE_MM) + 1)
    return max(len(run) for run in runs)


def _stack(frames: list[Frame]) -> Stack:
    ordered = [frames[at] for at in np.argsort(_distances(frames), kind="stable")]
    try:
        return Stack(tuple(ordered), None, _grid(ordered))
    except DatasetError as problem:
        return Stack(tuple(ordered), str(problem), None)


def _grid(frames: Sequence[Frame]) -> Grid:
    """Find the grid of slices that are sorted along their normal.

    Raises:
        DatasetError: If they lie on none.
    """
    first = frames[0]
    axes, (row_mm, column_mm) = _axes(first), first.spacing_mm
    if abs(axes[0] @ axes[1]) > SAME_DIRECTION or not np.allclose(np.linalg.norm(axes, axis=1), 1):
        raise DatasetError("rows and columns are not at right angles")
    if (samples := int(first.of("SamplesPerPixel", 1))) != 1:
        raise DatasetError(f"a voxel has {samples} values, as colours have; expected one")
    step_mm, tilt_mm = _steps(frames, axes, column_mm, row_mm)
    rows, columns = first.shape
    return Grid(
        origin_mm=np.asarray(first.position_mm),
        axes=np.vstack((axes, np.cross(*axes))),
        spacing_mm=np.array([column_mm, row_mm, step_mm]),
        shape=(columns, rows, len(frames)),
        tilt_voxels=tilt_mm / (column_mm, row_mm),
    )


def _steps(
    frames: Sequence[Frame], axes: npt.NDArray[np.float64], column_mm: float, row_mm: float
) -> tuple[float, Vector]:
    """Measure the distance of slices along the normal, and their shift across it, from one to the next.

    Raises:
        DatasetError: If one is missing or there twice, or they are not evenly spaced or irregularly shifted.
    """
    if len(frames) == 1:
        return _thickness(frames[0]), np.zeros(2)
    places = _distances(frames)
    steps = np.diff(places)
    if (steps <= SAME_PLACE_MM).any():
        place = places[int(np.argmin(steps))]
        count = np.count_nonzero(steps <= SAME_PLACE_MM)
        raise DatasetError(
            f"{count} slices lie where another one lies, the first at {place:.2f} mm, and no element of their headers "
            "tells the volumes apart"
        )
    step = float(places[-1] - places[0]) / len(steps)
    usual = float(np.median(steps))
    if np.abs(places - places[0] - step * np.arange(len(places))).max() > EVEN * usual:
        raise DatasetError(_unevenly(places, steps, usual))
    origin = frames[0].position_mm
    across = np.asarray([(frame.position_mm - origin) @ axes.T for frame in frames])
    tilt = across[-1] / len(steps)
    limits = STRAIGHT * np.array([column_mm, row_mm])
    if (np.abs(across) <= limits).all():
        return step, np.zeros(2)
    if (np.abs(across - np.arange(len(frames))[:, None] * tilt) > limits).any():
        raise DatasetError("the slices are shifted irregularly against each other")
    return step, tilt


def _unevenly(places: Vector, steps: Vector, usual: float) -> str:
    at = int(np.argmax(np.abs(steps - usual)))
    where = f"between {places[at]:.2f} and {places[at + 1]:.2f} mm"
    missing = round(steps[at] / usual) - 1
    others = np.delete(steps, at)
    if missing > 0 and others.size and np.abs(others - usual).max() <= EVEN * usual:
        return (
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing {where}: the others are {usual:.2f} mm apart"
        )
    return f"slices are unevenly spaced: {usual:.2f} mm apart, but {steps[at]:.2f} mm {where}"


def _thickness(frame: Frame) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        try:
            thickness = float(frame.of(keyword, 0))
        except (TypeError, ValueError):
            continue
        if thickness > 0 and np.isfinite(thickness):
            return thickness
    raise DatasetError("it is a single slice whose header says no thickness")
