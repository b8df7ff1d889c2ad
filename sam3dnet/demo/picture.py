"""A picture of truth beside prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

_COLOURS = ListedColormap(["#4c9f70", "#3d7dca", "#e4572e", "#f2c14e", "#9467bd", "#17becf"])


def save_truth_beside_prediction(
    cases: Sequence[tuple[Path, Path, Path]], path: Path, window_hu: tuple[float, float] = (-150.0, 250.0)
) -> None:
    """Save one row a case: the image, the truth, the prediction, on the slice with most of the rarest class.

    Args:
        cases: Files of image, true labels and predicted labels of each case.
        path: PNG file to write.
        window_hu: Grey values shown as black and white.
    """
    figure = Figure(figsize=(9, 3 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 3, squeeze=False)
    for row, files in zip(panels, cases, strict=True):
        image, truth, prediction = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files)
        z = _telling_slice(truth)
        for axes, title, labels in zip(row, ("image", "truth", "prediction"), (None, truth, prediction), strict=True):
            axes.imshow(image[z], cmap="gray", vmin=window_hu[0], vmax=window_hu[1])
            if labels is not None:
                shown = np.ma.masked_equal(labels[z], 0)
                axes.imshow(shown, cmap=_COLOURS, vmin=1, vmax=_COLOURS.N, alpha=0.5, interpolation="nearest")
            axes.set_title(f"{files[2].name.partition('.')[0]}: {title}", fontsize=9)
            axes.set_axis_off()
    figure.savefig(path, dpi=100)


def _telling_slice(labels_ZYX: npt.NDArray[np.integer]) -> int:
    classes, counts = np.unique(labels_ZYX[labels_ZYX > 0], return_counts=True)
    if not classes.size:
        return len(labels_ZYX) // 2
    return int((labels_ZYX == classes[counts.argmin()]).sum((1, 2)).argmax())
