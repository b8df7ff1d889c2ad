"""Time preprocessing and export of a large CT, and watch their memory: ours beside stock nnU-Net with its default plan.

    python benchmarks/large_ct.py --shape 300 512 512 --json OUT

The CT is made up: a noisy body in air with ellipsoids as organs, slices of 1 mm with voxels of 0.8 mm. Both plans have
voxels 1.25 times as long and differ in what each planner says about resampling. Preprocessing goes from the files of
image and labels to nnU-Net's preprocessed case; export from logits at the plan's spacing, which lie on disk, to a label
map on the image's grid. Each run is a process of its own, watched with its children; its seconds are those of the work,
its memory that of the whole process, torch and nnU-Net among it. All methods run in turn, after a round that does not
count. "Equal" is the share of voxels whose labels are those of stock nnU-Net.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from large_ct_steps import (
    CONFIGURATION,
    DATASET,
    ENDING,
    EXPORT,
    OURS,
    PLANS,
    PREPROCESSING,
    SECONDS_FILE,
    STOCK,
    Places,
    preprocessed_case,
)
from measuring import as_markdown, begin, finish, make_parser, shown_mib, shown_ratio, shown_seconds
from prediction_memory import SPACING_MM
from prediction_memory import make_plans as make_any_plans

from sam3dnet.check.measuring import MIB, spread
from sam3dnet.comparison.process_load import run_measured
from sam3dnet.preprocessing.folders import activate_folders, write_json

STEPS = Path(__file__).resolve().with_name("large_ct_steps.py")
AIR_HU, TISSUE_HU, ORGAN_STEP_HU, NOISE_HU = -1000.0, 40.0, 20.0, 15.0
BODY_RADII = (0.7, 0.9)  # of half the image, along y and x
SURE_LOGIT = 6.0
WATCH_SECONDS = 0.1


def make_phantom(shape: Sequence[int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Make an image in Hounsfield units, int16, and its labels, uint8, both (Z, Y, X), a plane at a time."""
    rng = np.random.default_rng(0)
    heights, y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    rows, columns = y[:, None], x[None]
    organs = list(
        zip(rng.uniform(-0.45, 0.45, (classes - 1, 3)), rng.uniform(0.15, 0.35, (classes - 1, 3)), strict=True)
    )
    body = (rows / BODY_RADII[0]) ** 2 + (columns / BODY_RADII[1]) ** 2 < 1
    image, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    for index, height in enumerate(heights):
        plane = np.where(body, TISSUE_HU, AIR_HU)
        for label, (centre, radii) in enumerate(organs, start=1):
            z, y, x = ((at - c) / r for at, c, r in zip((height, rows, columns), centre, radii, strict=True))
            organ = z**2 + y**2 + x**2 < 1
            plane[organ] = TISSUE_HU + label * ORGAN_STEP_HU
            labels[index][organ] = label
        image[index] = plane + rng.normal(0, NOISE_HU, plane.shape)
    return image, labels


