"""Time training iterations of stock nnU-Net and of sam3dnet's default in turn, on the same crop and batch.

    python benchmarks/iterations.py -d 501 502 --raw FOLDER_WITH_DATASETS --work DIR --json OUT
    python benchmarks/iterations.py -d 501 --raw FOLDER_WITH_DATASETS --work DIR --encoders small vit_b

All trainers load and augment their own batches, in this process; losses, prompts, clipping and optimisers are those of
a real training, and the plans are made from the whole dataset. Every second batch of ours has prompts, so what is timed
is two iterations at a time. A third line is our network without prompts. Finished preparations are not repeated.

With --encoders, ours alone is timed, with each of these encoders in the crop and batch planned for "small": those named
vit_ as they start from SAM's weights, here random values in the official format, the others from scratch. The
estimated seconds are those of a core that planning compares steps by. CPU seconds are those of this process without
loading: with --threads 1 they hardly depend on what else the machine does.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from against_nnunet import (
    MODELS,
    Settings,
    environment,
    find_dataset,
    link_raw_dataset,
    prepare_nnunet_equal,
    prepare_sam3d,
)
from measuring import as_markdown, begin, finish, make_parser, shown_ratio, shown_seconds
from random_weights import write_random_weights

from sam3dnet.check.measuring import spread, time_once
from sam3dnet.network.cost import training_seconds

AT_A_TIME = 2
WARM_UP = 2  # rounds
STOCK, OURS, UNPROMPTED = "nnU-Net", "sam3dnet", "sam3dnet without prompts"


class Training:
    """A training that goes on by a few iterations at a time.

    Args:
        settings: Where the plans are.
        method: Name of the method, or one of our encoders.
        device: Where it trains.
    """

    def __init__(self, settings: Settings, method: str, device: torch.device):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from sam3dnet.training.trainer import nnUNetTrainerSAM3D

        make = nnUNetTrainer if method == STOCK else nnUNetTrainerSAM3D
        plans_name = MODELS["nnunet-equal" if method == STOCK else "sam3d"].plans
        plans = json.loads((settings.preprocessed / f"{plans_name}.json").read_text()) | {"continue_training": False}
        configuration = plans["configurations"]["3d_fullres"]
        self.architecture = configuration["architecture"]["arch_kwargs"]
        change_architecture(self.architecture, method)
        self.crop, self.batch = configuration["patch_size"], configuration["batch_size"]
        dataset_json = json.loads((settings.preprocessed / "dataset.json").read_text())
        self.trainer = make(plans, "3d_fullres", int(settings.fold), dataset_json, device)
        if self.architecture.get("pretrained"):
            self.trainer.sam_checkpoint = random_weights(settings.work, method)
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

    def estimated_seconds(self) -> float | None:
        """Estimate the seconds of an iteration as planning does; None for nnU-Net's network."""
        if "token_stride" not in self.architecture:
            return None
        channels, outputs = self.trainer.num_input_channels, self.trainer.label_manager.num_segmentation_heads
        return training_seconds(self.architecture, channels, outputs, self.batch)


def change_architecture(arch_kwargs: dict[str, Any], method: str) -> None:
    """Turn the planned network into that of a method."""
    if method == UNPROMPTED:
        arch_kwargs["prompts"] = False
    if method not in (STOCK, OURS, UNPROMPTED):
        arch_kwargs |= {"encoder": method, "pretrained": method.startswith("vit_")}


def random_weights(folder: Path, encoder: str) -> Path:
    """Give a file of random weights in SAM's format, made where there is none."""
    path = folder / f"random_{encoder}.pth"
    if not path.exists():
        write_random_weights(path, encoder)
    return path


def measure(settings: Settings, device: torch.device, repetitions: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Time all trainings in turn."""
    with contextlib.redirect_stdout(sys.stderr):
        trainings = {name: Training(settings, name, device) for name in methods}
        seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in trainings}
        for _ in range(WARM_UP + repetitions):
            for name, training in trainings.items():
                loading = time_once(training.load, device) / AT_A_TIME
                cpu = time.process_time()
                step = time_once(training.step, device) / AT_A_TIME
                seconds[name].append((loading, step, (time.process_time() - cpu) / AT_A_TIME))
    rows = []
    for name, training in trainings.items():
        timed = seconds[name][WARM_UP:]
        rows.append(
            {
                "variant": name,
                "crop": list(training.crop),
                "batch": training.batch,
                "parameters": training.parameters(),
                "estimated_s": training.estimated_seconds(),
                **spread([loading + step for loading, step, _ in timed]),
                "loading": spread([loading for loading, _, _ in timed]),
                "cpu": spread([cpu for _, _, cpu in timed]),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each training, relative to the first one of its dataset."""
    header = ["training iteration", "crop, batch", "parameters", "estimated s", "s", "of it loading", "CPU s"]
    lines = [[*header, "iterations a second, ratio"]]
    first: dict[str | None, float] = {}
    for row in rows:
        reference = first.setdefault(row.get("dataset"), row["median_s"])
        lines.append(
            [
                f"{row['dataset']}: {row['variant']}" if "dataset" in row else row["variant"],
                f"{'x'.join(map(str, row['crop']))}, {row['batch']}",
                f"{row['parameters']:,}",
                f"{row['estimated_s']:.3g}" if row.get("estimated_s") else "-",
                shown_seconds(row),
                shown_seconds(row["loading"]),
                shown_seconds(row.get("cpu", {})),
                shown_ratio(row["median_s"], reference),
            ]
        )
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=20)
    parser.add_argument("-d", "--datasets", nargs="+", required=True, metavar="NAME", help="numbers or names")
    parser.add_argument("--raw", type=Path, required=True, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--encoders", nargs="+", metavar="NAME", help="encoders to compare, such as small vit_b")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure, print the table, write JSON."""
    a = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rows = []
    for name in a.datasets:
        of_dataset = measure_dataset(a, name)
        rows += of_dataset if len(a.datasets) == 1 else [{"dataset": name, **row} for row in of_dataset]
        print(table(of_dataset), file=sys.stderr)
    finish(a, "iterations", rows)
    print(table(rows))


def measure_dataset(a: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Prepare a dataset and measure its trainings."""
    settings = Settings(
        dataset=find_dataset(a.raw, name),
        raw=a.raw,
        work=a.work.resolve(),
        minutes=1,
        fold="0",
        device=a.device,
        timed_cases=0,
        plan_options=f"--encoder small --device {a.device}" if a.encoders else "",
        train_options="",
    )
    link_raw_dataset(settings)
    prepare = prepare_sam3d if a.encoders else prepare_nnunet_equal
    prepare(settings)
    results = str(settings.work / "iterations")  # what has been trained there stays whole
    with patch.dict(os.environ, environment(settings) | {"nnUNet_n_proc_DA": "0", "nnUNet_results": results}):
        return measure(settings, begin(a), a.repetitions, a.encoders or (STOCK, OURS, UNPROMPTED))


if __name__ == "__main__":
    main()
