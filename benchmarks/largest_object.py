"""What keeping the largest object alone does to validations, of the classes that are one object in the label maps.

    python benchmarks/largest_object.py --raw nnUNet_raw/Dataset122_X --validations FOLD/validation ... --json OUT

The classes are those that planning would name; each validation folder is measured as the training measures its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import as_markdown, begin, finish, make_parser

from sam3dnet.planning.objects import LabelBoxes, largest_object, mask_of
from sam3dnet.planning.single_objects import find_single_objects
from sam3dnet.preprocessing.cases import foreground_classes, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.reading import reader_of_cases
from sam3dnet.training.single_objects import measure_single_objects


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format a line for each class of each training."""
    lines = [["dataset", "training", "class", "cases", "Dice as it is", "of the largest object"]]
    for row in rows:
        dice = [f"{row[key]:.3f}" for key in ("dice_before", "dice_after")]
        lines.append([row["dataset"], row["training"], row["class"], str(row["cases"]), *dice])
    return as_markdown(lines)


def main() -> None:
    """Measure all validations."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the dataset, with labels")
    parser.add_argument("--validations", nargs="+", required=True)
    a = parser.parse_args()
    begin(a)
    description = read_dataset_json(a.raw)
    cases = list_training_cases(a.raw, description)
    reader, classes = reader_of_cases(description, cases), foreground_classes(description)
    measures: dict[str, dict[str, list[int]]] = {name: {"voxels": [], "largest_voxels": []} for name in classes}
    for case in cases:
        labels_ZYX = reader.read_seg(case.label)[0][0]
        boxes = LabelBoxes(labels_ZYX)
        for name, values in classes.items():
            if (box := boxes.of(values)) is not None:
                mask = mask_of(labels_ZYX[box], values)
                measures[name]["voxels"].append(int(np.count_nonzero(mask)))
                measures[name]["largest_voxels"].append(largest_object(mask)[2])
    single = {name: classes[name] for name in find_single_objects(measures)}
    names = {tuple(values): name for name, values in single.items()}
    rows: list[dict[str, Any]] = []
    for folder in map(Path, a.validations):
        ending = description["file_ending"]
        pairs = [(file, a.raw / "labelsTr" / file.name) for file in sorted(folder.glob(f"*{ending}"))]
        for one in measure_single_objects(pairs, single, reader):
            of_class = {"class": names[one.keep_largest], **one.model_dump()}
            rows.append({"dataset": a.raw.name, "training": folder.parents[4].name, **of_class})
    print(f"one object: {', '.join(single) or 'none'} of {', '.join(classes)}")
    print(table(rows))
    a.validations = sorted({row["training"] for row in rows})  # in place of folders of this machine
    finish(a, "largest_object", rows)


if __name__ == "__main__":
    main()
