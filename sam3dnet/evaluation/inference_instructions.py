"""How to predict with the best model or ensemble: the lines to type, and nnU-Net's record of what was found."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam3dnet.evaluation.crossvalidation import CrossValidation, Scored


def instructions(best: Scored, postprocessing: str) -> list[str]:
    """Give the lines that say how to predict.

    Args:
        best: The model or ensemble; its folder holds nnU-Net's postprocessing.pkl.
        postprocessing: What is done after it, in words; "" for nothing.
    """
    then = ["Then apply the post-processing:", _apply(best.folder)] if postprocessing else []
    if len(best.members) == 1:
        (model,) = best.members
        if postprocessing and is_ours_to_predict(model):
            then = [f"It applies the post-processing by itself: it {postprocessing}."]
        return ["Predict with:", _prediction(model, "OUTPUT_FOLDER", probabilities=False), *then]
    outputs = [f"OUTPUT_FOLDER_MODEL_{number}" for number, _ in enumerate(best.members, start=1)]
    members = zip(best.members, outputs, strict=True)
    lines = [_prediction(model, output, probabilities=True) for model, output in members]
    average = shlex.join(["nnUNetv2_ensemble", "-i", *outputs, "-o", "OUTPUT_FOLDER"])
    return ["An ensemble is best. Predict with its members:", *lines, "Then average:", average, *then]


def _prediction(model: CrossValidation, output: str, probabilities: bool) -> str:
    if is_ours_to_predict(model):
        words = ["sam3d_predict", "-i", "INPUT_FOLDER", "-o", output, *_named(model)]
        words += ["-f", *map(str, model.folds), *["--save-probabilities"] * probabilities]
        return shlex.join(words)
    from nnunetv2.evaluation.find_best_configuration import generate_inference_command

    names = model.configuration, model.plans_name, model.trainer, model.folds
    return generate_inference_command(
        model.folder.parent.name, *names, output_folder=output, save_npz=probabilities
    ).replace("  ", " ")


def is_ours_to_predict(model: CrossValidation) -> bool:
    """Tell whether `sam3d_predict` predicts with a model: it is 3D."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = PlansManager(model.plans).get_configuration(model.configuration)
    return len(configuration.patch_size) == 3


def _named(model: CrossValidation) -> list[str]:
    """Name a model by dataset, configuration and plan, or by its folder where another trainer's has the same names."""
    alike = list(model.folder.parent.glob(f"*__{model.plans_name}__{model.configuration}/plans.json"))
    if len(alike) > 1:
        return ["-m", str(model.folder)]
    root = ["--root", model.root] if model.root else []
    return ["-d", model.folder.parent.name, "-c", model.configuration, "-p", model.plans_name, *root]


def _apply(folder: Path) -> str:
    words = ["nnUNetv2_apply_postprocessing", "-i", "OUTPUT_FOLDER", "-o", "OUTPUT_FOLDER_PP"]
    words += ["-pp_pkl_file", str(folder / "postprocessing.pkl"), "-plans_json", str(folder / "plans.json")]
    return shlex.join(words)


def inference_information(
    scored: Sequence[Scored], best: Scored, dice_after: float, ensembling_allowed: bool
) -> dict[str, Any]:
    """Give what nnU-Net's inference_information.json holds.

    Args:
        scored: All models and ensembles.
        best: The best of them.
        dice_after: Its mean Dice after post-processing.
        ensembling_allowed: Whether ensembles were looked for.
    """
    models = [one.members[0] for one in scored if len(one.members) == 1]
    return {
        "folds": list(models[0].folds),
        "dataset_name_or_id": models[0].folder.parent.name,
        "considered_models": [
            {"plans": one.plans_name, "configuration": one.configuration, "trainer": one.trainer} for one in models
        ],
        "ensembling_allowed": ensembling_allowed,
        "all_results": {one.name: one.dice for one in scored},
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": best.dice,
            "result_on_crossval_post_pp": dice_after,
            "postprocessing_file": str(best.folder / "postprocessing.pkl"),
            "some_plans_file": str(best.folder / "plans.json"),
            "selected_model_or_models": [
                {"configuration": one.configuration, "trainer": one.trainer, "plans_identifier": one.plans_name}
                for one in best.members
            ],
        },
    }