def write_dataset(places: Places, shape: Sequence[int], classes: int) -> np.ndarray:
    """Write a raw dataset of one case; give its labels."""
    image, labels = make_phantom(shape, classes)
    for array, path in ((image, places.image), (labels, places.label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = sitk.GetImageFromArray(array)
        written.SetSpacing(SPACING_MM[::-1])
        sitk.WriteImage(written, str(path), useCompression=True)
    names = {"background": 0, **{f"organ_{label}": label for label in range(1, classes)}}
    description = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 1, "file_ending": ENDING}
    write_json(places.raw / "dataset.json", description)
    return labels


def write_plans(places: Places, patch_size: Sequence[int]) -> None:
    """Write a plan for each method, with the resampling that its planner chooses for this dataset."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    from sam3dnet.planning.planner import SAM3DPlanner

    dataset_json = json.loads((places.raw / "dataset.json").read_text())
    for method, kind in ((STOCK, ExperimentPlanner), (OURS, SAM3DPlanner)):
        planner = kind.__new__(kind)  # there is no fingerprint to plan the rest from
        planner.dataset_json = dataset_json
        data, data_options, labels, labels_options = planner.determine_resampling()
        probabilities, probabilities_options = planner.determine_segmentation_softmax_export_fn()
        plans = make_any_plans(patch_size) | {"dataset_name": DATASET, "plans_name": PLANS[method]}
        plans["configurations"][CONFIGURATION] |= {
            "data_identifier": places.preprocessed(method).name,
            "resampling_fn_data": data.__name__,
            "resampling_fn_data_kwargs": data_options,
            "resampling_fn_seg": labels.__name__,
            "resampling_fn_seg_kwargs": labels_options,
            "resampling_fn_probabilities": probabilities.__name__,
            "resampling_fn_probabilities_kwargs": probabilities_options,
        }
        write_json(places.plans(method), plans)


def write_logits(places: Places, labels_ZYX: np.ndarray, classes: int) -> None:
    """Write what a good network might give: sure within organs, less so at their surfaces."""
    shape = preprocessed_case(places, OURS)[0].shape[1:]
    logits = np.lib.format.open_memmap(places.logits, "w+", np.float16, (classes, *shape))
    for label in range(classes):
        mask = torch.from_numpy((labels_ZYX == label).astype(np.float32))[None, None]
        share = torch.nn.functional.interpolate(mask, tuple(shape), mode="trilinear", align_corners=False)
        smooth = torch.nn.functional.avg_pool3d(share, 3, stride=1, padding=1, count_include_pad=False)
        logits[label] = (SURE_LOGIT * (2 * smooth[0, 0] - 1)).numpy()
    logits.flush()


def run_once(part: str, method: str, places: Places, threads: int | None) -> tuple[float, float]:
    """Do one piece of work in a process of its own; give its seconds and its peak memory in bytes."""
    shutil.rmtree(places.preprocessed(method) if part == PREPROCESSING else places.exported(method).parent, True)
    limit = {"OMP_THREAD_LIMIT": str(threads or os.cpu_count() or 1)}  # nnU-Net asks for 4 or 8, whatever there is
    if threads:
        limit |= {"OMP_NUM_THREADS": str(threads)}
    log = places.root / "log.txt"
    command = [sys.executable, str(STEPS), part, method, str(places.root)]
    load = run_measured(command, log, {**os.environ, **limit}, interval_seconds=WATCH_SECONDS)
    if load.returncode:
        raise SystemExit(f"{part} with {method} ended with status {load.returncode}:\n{log.read_text()[-2000:]}")
    seconds = json.loads((places.root / SECONDS_FILE).read_text())
    return seconds, load.peak_mib * MIB


def measure(part: str, places: Places, repetitions: int, threads: int | None) -> list[dict[str, Any]]:
    """Let the methods run in turn, after a round that does not count."""
    runs: dict[str, list[tuple[float, float]]] = {method: [] for method in PLANS}
    for repetition in range(-1, repetitions):
        for method, measured in runs.items():
            run = run_once(part, method, places, threads)
            if repetition >= 0:
                measured.append(run)
    rows = []
    for method, measured in runs.items():
        times = spread([seconds for seconds, _ in measured])
        peaks = [round(peak) for _, peak in measured]
        memory = {"peak_bytes": statistics.median(peaks), "all_peak_bytes": peaks}
        rows.append({"part": part, "variant": method, **times, "cases_a_minute": 60 / times["median_s"], **memory})
    return rows


def agreement_of_preprocessing(places: Places) -> dict[str, float]:
    """Give the share of equal labels, and the mean difference of the images in their standard deviation."""
    (stock_image, stock_labels, _), (image, labels, _) = (preprocessed_case(places, method) for method in (STOCK, OURS))
    stock_image, image = stock_image[:], image[:]
    difference = float(np.abs(stock_image - image).mean() / stock_image.std())
    return {"equal_voxels": float((stock_labels[:] == labels[:]).mean()), "image_difference": difference}


def agreement_of_export(places: Places) -> dict[str, float]:
    """Give the share of voxels with equal labels."""
    stock, ours = (sitk.GetArrayFromImage(sitk.ReadImage(str(places.exported(method)))) for method in (STOCK, OURS))
    return {"equal_voxels": float((stock == ours).mean())}


def measure_all(a: argparse.Namespace, places: Places) -> list[dict[str, Any]]:
    """Make the dataset and measure both parts; the second starts from what the first one leaves."""
    activate_folders(places.root)
    labels_ZYX = write_dataset(places, a.shape, a.classes)
    write_plans(places, a.patch)
    preprocessing = measure(PREPROCESSING, places, a.repetitions, a.threads)
    preprocessing[-1] |= agreement_of_preprocessing(places)
    write_logits(places, labels_ZYX, a.classes)
    del labels_ZYX
    export = measure(EXPORT, places, a.repetitions, a.threads)
    export[-1] |= agreement_of_export(places)
    return preprocessing + export


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each part and method; ratios are to stock nnU-Net."""
    lines = [["", "", "s a case", "cases a minute", "times faster", "peak MiB", "times less", "equal"]]
    stock = {row["part"]: row for row in rows if row["variant"] == STOCK}
    for row in rows:
        reference = stock[row["part"]]
        faster = shown_ratio(row["median_s"], reference["median_s"])
        less = shown_ratio(row["peak_bytes"], reference["peak_bytes"])
        equal = f"{100 * row['equal_voxels']:.3f} %" if "equal_voxels" in row else ""
        minute, memory = f"{row['cases_a_minute']:.3g}", shown_mib(row["peak_bytes"])
        lines.append([row["part"], row["variant"], shown_seconds(row), minute, faster, memory, less, equal])
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=3)
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], help="z y x (default %(default)s)")
    parser.add_argument("--classes", type=int, default=6, help="background among them (default %(default)s)")
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128], help="z y x (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        parser.error("preprocessing and export are measured on the CPU")
    return arguments


def main() -> None:
    """Measure, print the table, write JSON."""
    a = parse()
    begin(a)
    with tempfile.TemporaryDirectory() as root:
        rows = measure_all(a, Places(Path(root)))
    finish(a, "large_ct", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
