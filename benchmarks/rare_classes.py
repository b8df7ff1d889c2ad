"""How soon short trainings find small classes: weights of rare classes in the cross entropy against equal weights.

    sam3d_plan_and_preprocess -d 900 --encoder tiny --root ROOT     # the phantom of sam3d_demo
    python benchmarks/rare_classes.py -d 900 --root ROOT --work DIR --steps 320 --seeds 1 2 3 --json OUT

Both are trained at the same time with the same seed, each on one thread. After every 20 steps the Dice of eight batches
of validation patches is noted, that of the automatic segmentation.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import as_markdown, finish

from sam3dnet.preprocessing.cases import foreground_classes, read_dataset_json
from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name
from sam3dnet.training import rare_classes
from sam3dnet.training.epoch_log import LOG_FILE, Epoch, read_log

VARIANTS = ("equal", "rare classes first")
STEPS_AN_EPOCH, PATCHES = 20, 8
FOUND = 0.3  # Dice from which on a class counts as found


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True, help="number or name, planned and preprocessed")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds nnUNet_raw and nnUNet_preprocessed")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--steps", type=int, default=320, help="of a training (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default %(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # variant and seed, in a process of their own
    return parser.parse_args()


def folder_of(arguments: argparse.Namespace, variant: str, seed: int) -> Path:
    """Name the root folder of a training."""
    return Path(arguments.work).resolve() / f"{variant.replace(' ', '_')}_{seed}"


def train(arguments: argparse.Namespace) -> None:
    """Run one seeded training."""
    from sam3dnet.settings.training import TrainingSettings
    from sam3dnet.training.run import train_fold
    from sam3dnet.training.trainer import nnUNetTrainerSAM3D

    variant, seed = arguments.train[0], int(arguments.train[1])
    if variant == VARIANTS[0]:
        rare_classes.EXPONENT = 0.0
    validate_epoch = nnUNetTrainerSAM3D._validate_epoch

    def validate_on_few(trainer: nnUNetTrainerSAM3D) -> None:
        trainer.num_val_iterations_per_epoch = PATCHES
        validate_epoch(trainer)

    nnUNetTrainerSAM3D._validate_epoch = validate_on_few  # type: ignore[method-assign]
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    folders = activate_folders(folder_of(arguments, variant, seed))
    settings = TrainingSettings(
        find_dataset_name(arguments.dataset, folders),
        arguments.fold,
        epochs=arguments.steps // STEPS_AN_EPOCH,
        iterations_per_epoch=STEPS_AN_EPOCH,
        num_processes=0,
        device="cpu",
    )
    train_fold(settings, folders, validate=False)


def run(arguments: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Train in a process of its own, and read its log."""
    root = folder_of(arguments, variant, seed)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (root / name).symlink_to(arguments.root.resolve() / name)
    line = [sys.executable, *sys.argv, "--train", variant, str(seed)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (log,) = (root / "nnUNet_results").rglob(LOG_FILE)
    return summarise(read_log(log), variant, seed)


def summarise(epochs: list[Epoch], variant: str, seed: int) -> dict[str, Any]:
    """Say when each class was found for good, and its Dice at the end."""
    dice = np.array([[value or 0.0 for value in epoch.pseudo_dice] for epoch in epochs])
    lost = [np.flatnonzero(of_class < FOUND) for of_class in dice.T]
    first = [int(late[-1]) + 1 if len(late) else 0 for late in lost]  # the epoch from which on it stays found
    return {
        "variant": variant,
        "seed": seed,
        "found_after_steps": [None if epoch == len(dice) else (epoch + 1) * STEPS_AN_EPOCH for epoch in first],
        "last_dice": dice[-1].round(3).tolist(),
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Say of each class when it was found and how well it is segmented at the end."""
    both = zip(row["found_after_steps"], row["last_dice"], strict=True)
    return [f"{'not' if steps is None else steps}, {dice:.3f}" for steps, dice in both]


def main() -> None:
    """Train both variants with every seed."""
    arguments = parse()
    if arguments.train:
        train(arguments)
        return
    folders = activate_folders(arguments.root)
    dataset = folders.raw / find_dataset_name(arguments.dataset, folders)
    names = list(foreground_classes(read_dataset_json(dataset)))
    rows = []
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        for seed in arguments.seeds:
            rows += list(pool.map(lambda variant, seed=seed: run(arguments, variant, seed), VARIANTS))
    header = ["cross entropy", "seed", *(f"{name}: found after, Dice" for name in names)]
    lines = [[row["variant"], str(row["seed"]), *cells(row)] for row in rows]
    print(as_markdown([header, *lines]))
    arguments.device = "cpu"
    finish(arguments, "rare_classes", rows)


if __name__ == "__main__":
    main()
