"""A model card: what a model segments, from what, how well, and what it may be used for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from sam3dnet.inference.model_folders import TrainedModel
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.training.validation import FOLDER, SUMMARY

NOT_SAID = "not said by those who exported it"


def model_card(
    model: TrainedModel,
    plans: Mapping[str, Any],
    described: Mapping[str, Any],
    folds: Sequence[int | str],
    licence: str | None,
    intended_use: str | None,
) -> str:
    """Write the card of a model as Markdown; no case is named.

    Args:
        model: As trained.
        plans: plans.json.
        described: What is exported of dataset.json.
        folds: That are exported.
        licence: Of the model, as an SPDX identifier or in words.
        intended_use: In words.
    """
    name, configuration = plans["dataset_name"], model.configuration
    planned = PlansManager(dict(plans)).get_configuration(configuration)
    classes = {label: value for label, value in described["labels"].items() if label not in ("background", "ignore")}
    channels = described.get("channel_names", described.get("modality", {}))
    fingerprint = read_json_if_whole(model.folder / "dataset_fingerprint.json") or {}
    lines = [
        "---",
        *([f"license: {licence}"] if licence and " " not in licence else []),
        "tags: [medical-imaging, segmentation, sam3dnet, nnunet]",
        "---",
        f"# {name}",
        "",
        f"Segments {', '.join(classes)} in 3D images with the channels {', '.join(channels.values())}.",
        "",
        f"- Licence: {licence or NOT_SAID}",
        f"- Intended use: {intended_use or NOT_SAID}",
        "- Not a medical product; look at every result.",
        f"- Trained on {_cases(fingerprint)} of {described.get('name', name)}"
        + "".join(f", {described[key]}" for key in ("reference", "licence", "license") if described.get(key)),
        f"- Voxels {' x '.join(f'{mm:.4g}' for mm in planned.spacing)} mm (z, y, x), windows of "
        f"{' x '.join(map(str, planned.patch_size))}",
        f"- Files end in {described['file_ending']}",
        "",
        *_validation(model.folder, folds, described),
        "",
        "## How to use it",
        "",
        "```bash",
        "pip install sam3dnet",
        "sam3d_predict -i IMAGES -o OUT -m THIS_FILE_OR_FOLDER",
        "```",
        "",
        "Or with stock nnU-Net: `nnUNetv2_install_pretrained_model_from_zip THIS_FILE`, then `nnUNetv2_predict "
        f"-d {name} -c {configuration} -tr {model.trainer} -p {plans['plans_name']} "
        f"-f {' '.join(map(str, folds))}`, with `nnUNet_extTrainer=$(sam3d_info --ext-trainer)`.",
        "",
    ]
    return "\n".join(lines)


def _cases(fingerprint: Mapping[str, Any]) -> str:
    count = len(fingerprint.get("spacings", ()))
    return f"{count} cases" if count else "cases"


def _validation(model_folder: Path, folds: Sequence[int | str], described: Mapping[str, Any]) -> list[str]:
    """Tell the Dice of each class on the folds' validation cases; of fold all, which has seen them, nothing."""
    names = {_key(value): label for label, value in described["labels"].items()}
    found: dict[str, list[float]] = {}
    cases = 0
    for fold in folds:
        summary = read_json_if_whole(model_folder / f"fold_{fold}" / FOLDER / SUMMARY) if fold != "all" else None
        for case in (summary or {}).get("metric_per_case", ()):
            cases += 1
            for key, metrics in case["metrics"].items():
                found.setdefault(names.get(key, key), []).append(float(metrics["Dice"]))
    if not cases:
        return ["It was not validated on cases that it had not seen."]
    rows = [f"| {label} | {np.nanmean(dice):.3f} |" for label, dice in found.items() if not np.isnan(dice).all()]
    said = f"Dice on {cases} cases of validation that were not trained on:"
    return [said, "", "| Class | Dice |", "|---|---|", *rows]


def _key(value: Any) -> str:
    """Write a label as the keys of nnU-Net's summary.json are."""
    return str(tuple(value)) if isinstance(value, list | tuple) else str(value)
