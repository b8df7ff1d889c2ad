"""What a stroke of a pencil, and a box in one slice, are worth beside a click: Dice after a single one of each.

    python benchmarks/strokes.py --model MODEL_FOLDER --images imagesTr --labels labelsTr --class-name tumour --json OUT

In each validation case of fold 0 the largest error of the automatic mask is named: by a click at its innermost voxel,
and by strokes along the longest line through its largest slice across each axis. Then its largest object is named: by a
click in its middle, a box around it, and boxes around its largest slice.
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
from sam3dnet.prompts.depth import box_of
from sam3dnet.prompts.sampling import innermost_voxel
from sam3dnet.prompts.types import Box, ClassPrompts, Point, Scribble

HALF_WIDTH = 0.8  # voxels
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


def dice(one: Mask, other: Mask) -> float:
    """Give the Dice of two masks of which one has something."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def largest_part(mask_ZYX: Mask) -> Mask:
    """Give the largest part of a mask that hangs together by faces."""
    parts, _ = ndimage.label(mask_ZYX)
    return np.asarray(parts == np.bincount(parts.ravel())[1:].argmax() + 1)


def stroke(error_ZYX: Mask, axis: int) -> list[Voxel]:
    """Give the voxels of an error along the longest line through its largest slice across an axis, in their order."""
    at = int(error_ZYX.sum(tuple(other for other in range(3) if other != axis)).argmax())
    places = np.argwhere(error_ZYX.take(at, axis)).astype(float)
    away = places - places.mean(0)
    along, across = np.linalg.svd(away, full_matrices=True)[2][:2]
    near = np.abs(away @ across) < HALF_WIDTH
    ordered = places[near][np.argsort(away[near] @ along)].astype(int)
    return [tuple(np.insert(place, axis, at).tolist()) for place in ordered]


def box(mask_ZYX: Mask, axis: int | None = None) -> Box:
    """Give the box around an object, or around its largest slice across an axis, (x, y, z)."""
    kept = mask_ZYX
    if axis is not None:
        at = int(mask_ZYX.sum(tuple(other for other in range(3) if other != axis)).argmax())
        kept = np.zeros_like(mask_ZYX)
        plane = (*(slice(None),) * axis, at)
        kept[plane] = mask_ZYX[plane]
    sides = box_of(kept)[::-1]
    low, high = (tuple(map(float, ends)) for ends in ([s.start for s in sides], [s.stop - 1 for s in sides]))
    return Box(low, high)  # type: ignore[arg-type]


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
        if not truth.any() or np.array_equal(automatic, truth):
            continue
        missed, false = truth & ~automatic, automatic & ~truth
        parts = [largest_part(one) for one in (missed, false) if one.any()]
        error = max(parts, key=np.count_nonzero)
        positive = bool(truth[error].all())
        thing = largest_part(truth)

        def after(prompts: ClassPrompts, truth: Mask = truth) -> float:
            session.reset()
            return dice(session.prompt(prompts, a.class_name), truth)

        def click(mask_ZYX: Mask, positive: bool) -> ClassPrompts:
            z, y, x = innermost_voxel(mask_ZYX, (1.0, 1.0, 1.0))
            return ClassPrompts((Point((float(x), float(y), float(z)), positive),))

        row = {"case": file.name, "automatic": dice(automatic, truth), "click": after(click(error, positive))}
        for name, axis in PLANES.items():
            places = tuple((float(x), float(y), float(z)) for z, y, x in stroke(error, axis))
            row[f"{name} stroke"] = after(ClassPrompts(scribbles=(Scribble(places, positive),)))
        row["click on the object"] = after(click(thing, True))
        row["box"] = after(ClassPrompts(boxes=(box(thing),)))
        for name, axis in PLANES.items():
            row[f"{name} box"] = after(ClassPrompts(boxes=(box(thing, axis),)))
        rows.append(row)
    names = [name for name in rows[0] if name != "case"]
    means = [f"{np.mean([row[name] for row in rows]):.3f}" for name in names]
    print(as_markdown([["cases", *names], [str(len(rows)), *means]]))
    finish(a, "strokes", rows)


if __name__ == "__main__":
    main()
