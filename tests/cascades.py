"""Tiny datasets whose plan has a cascade, as that of large images does."""

import json
from pathlib import Path
from typing import Any

from phantoms import make_raw_dataset

from sam3dnet.network.cost import training_cost
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import Folders

FULLRES, LOWRES, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
GRIDS = {  # spacing in mm and crop, transposed as the plan has it
    FULLRES: ([2.4, 0.8, 1.0], [8, 16, 12]),
    LOWRES: ([4.0, 1.6, 2.0], [4, 8, 8]),
}


def plan_cascade(folders: Folders, name: str, num_cases: int = 5, choice: Any = None, **dataset: Any) -> Path:
    """Make up a dataset and plan it, with windows smaller than the images and voxels of other sizes in each stage.

    Returns:
        The plans file.
    """
    make_raw_dataset(folders.raw / name, num_cases=num_cases, **dataset)
    file = plan_dataset(name, folders, cost=training_cost, encoder="tiny", device="cpu", progress=False, choice=choice)
    plans = json.loads(file.read_text())
    of_image = plans["configurations"][FULLRES]
    configurations = {}
    for stage, (spacing_mm, patch_size) in GRIDS.items():
        arch_kwargs = of_image["architecture"]["arch_kwargs"] | {"patch_size": patch_size}
        configurations[stage] = of_image | {
            "data_identifier": f"{plans['plans_name']}_{stage}",
            "spacing": spacing_mm,
            "patch_size": patch_size,
            "architecture": of_image["architecture"] | {"arch_kwargs": arch_kwargs},
        }
    configurations[LOWRES]["next_stage"] = CASCADE
    configurations[CASCADE] = {"inherits_from": FULLRES, "previous_stage": LOWRES}
    plans["configurations"] = configurations
    file.write_text(json.dumps(plans))
    return file
