"""Time the prediction of a folder of images end to end: ours against nnUNetv2_predict's own predictor.

    python benchmarks/prediction.py --images DATASET/imagesTs --sam3d MODEL_FOLDER --nnunet MODEL_FOLDER --json OUT

Both read, preprocess, slide windows (step 0.5, mirrored as trained), resample and write label maps, in one process and
in turn, with fold 0; loading the model counts. A model folder is one of nnUNet_results, TRAINER__PLANS__CONFIGURATION.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import as_markdown, begin, finish, make_parser, shown_ratio

from sam3dnet.check.measuring import spread, time_once

CHECKPOINT = "checkpoint_final.pth"


def predict_with_ours(images: Path, output: Path, model: Path, device: torch.device) -> None:
    """Predict all images with sam3dnet."""
    from sam3dnet.inference.predictor import predict_folder
    from sam3dnet.settings.prediction import PredictionSettings

    places = {"input_folder": images, "output_folder": output, "model_folder": model}
    report = predict_folder(PredictionSettings(**places, folds=[0], device=device))
    if report.failed:
        raise SystemExit(f"failed: {report.failed}")


def predict_with_stock(images: Path, output: Path, model: Path, device: torch.device) -> None:
    """Predict all images as nnUNetv2_predict does."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False, verbose=False
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,), CHECKPOINT)
    output.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files(
        str(images), str(output), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )


def link_images(folder: Path, images: Path, model: Path, cases: int) -> int:
    """Link the files of the first cases into a folder; give the number of cases."""
    description = json.loads((model / "dataset.json").read_text())
    ending, channels = description["file_ending"], len(description["channel_names"])
    firsts = sorted(images.glob(f"*_0000{ending}"))[:cases]
    if not firsts:
        raise SystemExit(f"{images}: no file named CASE_0000{ending}")
    folder.mkdir()
    for first in firsts:
        for channel in range(channels):
            name = first.name.replace(f"_0000{ending}", f"_{channel:04d}{ending}")
            (folder / name).symlink_to((images / name).resolve())
    return len(firsts)


def measure(a: argparse.Namespace, device: torch.device, work: Path) -> list[dict[str, Any]]:
    """Predict in turn, each time into a new folder, after a warm-up with one case."""
    methods: dict[str, Callable[[Path, Path], None]] = {
        "nnU-Net": partial(predict_with_stock, model=a.nnunet, device=device),
        "sam3dnet": partial(predict_with_ours, model=a.sam3d, device=device),
    }
    link_images(work / "one", a.images, a.nnunet, 1)
    cases = link_images(work / "images", a.images, a.nnunet, a.cases)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(-1, a.repetitions):
        for name, predict in methods.items():
            output = work / "output"
            source = work / ("one" if repetition < 0 else "images")
            elapsed = time_once(partial(predict, source, output), device)
            shutil.rmtree(output)
            if repetition >= 0:
                seconds[name].append(elapsed / cases)
    return [{"variant": name, "cases": cases, **spread(values)} for name, values in seconds.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each method."""
    lines = [["prediction, end to end", "cases", "s a case", "times faster"]]
    for row in rows:
        low, high = row["quartiles_s"]
        faster = shown_ratio(row["median_s"], rows[0]["median_s"])
        lines.append([row["variant"], str(row["cases"]), f"{row['median_s']:.2f} ({low:.2f}-{high:.2f})", faster])
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=3)
    parser.add_argument("--images", type=Path, required=True, help="folder of images, a file a channel")
    parser.add_argument("--sam3d", type=Path, required=True, help="our model folder")
    parser.add_argument("--nnunet", type=Path, required=True, help="nnU-Net's model folder")
    parser.add_argument("--cases", type=int, default=10, help="images predicted (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write JSON."""
    a = parse()
    device = begin(a)
    with tempfile.TemporaryDirectory() as work:
        rows = measure(a, device, Path(work))
    finish(a, "prediction", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
