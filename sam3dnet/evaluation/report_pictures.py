"""The curves and boxes of a report, each as the bytes of a PNG."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sam3dnet.interactive.planes import as_png
from sam3dnet.training.epoch_log import Epoch


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
    return as_png(figure)


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
    return as_png(figure)


def _entry(values: Sequence[float | None], index: int) -> float:
    value = values[index] if index < len(values) else None
    return np.nan if value is None else float(value)
