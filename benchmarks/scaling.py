"""Measure how time and memory grow with voxels, classes, cases and processes.

    python benchmarks/scaling.py --what voxels classes cases processes --json OUT

Voxels and classes: a training step and a forward pass of our network from scratch ("small", tokens of 8).
Cases: planning and preprocessing of small made-up volumes. Processes: the same preprocessing with more of them. Growth
is the slope of the logarithm of seconds, or of bytes, against that of what grows: 1 is linear, constant costs lower it.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import as_markdown, begin, compare, finish, make_parser, shown_mib, shown_seconds
from networks import MODES, make_sam3d, make_variant

STRIDE = 8
FIRST_NUMBER = 900  # of the data sets that are made


def measure_network(side: int, classes: int, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Measure a forward pass and a step on a cubic crop."""
    torch.manual_seed(0)
    crop = (side, side, side)
    network = make_sam3d(classes, crop, stride=STRIDE, encoder="small", pretrained=False).to(device)
    image_BCzyx = torch.randn(1, 1, *crop, device=device)
    variants = {mode: make_variant(network, image_BCzyx, mode) for mode in MODES}
    return compare(variants, device, repetitions)


def measure_voxels(a: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Let the crop grow."""
    for side in a.sides:
        for row in measure_network(side, 3, device, a.repetitions):
            yield {"what": "voxels", "number": side**3, **row}


def measure_classes(a: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Let the number of classes grow."""
    for classes in a.classes:
        for row in measure_network(a.sides[0], classes, device, a.repetitions):
            yield {"what": "classes", "number": classes, **row}


def measure_preprocessing(a: argparse.Namespace, cases: int, processes: int) -> dict[str, float]:
    """Plan and preprocess so many small cases as a new data set; give the seconds of both."""
    from sam3dnet.demo.phantom import write_phantom_dataset
    from sam3dnet.network.cost import training_cost, training_seconds
    from sam3dnet.planning.planner import plan_dataset
    from sam3dnet.preprocessing.folders import activate_folders
    from sam3dnet.preprocessing.pipeline import preprocess_dataset

    raw = a.root / "nnUNet_raw"
    raw.mkdir(exist_ok=True)
    dataset = f"Dataset{FIRST_NUMBER + len(list(raw.iterdir()))}_Scaling"
    write_phantom_dataset(raw / dataset, cases, 0)
    folders = activate_folders(a.root)
    start = time.perf_counter()
    plan_dataset(
        dataset,
        folders,
        cost=training_cost,
        seconds=training_seconds,
        encoder="tiny",
        num_processes=max(1, processes),
        progress=False,
    )
    planned = time.perf_counter()
    preprocess_dataset(dataset, folders, num_processes=processes, progress=False)
    return {"preprocessing": time.perf_counter() - planned, "fingerprint and plan": planned - start}


def measure_cases(a: argparse.Namespace, _device: torch.device) -> Iterator[dict[str, Any]]:
    """Let the number of cases grow."""
    for cases in a.cases:
        for variant, seconds in measure_preprocessing(a, cases, 0).items():
            yield {"what": "cases", "number": cases, "variant": variant, "median_s": seconds}


def measure_processes(a: argparse.Namespace, _device: torch.device) -> Iterator[dict[str, Any]]:
    """Let the number of processes grow, with the largest number of cases."""
    for processes in a.processes:
        seconds = measure_preprocessing(a, max(a.cases), processes)["preprocessing"]
        yield {"what": "processes", "number": processes, "variant": "preprocessing", "median_s": seconds}


MEASURES = {
    "voxels": measure_voxels,
    "classes": measure_classes,
    "cases": measure_cases,
    "processes": measure_processes,
}


def growth(numbers: Sequence[float], values: Sequence[float]) -> float | None:
    """Fit the slope of log(value) against log(number); None for fewer than two numbers."""
    if len(set(numbers)) < 2:
        return None
    return float(np.polyfit(np.log(numbers), np.log(values), 1)[0])


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each number, and the growth behind the last of each kind."""
    lines = [["", "number", "", "s", "us a unit", "peak MiB", "growth of time", "growth of memory"]]
    for what, variant in dict.fromkeys((row["what"], row["variant"]) for row in rows):
        chosen = [row for row in rows if (row["what"], row["variant"]) == (what, variant)]
        numbers = [row["number"] for row in chosen]
        for row in chosen:
            last = row is chosen[-1]
            slopes = ["", ""]
            if last:
                times = growth(numbers, [r["median_s"] for r in chosen])
                bytes_ = growth(numbers, [r["peak_bytes"] for r in chosen]) if "peak_bytes" in row else None
                slopes = ["" if slope is None else f"{slope:.2f}" for slope in (times, bytes_)]
            seconds = shown_seconds(row) if "quartiles_s" in row else f"{row['median_s']:.3g}"
            unit = f"{1e6 * row['median_s'] / row['number']:.3g}"
            memory = shown_mib(row.get("peak_bytes"))
            lines.append([what, f"{row['number']:,}", variant, seconds, unit, memory, *slopes])
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=3)
    numbers = partial(parser.add_argument, type=int, nargs="+")
    parser.add_argument("--what", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    numbers("--sides", default=[32, 48, 64], help="voxels a side (default %(default)s)")
    numbers("--classes", default=[2, 10, 50], help="background among them (default %(default)s)")
    numbers("--cases", default=[1, 4, 16], help="small volumes (default %(default)s)")
    numbers("--processes", default=[1, 2], help="for preprocessing (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write JSON."""
    a = parse()
    device = begin(a)
    with tempfile.TemporaryDirectory() as root:
        a.root = Path(root)
        rows = [row for what in a.what for row in MEASURES[what](a, device)]
    finish(a, "scaling", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
