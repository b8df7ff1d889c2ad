"""The automatic network as ONNX beside torch: size, difference of logits, seconds, and memory above what is loaded.

    python benchmarks/onnx_export.py --encoders none tiny small --patches 48x96x96 96x128x128 --threads 1 --json OUT

Weights are random, tokens cover 8 x 8 x 8 voxels, windows and global attention as planned. Each is measured in a
process of its own, after one run that is not counted; memory is the process's peak less that before the first crop.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import as_markdown, begin, finish, make_parser, shown_mib, shown_ratio, shown_seconds

from sam3dnet.check.measuring import spread, time_once
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.portable.onnx_file import INPUT, MeanOfFolds, compare, convert

CLASSES, STRIDES = 4, [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]


def make_network(encoder: str, patch: Sequence[int]) -> MeanOfFolds:
    """Make the network of a plan, with random weights."""
    torch.manual_seed(0)
    options = {"token_stride": (8, 8, 8), "strides": STRIDES, "prompts": True, "fitted_windows": True}
    return MeanOfFolds([SAM3D(1, CLASSES, encoder=encoder, patch_size=patch, **options)])


def peak_bytes() -> int:
    """Give the most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure_one(runtime: str, encoder: str, patch: Sequence[int], file: Path, repetitions: int) -> dict[str, Any]:
    """Time one runtime in this process."""
    crop = torch.randn(1, 1, *patch)
    if runtime == "torch":
        network = make_network(encoder, patch)

        def run() -> Any:
            with torch.inference_mode():
                return network(crop)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

        def run() -> Any:
            return session.run(None, {INPUT: crop.numpy()})

    before = peak_bytes()
    run()
    seconds = [time_once(run, torch.device("cpu")) for _ in range(repetitions)]
    return {**spread(seconds), "working_bytes": peak_bytes() - before}


def measure(arguments: argparse.Namespace, encoder: str, patch: str, place: Path) -> list[dict[str, Any]]:
    """Export a network, and measure it by both."""
    voxels = [int(size) for size in patch.split("x")]
    network, file = make_network(encoder, voxels), place / f"{encoder}-{patch}.onnx"
    crop = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, *voxels)).astype(np.float32))
    took = time_once(lambda: convert(network, crop, file), torch.device("cpu"))
    shared = {"encoder": encoder, "crop": patch, "export_s": took, "bytes": file.stat().st_size}
    shared["difference"] = compare(network, crop, file)
    rows = []
    for runtime in ("torch", "onnxruntime"):
        words = [runtime, encoder, patch, str(file)]
        command = [sys.executable, __file__, *sys.argv[1:], "--one", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"runtime": runtime, **shared, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows; ratios are torch's by the other's."""
    header = ["encoder", "crop", "by", "MB of the file", "export s", "difference", "seconds", "torch / this", "MiB"]
    lines = [header]
    for row in rows:
        (reference,) = (
            other
            for other in rows
            if other["runtime"] == "torch" and all(other[key] == row[key] for key in ("encoder", "crop"))
        )
        size = [f"{row['bytes'] / 1e6:.1f}", f"{row['export_s']:.0f}", f"{row['difference']:.0e}"]
        ratio = shown_ratio(row["median_s"], reference["median_s"])
        lines.append(
            [
                row["encoder"],
                row["crop"],
                row["runtime"],
                *size,
                shown_seconds(row),
                ratio,
                shown_mib(row["working_bytes"]),
            ]
        )
    return as_markdown(lines)


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = make_parser(__doc__, repetitions=3)
    parser.add_argument("--encoders", nargs="+", default=["none", "tiny", "small"])
    parser.add_argument("--patches", nargs="+", default=["48x96x96", "96x128x128"], help="voxels along z, y, x")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    begin(arguments)
    if arguments.one:
        runtime, encoder, patch, file = arguments.one
        voxels = [int(size) for size in patch.split("x")]
        print(json.dumps(measure_one(runtime, encoder, voxels, Path(file), arguments.repetitions)))
        return
    with tempfile.TemporaryDirectory() as place:
        rows = [
            row
            for patch in arguments.patches
            for encoder in arguments.encoders
            for row in measure(arguments, encoder, patch, Path(place))
        ]
    print(table(rows))
    del arguments.one
    finish(arguments, "onnx_export", rows)


if __name__ == "__main__":
    main()
