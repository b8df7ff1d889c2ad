"""Dice of predicted label maps against the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO


def dice_per_class(pairs: Sequence[tuple[Path, Path]], labels: Mapping[str, int]) -> dict[str, float]:
    """Mean Dice over cases of each class but the background; a class in neither file of a case is left out there.

    Args:
        pairs: Files of true and of predicted labels.
        labels: Class names and their values.
    """
    reader, values = SimpleITKIO(), [value for value in labels.values() if value]
    metrics = [compute_metrics(str(truth), str(prediction), reader, values)["metrics"] for truth, prediction in pairs]
    return {
        name: float(np.nanmean([case[value]["Dice"] for case in metrics])) for name, value in labels.items() if value
    }
