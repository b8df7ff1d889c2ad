"""Time training iterations of stock nnU-Net and of sam3dnet's default in turn, on the same crop and batch.

    python benchmarks/iterations.py -d 501 --raw FOLDER_WITH_DATASETS --work DIR --json OUT

Both trainers load and augment their own batches, in this process; losses, prompts, clipping and optimisers are those of
a real training, and the plans are made from the whole dataset. Every second batch of ours has prompts, so what is timed
is two iterations at a time. A third line is our network without prompts. Finished preparations are not repeated.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from against_nnunet import MODELS, Settings, environment, find_dataset, link_raw_dataset, prepare_nnunet_equal
from measuring import as_markdown, begin, finish, make_parser, shown_ratio, shown_seconds, spread, time_once

AT_A_TIME = 2
WARM_UP = 2  # rounds
STOCK, OURS, UNPROMPTED = "nnU-Net", "sam3dnet", "sam3dnet without prompts"


class Training:
    """A training that goes on by a few iterations at a time.

    Args:
        settings: Where the plans are.
        method: Name of the method.
        device: Where it trains.
    """

    def __init__(self, settings: Settings, method: str, device: torch.device):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from sam3dnet.training.trainer import nnUNetTrainerSAM3D

        make = nnUNetTrainer if method == STOCK else nnUNetTrainerSAM3D
        plans_name = MODELS["nnunet-equal" if method == STOCK else "sam3d"].plans
        plans = json.loads((settings.preprocessed / f"{plans_name}.json").read_text()) | {"continue_training": False}
        configuration = plans["configurations"]["3d_fullres"]
        if method == UNPROMPTED:
            configuration["architecture"]["arch_kwargs"]["prompts"] = False
        self.crop, self.batch = configuration["patch_size"], configuration["batch_size"]
        dataset_json = json.loads((settings.preprocessed / "dataset.json").read_text())
        self.trainer = make(plans, "3d_fullres", int(settings.fold), dataset_json, device)
        self.trainer.disable_checkpointing = True
        self.trainer.on_train_start()
        self.trainer.network.train()
        self.batches: list[dict] = []

    def load(self) -> None:
        """Load and augment the next batches."""
        self.batches = [next(self.trainer.dataloader_train) for _ in range(AT_A_TIME)]

    def step(self) -> None:
        """Take an optimiser step on each of them."""
        for batch in self.batches:
            self.trainer.train_step(batch)

    def parameters(self) -> int:
        """Count the parameters."""
        return sum(parameter.numel() for parameter in self.trainer.network.parameters())


def measure(settings: Settings, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Time all trainings in turn."""
    with contextlib.redirect_stdout(sys.stderr):
        trainings = {name: Training(settings, name, device) for name in (STOCK, OURS, UNPROMPTED)}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in trainings}
        for _ in range(WARM_UP + repetitions):
            for name, training in trainings.items():
                loading = time_once(training.load, device) / AT_A_TIME
                seconds[name].append((loading, time_once(training.step, device) / AT_A_TIME))
    rows = []
    for name, training in trainings.items():
        timed = seconds[name][WARM_UP:]
        rows.append(
            {
                "variant": name,
                "crop": list(training.crop),
                "batch": training.batch,
                "parameters": training.parameters(),
                **spread([sum(both) for both in timed]),
                "loading": spread([loading for loading, _ in timed]),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each training."""
    header = ["training iteration", "crop, batch", "parameters", "s", "of it loading", "iterations a second, ratio"]
    lines = [header]
    for row in rows:
        lines.append(
            [
                row["variant"],
                f"{'x'.join(map(str, row['crop']))}, {row['batch']}",
                f"{row['parameters']:,}",
                shown_seconds(row),
                shown_seconds(row["loading"]),
                shown_ratio(row["median_s"], rows[0]["median_s"]),
            ]
        )
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=20)
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 501")
    parser.add_argument("--raw", type=Path, required=True, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure, print the table, write JSON."""
    a = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = Settings(
        dataset=find_dataset(a.raw, a.dataset),
        raw=a.raw,
        work=a.work.resolve(),
        minutes=1,
        fold="0",
        device=a.device,
        timed_cases=0,
        plan_options="",
        train_options="",
    )
    link_raw_dataset(settings)
    prepare_nnunet_equal(settings)
    results = str(settings.work / "iterations")  # what has been trained there stays whole
    os.environ.update(environment(settings) | {"nnUNet_n_proc_DA": "0", "nnUNet_results": results})
    rows = measure(settings, begin(a), a.repetitions)
    finish(a, "iterations", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
