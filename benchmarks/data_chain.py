"""Time what goes over the data: fingerprint and scoring of many classes; planning a large dataset, and again.

    git worktree add BEFORE 9aa3aac
    python benchmarks/data_chain.py --before BEFORE --json OUT

A made-up CT has 117 organs as ellipsoids; it is measured for the fingerprint, and a prediction of it is scored that
lies two voxels beside, with stray voxels of a few organs. So is a small prediction that is nearly noise. Then
`sam3d_plan_and_preprocess` takes a dataset of many small cases, once anew and once when there is nothing to do. With
--before another checkout's package does the same, each in a process of its own, in turn. One process; a piece of work
is timed without the imports that precede it.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from checkouts import run_in_each
from measuring import as_markdown, begin, finish, make_parser, shown_ratio, shown_seconds, spread

from sam3dnet.preprocessing.folders import activate_folders, write_json

MANY, NOISY, LARGE = "Dataset985_ManyClasses", "Dataset986_Noisy", "Dataset987_ManyCases"
ORGANS, RADII_MM = 117, (12.0, 45.0)
BODY_HU, AIR_HU, ORGAN_HU, NOISE_HU = 40, -1000, 5, 20
SMALL_ZYX, SMALL_CLASSES = (35, 50, 36), 2
STRAYS = 5  # organs with a voxel anywhere
WRONG = 0.5  # of the voxels of what is nearly noise
PARTS = ("fingerprint", "scoring", "noisy", "anew", "again")


def make_organs(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float) -> np.ndarray:
    """Draw organs that cover each other in part, labels 1 to 117, (Z, Y, X)."""
    labels = np.zeros(shape, np.uint8)
    for label in range(1, ORGANS + 1):
        radii = rng.uniform(*RADII_MM, 3) / spacing_mm
        centre = rng.uniform(np.minimum(radii, np.array(shape) / 3), np.maximum(np.array(shape) - radii, 1))
        box = tuple(
            slice(max(0, int(c - r)), min(n, int(c + r) + 1)) for c, r, n in zip(centre, radii, shape, strict=True)
        )
        axes = [(np.arange(part.start, part.stop) - c) / r for part, c, r in zip(box, centre, radii, strict=True)]
        inside = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 < 1
        labels[box][inside] = label
    return labels


def spoil(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Give many voxels other labels."""
    wrong = rng.random(labels.shape, np.float32) < WRONG
    spoiled = labels.copy()
    spoiled[wrong] = rng.integers(0, SMALL_CLASSES + 1, int(wrong.sum()))
    return spoiled


def write(values: np.ndarray, file: Path, spacing_mm: float) -> None:
    """Write a volume."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([spacing_mm] * 3)
    sitk.WriteImage(image, str(file), useCompression=True)


def describe(folder: Path, classes: int, cases: int) -> None:
    """Write dataset.json."""
    labels = {"background": 0, **{f"class_{label}": label for label in range(1, classes + 1)}}
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"},
    )


def make_data(root: Path, shape: tuple[int, ...], cases: int) -> None:
    """Write the three datasets, and predictions of two of them."""
    rng = np.random.default_rng(0)
    raw = root / "nnUNet_raw"
    organs = make_organs(rng, shape, 1.5)
    image = np.where(organs > 0, BODY_HU + ORGAN_HU * organs.astype(np.int16), AIR_HU)
    write((image + rng.normal(0, NOISE_HU, shape)).astype(np.int16), raw / MANY / "imagesTr/a_0000.nii.gz", 1.5)
    write(organs, raw / MANY / "labelsTr/a.nii.gz", 1.5)
    beside = np.roll(organs, 2, axis=1)
    beside.flat[rng.choice(beside.size, STRAYS, replace=False)] = np.arange(1, STRAYS + 1)
    write(beside, root / MANY / "a.nii.gz", 1.5)
    describe(raw / MANY, ORGANS, 1)
    small = rng.integers(0, SMALL_CLASSES + 1, SMALL_ZYX).astype(np.uint8)
    write(small, raw / NOISY / "labelsTr/a.nii.gz", 1.0)
    write(spoil(rng, small), root / NOISY / "a.nii.gz", 1.0)
    describe(raw / NOISY, SMALL_CLASSES, 1)
    for number in range(cases):
        labels = np.zeros(SMALL_ZYX, np.uint8)
        labels[8:20, 10 : 30 + number % 5, 8:24] = 1
        labels[10:14, 12:20, 10:16] = 2
        values = labels.astype(np.int16) * 60 + rng.normal(0, NOISE_HU, SMALL_ZYX).astype(np.int16)
        write(values, raw / LARGE / f"imagesTr/case_{number:04d}_0000.nii.gz", 1.0)
        write(labels, raw / LARGE / f"labelsTr/case_{number:04d}.nii.gz", 1.0)
    describe(raw / LARGE, 2, cases)


def work(part: str, root: Path) -> Callable[[], object]:
    """Give a piece of work; what it imports is imported."""
    folders = activate_folders(root)
    if part == "fingerprint":
        from sam3dnet.planning.fingerprint import load_or_make_fingerprint

        shutil.rmtree(folders.preprocessed / MANY, ignore_errors=True)
        return partial(load_or_make_fingerprint, MANY, folders, 1, progress=False)
    if part in ("scoring", "noisy"):
        from sam3dnet.evaluation.folder import evaluate_folder
        from sam3dnet.settings.evaluation import ScoringSettings

        name = MANY if part == "scoring" else NOISY
        settings = ScoringSettings(num_processes=0, dataset_json=folders.raw / name / "dataset.json")
        return lambda: evaluate_folder(root / name, folders.raw / name / "labelsTr", settings, progress=False)
    from sam3dnet.cli.plan_and_preprocess import main

    line = ["-d", LARGE[7:10], "--root", str(root), "--device", "cpu", "--num-processes", "1", "--quiet"]
    if part == "anew":
        shutil.rmtree(folders.preprocessed / LARGE, ignore_errors=True)
    return partial(main, line)


def timed(root: Path) -> dict[str, float]:
    """Do all pieces of work."""
    seconds = {}
    for part in PARTS:
        do = work(part, root)
        start = time.perf_counter()
        do()
        seconds[part] = time.perf_counter() - start
    return seconds


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each piece of work and checkout."""
    lines = [("work", "version", "seconds, median (quartiles)", "times shorter")]
    for row in rows:
        first = next(other for other in rows if other["part"] == row["part"])
        ratio = shown_ratio(row["median_s"], first["median_s"])
        lines.append((row["part"], row["version"], shown_seconds(row), ratio))
    return as_markdown(lines)


def main() -> None:
    """Parse, measure, print, write JSON."""
    parser = make_parser(__doc__, repetitions=3)
    parser.add_argument("--before", type=Path, help="checkout of another commit to be timed too")
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 300, 300), help="of the CT (default %(default)s)")
    parser.add_argument("--cases", type=int, default=1000, help="small cases (default %(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(timed(a.child)))
        return
    begin(a)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / folder).mkdir(parents=True)
        make_data(root, tuple(a.shape), a.cases)
        line = [str(Path(__file__).resolve()), "--child", str(root)]
        rounds = run_in_each(line, a.before, Path(name), a.repetitions)
    rows = [
        {"part": part, "version": version, **spread([one[version][part] for one in rounds])}
        for part in PARTS
        for version in rounds[0]
    ]
    print(table(rows))
    finish(a, "data_chain", rows)


if __name__ == "__main__":
    sys.exit(main())
