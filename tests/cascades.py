"""Tiny datasets whose plan has a cascade, as that of large images does."""

import json
from pathlib import Path
from typing import Any

import torch
from phantoms import make_raw_dataset
from tiny_models import LABELS, REGIONS, make_checkpoint, make_dataset_json, make_plans, make_weights

from sam3dnet.network.cost import training_cost, training_seconds
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
    file = plan_dataset(
        name,
        folders,
        cost=training_cost,
        seconds=training_seconds,
        encoder="tiny",
        device="cpu",
        progress=False,
        choice=choice,
    )
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


def make_cascade_model(results: Path, folds: Any = (0,), first_folds: Any = (0,), labels: Any = LABELS) -> Path:
    """Write the model folders of both stages, with the smallest networks and random weights; give the second's."""
    plans = make_plans("resample_torch_fornnunet", 1)
    configurations = plans["configurations"]
    coarse = {"data_identifier": "low", "spacing": [1.5, 4.0, 2.0], "patch_size": [4, 6, 4], "next_stage": CASCADE}
    configurations[LOWRES] = configurations[FULLRES] | coarse
    configurations[CASCADE] = {"inherits_from": FULLRES, "previous_stage": LOWRES}
    for stage, channels, of_stage in ((LOWRES, 1, first_folds), (CASCADE, 3, folds)):
        folder = results / "Dataset901_Tiny" / f"nnUNetTrainerSAM3D__SAM3DPlans__{stage}"
        for fold in of_stage:
            (folder / f"fold_{fold}").mkdir(parents=True)
            weights = make_weights(9 if fold == "all" else fold, channels, 2 if labels is REGIONS else 3)
            checkpoint = make_checkpoint(weights, init_args={"configuration": stage})
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
        if of_stage:
            (folder / "plans.json").write_text(json.dumps(plans))
            (folder / "dataset.json").write_text(json.dumps(make_dataset_json(1, labels)))
    return folder
