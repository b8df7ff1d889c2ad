"""How wide a surrounding should follow a click that the network does not obey, and how far answers should reach.

    python benchmarks/click_surroundings.py --model MODEL --raw nnUNet_raw/Dataset501_X --cases a b c --json OUT

Each class of each case is clicked on ten times, at the largest error of its mask; the classes of a case one after the
other. --widths are standard deviations in voxels of what is added around a click, --reaches those of the network's
answers in tokens: "stored" is what the training chose.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import as_markdown, begin, finish, make_parser

from sam3dnet.evaluation.metrics import dice_coefficient
from sam3dnet.interactive import volume
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import Model, load_model
from sam3dnet.network.earlier_weights import REACH
from sam3dnet.planning.objects import mask_of
from sam3dnet.preprocessing.cases import foreground_classes, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.reading import reader_of_cases
from sam3dnet.prompts.sampling import corrective_click

CLICKS = 10
SHOWN = (0, 1, 3, 5, 10)


def measure(model: Model, a: argparse.Namespace) -> list[float]:
    """Give the mean Dice after each number of clicks."""
    description = read_dataset_json(a.raw)
    cases = [case for case in list_training_cases(a.raw, description) if case.name in a.cases]
    reader, rows = reader_of_cases(description, cases), []
    for case in cases:
        session = PromptSession(model)
        session.set_image(list(case.images))
        truth = reader.read_seg(case.label)[0][0]
        for name, values in foreground_classes(description).items():
            mask = mask_of(truth, values)
            if not mask.any() or (a.classes and name not in a.classes):
                continue
            row = [dice_coefficient(session.mask(name), mask)]
            for _ in range(CLICKS):
                point = corrective_click(session.mask(name), mask, session.properties["spacing"])
                if point is not None:
                    z, y, x = point.at
                    session.click((x, y, z), point.positive, name)
                row.append(dice_coefficient(session.mask(name), mask))
            rows.append(row)
    return [float(value) for value in np.mean(rows, 0)]


def let_reach(model: Model, tokens: float) -> None:
    """Let answers about all classes reach as far."""
    for weights in model.loaded.weights:
        weights[REACH].fill_(tokens)
    model.loaded.network.get_buffer(REACH).fill_(tokens)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format a line for each combination."""
    lines = [["reach in tokens", "width in voxels", *(f"Dice after {n} clicks" for n in SHOWN)]]
    for row in rows:
        lines.append([row["reach"], f"{row['width']:g}", *(f"{row['dice'][n]:.3f}" for n in SHOWN)])
    return as_markdown(lines)


def main() -> None:
    """Measure all combinations."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the dataset, with labels")
    parser.add_argument("--cases", nargs="+", required=True, help="of validation")
    parser.add_argument("--classes", nargs="+", default=[], help="without it all")
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    parser.add_argument("--reaches", nargs="+", default=["stored"])
    a = parser.parse_args()
    begin(a)
    model = load_model(a.model, device=a.device)
    rows: list[dict[str, Any]] = []
    for reach in a.reaches:
        if reach != "stored":
            let_reach(model, float(reach))
        for width in a.widths:
            volume.BUMP_WIDTH = width
            rows.append({"reach": reach, "width": width, "dice": measure(model, a)})
            print(rows[-1]["reach"], width, [round(rows[-1]["dice"][n], 3) for n in SHOWN], flush=True)
    print(table(rows))
    finish(a, "click_surroundings", rows)


if __name__ == "__main__":
    main()
