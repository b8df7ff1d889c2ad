"""A picture of the three planes through an object."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sam3dnet.planning.objects import bounding_box
from sam3dnet.prompts.sampling import innermost_voxel

TRUTH_COLOUR, PREDICTION_COLOUR = "#2fd45a", "#ff4d3d"
MARGIN_MM = 20.0
GREY_PERCENTILES = (0.5, 99.5)
_DPI = 100
_AXES = "zyx"


@dataclass(frozen=True)
class Picture:
    """A picture that notebooks show.

    Attributes:
        png: Its bytes.
    """

    png: bytes

    def save(self, file: Path | str) -> None:
        """Write it as a PNG file."""
        Path(file).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


def three_planes(
    image_ZYX: npt.NDArray[Any],
    truth_ZYX: npt.NDArray[np.bool_],
    prediction_ZYX: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
    at: Sequence[int] | None = None,
) -> bytes:
    """Draw the three planes through a voxel, or the innermost one of the truth (of the prediction where there is none).

    The planes show the object and 20 mm around it; the truth is outlined in green, the prediction in red.

    Args:
        image_ZYX: One channel.
        truth_ZYX: Of one class.
        prediction_ZYX: Of the same class.
        spacing_mm: (Z, Y, X).
        at: The voxel (z, y, x).
    """
    shown = truth_ZYX | prediction_ZYX
    if at is not None:
        shown[tuple(at)] = True
    box = surroundings(bounding_box(shown), image_ZYX.shape, spacing_mm)
    if at is None:
        within = _centre(truth_ZYX[box], prediction_ZYX[box], spacing_mm)
        at = [voxel + part.start for voxel, part in zip(within, box, strict=True)]
    figure = Figure(figsize=(11, 4), layout="constrained")
    outlines = [(truth_ZYX, TRUTH_COLOUR), (prediction_ZYX, PREDICTION_COLOUR)]
    draw_planes(figure.subplots(1, 3), image_ZYX, outlines, spacing_mm, box, at)
    return as_png(figure)


def draw_planes(
    panels: Iterable[Axes],
    image_ZYX: npt.NDArray[Any],
    outlines: Sequence[tuple[npt.NDArray[np.bool_], Any]],
    spacing_mm: Sequence[float],
    box: tuple[slice, ...],
    at: Sequence[int],
) -> None:
    """Draw the three planes through a voxel into three panels.

    Args:
        panels: Three.
        image_ZYX: One channel.
        outlines: Masks, and the colour of each one's outline.
        spacing_mm: (Z, Y, X).
        box: What is shown.
        at: The voxel (z, y, x).
    """
    image = image_ZYX[box]
    centre = [voxel - part.start for voxel, part in zip(at, box, strict=True)]
    low, high = np.percentile(image, GREY_PERCENTILES)
    for axis, axes in enumerate(panels):
        rows, columns = (other for other in range(3) if other != axis)
        # The first axis of a coronal or sagittal plane runs upwards.
        axes.imshow(
            np.take(image, centre[axis], axis),
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            aspect=spacing_mm[rows] / spacing_mm[columns],
            origin="upper" if axis == 0 else "lower",
        )
        for mask, colour in outlines:
            _outline(axes, np.take(mask[box], centre[axis], axis), colour)
        axes.set_title(f"{_AXES[axis]} = {at[axis]}", fontsize=9)
        axes.set_axis_off()


def _outline(axes: Axes, mask_YX: npt.NDArray[np.bool_], colour: Any) -> None:
    """Draw the outline of a mask, also where it touches the border of the picture."""
    if mask_YX.any():
        height, width = mask_YX.shape
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        axes.contour(*grid, np.pad(mask_YX, 1).astype(float), levels=[0.5], colors=[colour], linewidths=1.3)


def surroundings(
    found: tuple[slice, ...] | None, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[slice, ...]:
    """Give a box and 20 mm around it, as far as the image goes; the whole image for no box."""
    if found is None:
        return tuple(slice(0, length) for length in shape)
    margins = [int(np.ceil(MARGIN_MM / mm)) for mm in spacing_mm]
    return tuple(slice(max(0, part.start - m), part.stop + m) for part, m in zip(found, margins, strict=True))


def _centre(
    truth_ZYX: npt.NDArray[np.bool_], prediction_ZYX: npt.NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    for mask in (truth_ZYX, prediction_ZYX):
        if mask.any():
            return innermost_voxel(mask, spacing_mm)
    z, y, x = (length // 2 for length in truth_ZYX.shape)
    return z, y, x


def as_png(figure: Figure) -> bytes:
    """Draw a figure as the bytes of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()
