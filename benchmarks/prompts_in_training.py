"""What prompts in training cost the automatic segmentation: with and without them, same time, same seed, side by side.

    python benchmarks/prompts_in_training.py -d 501 --raw FOLDER_WITH_DATASETS --work DIR --minutes 20

Both trainings run at the same time, each on half of the cores, so that whatever else the machine does disturbs both
alike. Finished steps are not repeated.
"""

import argparse
import json
import logging
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sam3dnet.comparison.measure import count_iterations
from sam3dnet.comparison.stages import Stages, call, machine
from sam3dnet.preprocessing.cores import cores_of_job
from sam3dnet.preprocessing.folders import Folders, activate_folders, find_dataset_name, write_json

VARIANTS = {"with prompts": [], "without prompts": ["--no-prompts"]}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 501")
    parser.add_argument("--raw", type=Path, required=True, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time (default %(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=501, help="of weights and patches (default %(default)s)")
    parser.add_argument("--json", type=Path, help="where the results go (default DIR/results.json)")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # one training, in the process of a stage
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    """Run one seeded training with its validation."""
    import numpy as np
    import torch

    folders = activate_folders(arguments.train)
    random.seed(arguments.seed)
    np.random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)

    from sam3dnet.settings.training import TrainingSettings
    from sam3dnet.training.run import train_fold

    name = find_dataset_name(arguments.dataset, folders)
    train_fold(TrainingSettings(name, arguments.fold, minutes=arguments.minutes, device="cpu"), folders)


def run_variant(arguments: argparse.Namespace, variant: str) -> dict:
    """Plan, preprocess, train and validate one variant."""
    root = arguments.work.resolve() / variant.replace(" ", "_")
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    source = Path(find_dataset_name(arguments.dataset, Folders(arguments.raw, arguments.raw, arguments.raw)))
    link = root / "nnUNet_raw" / source.name
    if not link.exists():
        link.symlink_to((arguments.raw / source.name).resolve(), target_is_directory=True)
    threads = {"OMP_NUM_THREADS": str(max(1, cores_of_job() // len(VARIANTS))), "nnUNet_n_proc_DA": "0"}
    stages = Stages(root / "stages")
    keys = {"minutes": arguments.minutes, "fold": arguments.fold, "seed": arguments.seed, "dataset": source.name}
    plan = call("sam3dnet.cli.plan_and_preprocess:main", "-d", source.name, "--root", str(root), *VARIANTS[variant])
    stages.run("prepare", {"dataset": source.name}, plan)
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--train", str(root)]
    load = stages.run("train", keys, command, variables=threads)["load"]
    (fold,) = (root / "nnUNet_results" / source.name).glob(f"*/fold_{arguments.fold}")
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    return {
        "variant": variant,
        "mean_dice": summary["foreground_mean"]["Dice"],
        "dice": {label: values["Dice"] for label, values in summary["mean"].items()},
        "iterations": count_iterations(fold),
        "cpu_seconds": load["cpu_seconds"],
    }


def main() -> None:
    """Run both variants and print the table."""
    arguments = parse()
    if arguments.train is not None:
        train(arguments)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        rows = list(pool.map(lambda variant: run_variant(arguments, variant), VARIANTS))
    difference = rows[0]["mean_dice"] - rows[1]["mean_dice"]
    result = {"machine": machine(), "minutes": arguments.minutes, "seed": arguments.seed, "variants": rows}
    write_json(arguments.json or arguments.work / "results.json", {**result, "difference": difference})
    print("| | mean Dice | per class | iterations | CPU s |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        classes = ", ".join(f"{value:.4f}" for value in row["dice"].values())
        cells = (row["variant"], f"{row['mean_dice']:.4f}", classes, row["iterations"], f"{row['cpu_seconds']:.0f}")
        print(f"| {' | '.join(map(str, cells))} |")
    print(f"\nwith minus without: {difference:+.4f}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
