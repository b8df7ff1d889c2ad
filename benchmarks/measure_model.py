"""Measure a trained model of any nnU-Net trainer with one and the same code: Dice, parameters, seconds a case.

Run as `python measure_model.py MODEL_FOLDER PREPROCESSED_FOLDER --fold 0 --device cpu --json OUT`. Dice is computed
from the label maps in fold_N/validation against gt_segmentations; the seconds are those of nnU-Net's own sliding window
(step 0.5, mirroring as at training) on the first cases of the validation set.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any


def load_network(model_folder: Path, fold: str) -> tuple[Any, dict, dict]:
    """Return a network with the weights of the fold, the checkpoint, and the objects that nnU-Net makes of the plan."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset_json = json.loads((model_folder / "dataset.json").read_text())
    plans = PlansManager(json.loads((model_folder / "plans.json").read_text()))
    checkpoint_file = model_folder / f"fold_{fold}" / "checkpoint_final.pth"
    # our own file of a minute ago: stock checkpoints hold numpy scalars, which weights_only refuses
    checkpoint = torch.load(checkpoint_file, map_location="cpu", weights_only=False)
    configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, configuration, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        deep_supervision=False,
    )
    network.load_state_dict(checkpoint["network_weights"])
    return network, checkpoint, {"plans": plans, "configuration": configuration, "dataset_json": dataset_json}


def validation_cases(preprocessed: Path, fold: str) -> list[str]:
    """Return the names of the fold's validation cases, as nnU-Net split them."""
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    return splits[int(fold)]["val"]


def time_sliding_windows(
    network: Any, checkpoint: dict, nnunet: dict, preprocessed: Path, cases: list[str], device_name: str
) -> list[float]:
    """Return the seconds of nnU-Net's sliding window for each case, resampling and export left out."""
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    device = torch.device(device_name)
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.manual_initialization(
        network.to(device).eval(),
        nnunet["plans"],
        nnunet["configuration"],
        None,
        nnunet["dataset_json"],
        checkpoint["trainer_name"],
        checkpoint["inference_allowed_mirroring_axes"],
    )
    folder = str(preprocessed / nnunet["configuration"].data_identifier)
    dataset = infer_dataset_class(folder)(folder, cases)
    seconds = []
    for case in cases:
        data, *_ = dataset.load_case(case)
        image = torch.from_numpy(np.array(data[:]))
        start = time.perf_counter()
        predictor.predict_sliding_window_return_logits(image).cpu()
        seconds.append(time.perf_counter() - start)
    return seconds


def evaluate(model_folder: Path, preprocessed: Path, fold: str, nnunet: dict, num_processes: int) -> dict:
    """Return nnU-Net's Dice per class of the label maps in the fold's validation folder, and their mean."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder

    plans, dataset_json = nnunet["plans"], nnunet["dataset_json"]
    labels = plans.get_label_manager(dataset_json)
    result = compute_metrics_on_folder(
        str(preprocessed / "gt_segmentations"),
        str(model_folder / f"fold_{fold}" / "validation"),
        None,
        plans.image_reader_writer_class(),
        dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=num_processes,
    )
    names = {str(value): name for name, value in dataset_json["labels"].items()}
    dice = {names.get(str(label), str(label)): float(mean["Dice"]) for label, mean in result["mean"].items()}
    return {
        "dice": dice,
        "mean_dice": sum(dice.values()) / len(dice),
        "validation_cases": len(result["metric_per_case"]),
    }


def measure(model_folder: Path, preprocessed: Path, fold: str, device: str, timed_cases: int, threads: int) -> dict:
    """Return everything that this file measures, as plain values."""
    import torch

    torch.set_num_threads(threads)
    network, checkpoint, nnunet = load_network(model_folder, fold)
    parameters = list(network.parameters())
    cases = validation_cases(preprocessed, fold)
    configuration = nnunet["configuration"]
    seconds = time_sliding_windows(network, checkpoint, nnunet, preprocessed, cases[:timed_cases], device)
    peak_inference_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return evaluate(model_folder, preprocessed, fold, nnunet, threads) | {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "patch_size": [int(n) for n in configuration.patch_size],
        "batch_size": int(configuration.batch_size),
        "mirroring_axes": [int(axis) for axis in checkpoint["inference_allowed_mirroring_axes"] or ()],
        "seconds_per_case": sum(seconds) / len(seconds),
        "seconds_of_cases": [round(s, 3) for s in seconds],
        "peak_inference_mib": peak_inference_mib,
    }


def main() -> None:
    """Parse, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("preprocessed_folder", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--timed-cases", type=int, default=10, help="how many validation cases are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    a = parser.parse_args()
    result = measure(a.model_folder, a.preprocessed_folder, a.fold, a.device, a.timed_cases, a.threads)
    a.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
