"""The pictures of a report, each as the bytes of a PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sam3dnet.planning.objects import bounding_box
from sam3dnet.prompts.sampling import innermost_voxel
from sam3dnet.training.epoch_log import Epoch

TRUTH_COLOUR, PREDICTION_COLOUR = "#2fd45a", "#ff4d3d"
MARGIN_MM = 20.0
GREY_PERCENTILES = (0.5, 99.5)
_DPI = 100
_AXES = "zyx"


def training_curves(log: Sequence[Epoch], classes: Sequence[str]) -> bytes:
    """Draw losses and the running Dice of validation against the epoch.

    Args:
        log: An entry an epoch, from training_log.jsonl.
        classes: Names for the entries of `pseudo_dice`.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    losses, dice = figure.subplots(1, 2)
    epochs = [entry.epoch for entry in log]
    for key, title in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [getattr(entry, key) for entry in log], label=title)
    losses.set_ylabel("loss")
    for index, name in enumerate(classes):
        dice.plot(epochs, [_entry(entry.pseudo_dice, index) for entry in log], label=name)
    dice.set_ylabel("Dice of validation crops")
    dice.set_ylim(0, 1)
    for axes in (losses, dice):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def box_plots(values: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Draw one panel a metric with a box and the single cases for every class.

    Args:
        values: By the metric's title, then by class, one value a case; NaN is left out.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    rng = np.random.default_rng(0)
    for axes, (title, by_class) in zip(panels, values.items(), strict=True):
        columns = [np.asarray(column)[~np.isnan(column)] for column in by_class.values()]
        axes.boxplot(columns, showfliers=False, widths=0.5)
        axes.set_xticks(range(1, len(columns) + 1), list(by_class))
        for position, column in enumerate(columns, start=1):
            axes.plot(position + rng.uniform(-0.15, 0.15, len(column)), column, "o", markersize=3, alpha=0.5)
        axes.set_title(title)
        axes.grid(axis="y", alpha=0.3)
    return _png(figure)


def three_planes(
    image_ZYX: npt.NDArray[Any],
    truth_ZYX: npt.NDArray[np.bool_],
    prediction_ZYX: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
) -> bytes:
    """Draw the three planes through the innermost voxel of the truth (of the prediction where there is no truth).

    The planes show the object and 20 mm around it; the truth is outlined in green, the prediction in red.

    Args:
        image_ZYX: One channel.
        truth_ZYX: Of one class.
        prediction_ZYX: Of the same class.
        spacing_mm: (Z, Y, X).
    """
    box = _surroundings(truth_ZYX | prediction_ZYX, spacing_mm)
    image, truth, prediction = image_ZYX[box], truth_ZYX[box], prediction_ZYX[box]
    centre = _centre(truth, prediction, spacing_mm)
    low, high = np.percentile(image, GREY_PERCENTILES)
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, axes in enumerate(figure.subplots(1, 3)):
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
        _outline(axes, np.take(truth, centre[axis], axis), TRUTH_COLOUR)
        _outline(axes, np.take(prediction, centre[axis], axis), PREDICTION_COLOUR)
        axes.set_title(f"{_AXES[axis]} = {centre[axis] + box[axis].start}", fontsize=9)
        axes.set_axis_off()
    return _png(figure)


def _outline(axes: Axes, mask_YX: npt.NDArray[np.bool_], colour: str) -> None:
    """Draw the outline of a mask, also where it touches the border of the picture."""
    if mask_YX.any():
        height, width = mask_YX.shape
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        axes.contour(*grid, np.pad(mask_YX, 1).astype(float), levels=[0.5], colors=[colour], linewidths=1.3)


def _surroundings(mask_ZYX: npt.NDArray[np.bool_], spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    found = bounding_box(mask_ZYX)
    if found is None:
        return tuple(slice(0, length) for length in mask_ZYX.shape)
    margins = [int(np.ceil(MARGIN_MM / mm)) for mm in spacing_mm]
    return tuple(slice(max(0, part.start - m), part.stop + m) for part, m in zip(found, margins, strict=True))


def _centre(
    truth_ZYX: npt.NDArray[np.bool_], prediction_ZYX: npt.NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    for mask in (truth_ZYX, prediction_ZYX):
        if mask.any():
            return innermost_voxel(mask, spacing_mm)
    z, y, x = (length // 2 for length in truth_ZYX.shape)
    return z, y, x


def _entry(values: Sequence[float | None], index: int) -> float:
    value = values[index] if index < len(values) else None
    return np.nan if value is None else float(value)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()
