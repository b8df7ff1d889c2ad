"""Show what is planned for cards of several sizes, and how long planning takes: tokens, crop, batch, memory of a step.

    python benchmarks/plans_by_memory.py --raw FOLDER_WITH_DATASETS --datasets Dataset501_Hippocampus --json OUT

--gigabytes 0 plans for a CPU, by seconds. --before takes the JSON of an earlier run: its crop, batch and memory stand
beside. With SAM's weights at hand and without; a made-up CT data set (800 x 512 x 512 voxels) is planned beside the
real ones.
Nothing is trained and no weight is loaded: the planner traces, each plan anew. Its seconds are those after reading the
images; CPU seconds are those of this process.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from measuring import as_markdown, begin, finish, make_parser

from sam3dnet.network import cost
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.encoder import SamWeights, no_weights
from sam3dnet.planning.fingerprint import load_or_make_fingerprint
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import Folders, activate_folders, write_json

MADE_UP = "Dataset991_MadeUpCT"
SPACING_MM, SHAPE, CASES = (0.8, 0.7, 0.7), (800, 512, 512), 40
OBJECTS_MM = {"aorta": (400.0, 90.0, 80.0), "node": (9.0, 8.0, 8.0)}
INTENSITIES = {"mean": 100.0, "std": 80.0, "median": 100.0, "min": -60.0, "max": 260.0}
INTENSITIES |= {"percentile_00_5": -50.0, "percentile_99_5": 250.0}


def make_up_dataset(folders: Folders) -> None:
    """Write a data set whose fingerprint says that its volumes are large; the files are a few voxels."""
    from sam3dnet.planning.fingerprint import BLOCK, BLOCK_VERSION, FINGERPRINT_FILE, files_record
    from sam3dnet.preprocessing.cases import list_training_cases
    from sam3dnet.preprocessing.reading import reader_of_cases

    raw = folders.raw / MADE_UP
    image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.int16))
    image.SetSpacing(SPACING_MM[::-1])
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / kind).mkdir(parents=True)
        for case in range(CASES):
            sitk.WriteImage(image, str(raw / kind / f"case_{case:02d}{ending}"))
    labels = {"background": 0, **{name: value for value, name in enumerate(OBJECTS_MM, start=1)}}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    around = {"mean": -20.0, "std": 60.0, "percentile_05_0": -150.0, "percentile_95_0": 100.0}
    classes = {
        name: {
            "largest_extent_mm": [list(extent)] * CASES,
            "volume_mm3": [float(np.prod(extent))] * CASES,
            "cases": [f"case_{case:02d}" for case in range(CASES)],
            "centre_mm": [[0.0, 0.0, 0.0]] * CASES,
            "around": {"0": around},
        }
        for name, extent in OBJECTS_MM.items()
    }
    cases = list_training_cases(raw, description)
    record = files_record(raw, cases, reader_of_cases(description, cases))
    quantiles = {"0": np.linspace(-60.0, 260.0, 201).tolist()}
    fingerprint = {
        "spacings": [list(SPACING_MM)] * CASES,
        "shapes_after_crop": [list(SHAPE)] * CASES,
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "median_relative_size_after_cropping": 1.0,
        BLOCK: {"version": BLOCK_VERSION, "files": record, "classes": classes, "foreground_quantiles": quantiles},
    }
    write_json(folders.preprocessed / MADE_UP / FINGERPRINT_FILE, fingerprint)


def plan(dataset: str, folders: Folders, gigabytes: float, at_hand: bool) -> list[dict[str, Any]]:
    """Plan a data set for a card, or a CPU in place of 0 GB; a row for each configuration."""
    load_or_make_fingerprint(dataset, folders, 1, progress=False)
    cost._traced.cache_clear()
    device = "cuda" if gigabytes else "cpu"
    start, cpu_start = time.perf_counter(), time.process_time()
    plans_file = plan_dataset(
        dataset,
        folders,
        cost=partial(training_cost, device=device),
        seconds=training_seconds,
        gpu_memory_target_gb=gigabytes or None,
        find_weights=(lambda *_: SamWeights({})) if at_hand else no_weights,
        device=device,
        progress=False,
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    plans = json.loads(plans_file.read_text())
    memory = {d["name"]: d["value"] for d in plans["sam3d"]["decisions"] if d["name"].startswith("memory of a step")}
    rows = []
    for name, configuration in plans["configurations"].items():
        if "architecture" not in configuration:
            continue
        arguments = configuration["architecture"]["arch_kwargs"]
        suffix = "" if name == "3d_fullres" else f" ({name})"
        rows.append(
            {
                "dataset": dataset,
                "gigabytes": gigabytes,
                "configuration": name,
                "encoder": arguments["encoder"] + (", SAM's weights" if arguments["pretrained"] else ""),
                "token_stride": arguments["token_stride"],
                "patch_size": configuration["patch_size"],
                "batch_size": configuration["batch_size"],
                "checkpointing": bool(arguments.get("checkpointing")),
                "memory": memory[f"memory of a step{suffix}"],
                "planning_s": seconds,
                "planning_cpu_s": cpu_seconds,
            }
        )
    return rows


def key(row: dict[str, Any]) -> tuple:
    """Give what a plan is for."""
    return row["dataset"], row["gigabytes"], row["configuration"], row["encoder"]


def in_words(row: dict[str, Any] | None) -> str:
    """Give crop, batch and memory of an earlier plan."""
    if row is None:
        return "-"
    return f"{'x'.join(map(str, row['patch_size']))}, {row['batch_size']}, {row['memory']}"


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each plan."""
    has_before = any("before" in row for row in rows)
    lines = [["data set", "card", "", "encoder", "token", "crop", "batch", "recomputed", "a step", "s, CPU s"]]
    lines[0] += ["before: crop, batch, a step"] if has_before else []
    for row in rows:
        stride, patch = ("x".join(map(str, row[key])) for key in ("token_stride", "patch_size"))
        recomputed = "yes" if row["checkpointing"] else "no"
        card = f"{row['gigabytes']:g} GB" if row["gigabytes"] else "none"
        first = [row["dataset"], card, row["configuration"], row["encoder"], stride, patch]
        took = f"{row['planning_s']:.1f}, {row['planning_cpu_s']:.1f}" if "planning_cpu_s" in row else "-"
        lines.append([*first, str(row["batch_size"]), recomputed, row["memory"], took])
        lines[-1] += [row["before"]] if has_before else []
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--raw", type=Path, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--datasets", nargs="*", default=[], help="full names; the made-up one is always planned")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[8, 16, 24, 80])
    parser.add_argument("--weights", nargs="+", choices=("with", "without"), default=["with", "without"])
    parser.add_argument("--before", type=Path, help="JSON of an earlier run")
    return parser.parse_args()


def main() -> None:
    """Plan everything, print the table, write JSON."""
    a = parse()
    begin(a)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (Path(root) / name).mkdir()
        for name in a.datasets:
            (Path(root) / "nnUNet_raw" / name).symlink_to((a.raw / name).resolve(), target_is_directory=True)
        folders = activate_folders(Path(root))
        make_up_dataset(folders)
        for dataset in [*a.datasets, MADE_UP]:
            for weights in a.weights:
                for gigabytes in a.gigabytes:
                    rows += plan(dataset, folders, gigabytes, weights == "with")
    if a.before:
        earlier = {key(row): row for row in json.loads(a.before.read_text())["rows"]}
        rows = [row | {"before": in_words(earlier.get(key(row)))} for row in rows]
    finish(a, "plans_by_memory", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
