"""Measure a trained model of any nnU-Net trainer with one and the same code; a stage of its own, which writes JSON.

Scores are those of the label maps that its own validation wrote. Seconds a case are those of nnU-Net's sliding window
(step 0.5, mirroring as in training) on the first cases of the validation set; reading and export are left out.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cores import cores_of_job
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.splits import FILE, read_splits
from sam3dnet.training.epoch_log import LOG_FILE, read_log

SHOWN_METRICS = ("dice", "nsd")


def validation_names(preprocessed: Path, fold: str) -> list[str]:
    """Name the validation cases of a fold, as nnU-Net split them."""
    return list(read_splits(preprocessed / FILE, DatasetError, "compare anew")[int(fold)].val)


def time_sliding_windows(model: Any, preprocessed: Path, cases: Sequence[str], device_name: str) -> list[float]:
    """Give the seconds of nnU-Net's sliding window for each case."""
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    device = torch.device(device_name)
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.manual_initialization(
        model.network,
        model.plans,
        model.configuration,
        None,
        model.dataset_json,
        "",  # the trainer's name, which nothing here reads
        model.mirror_axes or None,
    )
    folder = str(preprocessed / model.configuration.data_identifier)
    dataset = infer_dataset_class(folder)(folder, list(cases))
    seconds = []
    for case in cases:
        data, *_ = dataset.load_case(case)
        image = torch.from_numpy(np.array(data[:]))
        start = time.perf_counter()
        predictor.predict_sliding_window_return_logits(image).cpu()
        seconds.append(time.perf_counter() - start)
    return seconds


def score(predictions: Path, labels: Path, names: Sequence[str], num_processes: int) -> dict[str, Any]:
    """Score label maps: Dice and NSD of each class, averaged over the cases in which they are defined.

    Returns:
        {"cases", "nsd_tolerance_mm", "scores": {class: {"dice", "nsd"}}}
    """
    from sam3dnet.evaluation.folder import evaluate_folder
    from sam3dnet.settings.evaluation import ScoringSettings

    settings = ScoringSettings(missing_as_empty=True, num_processes=num_processes)
    evaluation = evaluate_folder(predictions, labels, settings, only=set(names), progress=False)
    estimates = evaluation.estimates()
    return {
        "cases": len(evaluation.cases),
        "nsd_tolerance_mm": evaluation.tolerance.mm,
        "scores": {
            name: {metric: estimates[name][metric].mean for metric in SHOWN_METRICS}
            for name in evaluation.scoring.classes
        },
    }


def scoring_processes() -> int:
    """Give one process a core for scoring; none beside this one on a single core."""
    return cores_of_job() if cores_of_job() > 1 else 0


def measure(
    model_folder: Path, preprocessed: Path, labels: Path, fold: str, device: str, timed_cases: int
) -> dict[str, Any]:
    """Give everything that this module measures, as plain values."""
    import torch

    from sam3dnet.inference.models import load_model

    torch.set_num_threads(cores_of_job())
    model = load_model(model_folder, [int(fold) if fold.isdigit() else fold], "checkpoint_final.pth", device)
    parameters = list(model.network.parameters())
    names = validation_names(preprocessed, fold)
    seconds = time_sliding_windows(model, preprocessed, names[:timed_cases], device)
    predictions = model_folder / f"fold_{fold}" / "validation"
    return score(predictions, labels, names, scoring_processes()) | {
        "parameters": sum(p.numel() for p in parameters),
        "tuned_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "patch_size": [int(n) for n in model.configuration.patch_size],
        "batch_size": int(model.configuration.batch_size),
        "mirroring_axes": list(model.mirror_axes),
        "seconds_per_case": sum(seconds) / len(seconds),
        "seconds_of_cases": [round(s, 3) for s in seconds],
        "iterations": count_iterations(model_folder / f"fold_{fold}"),
    }


def count_iterations(fold_folder: Path) -> int | None:
    """Give the training steps that the trainer wrote down, in clock.json (nnU-Net) or in a line an epoch (ours)."""
    clock = fold_folder / "clock.json"
    if clock.exists():
        return int(json.loads(clock.read_text())["iterations"])
    epochs = read_log(fold_folder / LOG_FILE)
    return epochs[-1].iterations if epochs else None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="sam3dnet.comparison.measure", description=__doc__)
    for name in ("model_folder", "preprocessed", "labels", "json"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--timed-cases", type=int, default=10)
    a = parser.parse_args(argv)
    write_json(a.json, measure(a.model_folder, a.preprocessed, a.labels, a.fold, a.device, a.timed_cases))
    return 0
