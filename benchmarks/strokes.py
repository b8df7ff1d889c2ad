"""What a stroke of a pencil is worth as clicks: Dice after one click beside that after clicks along a stroke.

    python benchmarks/strokes.py --model MODEL_FOLDER --images imagesTr --labels labelsTr --class-name tumour --json OUT

In each validation case of fold 0 the largest error of the automatic mask is named, once by a click at its innermost
voxel, once by clicks along the longest line through its largest slice.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from measuring import as_markdown, begin, finish, make_parser
from scipy import ndimage

from sam3dnet.model import load_model
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.sampling import innermost_voxel
from sam3dnet.prompts.types import ClassPrompts, Point

COUNTS = (3, 5, 10)
HALF_WIDTH = 0.8  # voxels


def dice(one: Mask, other: Mask) -> float:
    """Give the Dice of two masks of which one has something."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def stroke(error_ZYX: Mask) -> list[Voxel]:
    """Give the voxels of an error along the longest line through its largest slice, from one end to the other."""
    z = int(error_ZYX.sum((1, 2)).argmax())
    places = np.argwhere(error_ZYX[z]).astype(float)
    away = places - places.mean(0)
    along, across = np.linalg.svd(away, full_matrices=True)[2][:2]
    near = np.abs(away @ across) < HALF_WIDTH
    ordered = places[near][np.argsort(away[near] @ along)].astype(int)
    return [(z, int(y), int(x)) for y, x in ordered]


def main() -> None:
    """Measure."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--class-name", default="tumour")
    parser.add_argument("--label", type=int, default=2)
    a = parser.parse_args()
    begin(a)
    session = load_model(a.model, device=a.device, mirror=False).session()
    rows: list[dict[str, Any]] = []
    for file in sorted((a.model / "fold_0" / "validation").glob("*.nii.gz")):
        session.set_image(a.images / re.sub(r"\.nii\.gz$", "_0000.nii.gz", file.name))
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(a.labels / file.name))) == a.label
        automatic = session.mask(a.class_name)
        errors, count = ndimage.label(automatic != truth)
        if not count or not truth.any():
            continue
        largest = errors == np.bincount(errors.ravel())[1:].argmax() + 1
        middle = innermost_voxel(largest, (1.0, 1.0, 1.0))
        positive = bool(truth[middle])
        line = stroke(largest)

        def after(voxels: list[Voxel], positive: bool = positive, truth: Mask = truth) -> float:
            session.reset()
            points = tuple(Point((float(x), float(y), float(z)), positive) for z, y, x in voxels)
            return dice(session.prompt(ClassPrompts(points=points), a.class_name), truth)

        row = {"case": file.name, "automatic": dice(automatic, truth), "one click": after([middle])}
        for number in COUNTS:
            chosen = np.unique(np.linspace(0, len(line) - 1, number).round().astype(int))
            row[f"{number} along a stroke"] = after([line[at] for at in chosen])
        rows.append(row)
    names = [name for name in rows[0] if name != "case"]
    means = [f"{np.mean([row[name] for row in rows]):.3f}" for name in names]
    print(as_markdown([["cases", *names], [str(len(rows)), *means]]))
    finish(a, "strokes", rows)


if __name__ == "__main__":
    main()
