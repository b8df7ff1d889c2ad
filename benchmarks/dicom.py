"""Predict a patient from DICOM and from NIfTI files of the same grid: equal label maps, and what DICOM costs.

    python benchmarks/dicom.py --series CT/image PET/image MR_T1/image --model MODEL_FOLDER --json OUT
    python benchmarks/dicom.py --series CT/image --slices 20 --model MODEL_FOLDER_OF_ONE_CHANNEL --json OUT

The NIfTI files are made by ITK alone, without this package: each series by its reader, further ones resampled linearly
onto the first one's grid, their smallest value where they do not reach. Each process is `sam3d_predict` as users call
it, the two in turn; wall time and the time of the processor, with all that the process started.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from measuring import as_markdown, begin, finish, make_parser

from sam3dnet.check.measuring import spread

CASE = "patient"


def first_slices(folder: Path, count: int | None, copied: Path) -> list[str]:
    """Copy the files of a series, or so many neighbours of them, and give them in the order of their positions."""
    reader = sitk.ImageSeriesReader
    series = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    files = max(series, key=len)[:count]
    copied.mkdir(parents=True)
    return [shutil.copy(file, copied / f"{number}.dcm") for number, file in enumerate(files)]


def by_itk(series: Sequence[Sequence[str]], folder: Path) -> None:
    """Write NIfTI files of the series, on the grid of the first one."""
    folder.mkdir()
    first = None
    for channel, files in enumerate(series):
        image = sitk.ReadImage(files)
        first = first or image
        if channel:
            empty = float(sitk.GetArrayViewFromImage(image).min())
            image = sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), first, sitk.Transform(), sitk.sitkLinear, empty)
        sitk.WriteImage(image, str(folder / f"{CASE}_{channel:04d}.nii.gz"))


def predict(source: Path, output: Path, model: Path, device: str) -> tuple[float, float]:
    """Run `sam3d_predict`; give the seconds on the wall and of the processor."""
    command = [
        sys.executable,
        "-m",
        "sam3dnet.cli.predict",
        "-i",
        source,
        "-o",
        output,
        "-m",
        model,
        "--device",
        device,
    ]
    start = time.perf_counter()
    process = os.posix_spawn(sys.executable, list(map(str, command)), os.environ)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{source}: sam3d_predict failed")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Compare two label maps voxel by voxel, and where they lie."""
    images = [sitk.ReadImage(str(file)) for file in (one, other)]
    labels = [sitk.GetArrayFromImage(image) for image in images]
    if labels[0].shape != labels[1].shape:
        raise SystemExit(f"label maps of {labels[0].shape} and {labels[1].shape}")
    corners = [image.TransformIndexToPhysicalPoint([n - 1 for n in image.GetSize()]) for image in images]
    apart = np.abs(np.subtract(corners[0], corners[1])).max()
    return {
        "voxels": int(labels[0].size),
        "labelled": int((labels[0] > 0).sum()),
        "different": int((labels[0] != labels[1]).sum()),
        "corner_apart_mm": float(apart),
    }


def measure(arguments: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Give a row for each of the two sources."""
    folders = [place / CASE / str(channel) for channel in range(len(arguments.series))]
    pairs = zip(arguments.series, folders, strict=True)
    files = [first_slices(Path(folder), arguments.slices, copied) for folder, copied in pairs]
    by_itk(files, place / "nifti")
    sources = {"DICOM": place / CASE, "NIfTI": place / "nifti"}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for number in range(arguments.repetitions):
        for name, source in sources.items():
            taken[name].append(predict(source, place / f"{name}-{number}", arguments.model, arguments.device))
    compared = compare(*(place / f"{name}-0" / f"{CASE}.nii.gz" for name in sources))
    return [
        {
            "source": name,
            "slices": len(files[0]),
            "channels": len(files),
            **spread([wall for wall, _ in taken[name]]),
            "processor_s": float(np.median([cpu for _, cpu in taken[name]])),
            **compared,
        }
        for name in sources
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows."""
    header = ["from", "slices, channels", "seconds", "quartiles", "of the processor", "voxels", "labelled", "different"]
    lines = [header]
    for row in rows:
        low, high = row["quartiles_s"]
        seconds = [f"{row['median_s']:.1f}", f"{low:.1f}-{high:.1f}", f"{row['processor_s']:.1f}"]
        voxels = [f"{row[key]:,}" for key in ("voxels", "labelled", "different")]
        lines.append([row["source"], f"{row['slices']}, {row['channels']}", *seconds, *voxels])
    return as_markdown(lines)


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--series", nargs="+", required=True, help="a folder a channel")
    parser.add_argument("--slices", type=int, help="of each series (default: all)")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    arguments = parser.parse_args()
    begin(arguments)
    with tempfile.TemporaryDirectory() as place:
        rows = measure(arguments, Path(place))
    print(table(rows))
    arguments.series = [Path(folder).parent.name for folder in arguments.series]
    finish(arguments, "dicom", rows)


if __name__ == "__main__":
    main()
