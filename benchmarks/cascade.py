"""When does a cascade pay? Full resolution alone against both stages of a cascade, in the same time, on made-up CT.

    python benchmarks/cascade.py --work DIR --minutes 20 --json OUT

In every case a large organ has a twin of the same size and texture elsewhere in the body; only where the spine's end
lies, further away than a crop of full resolution reaches, tells them apart. Lesions are small: a low resolution alone
loses them. The cases form two folds. Both are trained for --minutes at full resolution, and for half of that in each
stage of the cascade: the label maps that its second stage trains on are those of the first's validation, so all folds
of the first are needed. Every step runs in a process of its own; what is finished is not repeated.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from measuring import as_markdown, finish, make_parser
from scipy import ndimage

from sam3dnet.comparison.stages import Stages, call
from sam3dnet.preprocessing.folders import write_json

DATASET, NUMBER = "Dataset981_Twins", "981"
FULLRES, LOWRES, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
SHAPE_ZYX, SPACING_MM = (208, 208, 208), 1.5
ORGAN, LESION = 1, 2
LABELS = {"background": 0, "organ": ORGAN, "lesion": LESION}
AIR_HU, BODY_HU, ORGAN_HU, BONE_HU, LESION_HU, NOISE_HU = -1000, 30, 110, 700, 190, 20
ORGAN_SHARE = np.array((0.17, 0.19, 0.21))  # half axes, of the image
LESION_RADII_MM = (3.0, 6.0)
LESIONS = (2, 5)  # from, and fewer than
FOLDS = 2


@dataclass(frozen=True)
class Place:
    """Where everything lies: nnU-Net's three folders are below `work`."""

    work: Path

    @property
    def raw(self) -> Path:
        return self.work / "nnUNet_raw" / DATASET

    def fold(self, configuration: str, fold: int) -> Path:
        model = f"nnUNetTrainerSAM3D__SAM3DPlans__{configuration}"
        return self.work / "nnUNet_results" / DATASET / model / f"fold_{fold}"


def make_case(rng: np.random.Generator, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image in Hounsfield units, and its labels, both (Z, Y, X)."""
    size = np.array(shape)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1, dtype=np.float32)

    def inside(centre_share: Sequence[float], half_axes: np.ndarray) -> np.ndarray:
        return np.asarray((((grid - size * np.array(centre_share)) / half_axes) ** 2).sum(-1) < 1)

    body = inside((0.5, 0.5, 0.5), size * (4.0, 0.44, 0.47))
    image = np.where(body, BODY_HU, AIR_HU).astype(np.float32)
    ends = (0.27, 0.73) if rng.random() < 0.5 else (0.73, 0.27)  # organ, twin
    labels = np.zeros(shape, np.uint8)
    for number, along_z in enumerate(ends):
        centre = np.array((along_z, 0.45, 0.5)) + rng.uniform(-0.04, 0.04, 3)
        blob = inside(centre, size * ORGAN_SHARE * rng.uniform(0.9, 1.1, 3)) & body
        image[blob] = ORGAN_HU
        labels[blob & (number == 0)] = ORGAN
    spine = inside((0.5, 0.82, 0.5), size * (9.0, 0.05, 0.05))
    half = grid[..., 0] < 0.5 * size[0]
    image[spine & (half if ends[0] < 0.5 else ~half)] = BONE_HU  # it ends in the middle, on the organ's side
    for _ in range(rng.integers(*LESIONS)):
        centre = np.array((rng.uniform(0.1, 0.9), rng.uniform(0.25, 0.7), rng.uniform(0.2, 0.8)))
        lesion = inside(centre, np.full(3, rng.uniform(*LESION_RADII_MM) / SPACING_MM)) & body
        image[lesion], labels[lesion] = LESION_HU, LESION
    texture = ndimage.gaussian_filter(rng.normal(0, 1, shape), 2) * 4 * NOISE_HU
    image = ndimage.gaussian_filter(image, 0.7) + texture * body + rng.normal(0, NOISE_HU, shape)
    return image.round().astype(np.int16), labels


def make_dataset(place: Place, cases: int, shape: Sequence[int]) -> None:
    """Write the raw dataset where there is none, and its folds where nnU-Net's planner takes them from."""
    if (place.raw / "dataset.json").exists():
        return
    names = [f"twins_{index:02d}" for index in range(cases)]
    for index, name in enumerate(names):
        image, labels = make_case(np.random.default_rng((981, index)), shape)
        for array, part in ((image, f"imagesTr/{name}_0000"), (labels, f"labelsTr/{name}")):
            file = place.raw / f"{part}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            written = sitk.GetImageFromArray(array)
            written.SetSpacing([SPACING_MM] * 3)
            sitk.WriteImage(written, str(file), useCompression=True)
    folds = [{"train": [n for n in names if n not in names[f::FOLDS]], "val": names[f::FOLDS]} for f in range(FOLDS)]
    write_json(place.work / "nnUNet_preprocessed" / DATASET / "splits_final.json", folds)
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}
    write_json(place.raw / "dataset.json", description)  # last: it says that all is there


def steps(place: Place, a: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Give the commands in their order, as a user would type them."""
    where = ("--root", str(place.work), "--device", a.device)
    options = a.plan_options.split()
    planning = ("-d", NUMBER, "-c", FULLRES, LOWRES, "--skip-verification", *where, *options)
    yield "plan", call("sam3dnet.cli.plan_and_preprocess:main", *planning)
    for configuration, share in ((FULLRES, 1.0), (LOWRES, 0.5), (CASCADE, 0.5)):
        for fold in range(FOLDS):
            training = (NUMBER, str(fold), "-c", configuration, "--minutes", str(share * a.minutes), *where)
            yield f"{configuration}-{fold}", call("sam3dnet.cli.train:main", *training, *a.train_options.split())


def rows_of(place: Place) -> list[dict[str, Any]]:
    """Give a row for each configuration: the mean Dice of each class over the validation cases of all folds."""
    rows = []
    for configuration in (FULLRES, LOWRES, CASCADE):
        dice: dict[str, list[float]] = {name: [] for name in LABELS if name != "background"}
        for fold in range(FOLDS):
            summary = json.loads((place.fold(configuration, fold) / "validation" / "summary.json").read_text())
            for case in summary["metric_per_case"]:
                for name, values in dice.items():
                    values.append(float(case["metrics"][str(LABELS[name])]["Dice"]))
        iterations = [_iterations(place.fold(configuration, fold)) for fold in range(FOLDS)]
        rows.append({"configuration": configuration, "iterations": iterations, "dice": dice})
    return rows


def _iterations(fold: Path) -> int:
    from sam3dnet.training.epoch_log import LOG_FILE, read_log

    return read_log(fold / LOG_FILE)[-1].iterations


def table(rows: Sequence[dict[str, Any]], minutes: float) -> str:
    """Format the rows; the cascade's time is that of both of its stages."""
    names = [name for name in LABELS if name != "background"]
    lines = [["configuration", "minutes a fold", "iterations", *(f"Dice, {name}" for name in names)]]
    spent = {FULLRES: f"{minutes:g}", LOWRES: f"{minutes / 2:g}", CASCADE: f"{minutes / 2:g} + {minutes / 2:g}"}
    for row in rows:
        figures = [f"{np.nanmean(row['dice'][name]):.3f}" for name in names]
        lines.append(
            [row["configuration"], spent[row["configuration"]], ", ".join(map(str, row["iterations"])), *figures]
        )
    return as_markdown(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--minutes", type=float, default=20, help="training of a fold (default %(default)s)")
    parser.add_argument("--cases", type=int, default=12, help="cases to make up (default %(default)s)")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE_ZYX, help="voxels, Z Y X (default %(default)s)")
    parser.add_argument("--plan-options", default="", help="further options of sam3d_plan_and_preprocess, in one word")
    parser.add_argument("--train-options", default="", help="further options of sam3d_train, in one word")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the dataset, train everything, print the table, write JSON."""
    a = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    place = Place(a.work.resolve())
    (place.work / "nnUNet_results").mkdir(parents=True, exist_ok=True)
    make_dataset(place, a.cases, a.shape)
    stages = Stages(place.work / "stages")
    keys = {name: str(value) for name, value in vars(a).items() if name != "json"}
    for name, command in steps(place, a):
        stages.run(name, keys, command)
    rows = rows_of(place)
    finish(a, "cascade", rows)
    print(table(rows, a.minutes))


if __name__ == "__main__":
    main()
