"""sam3d_info: versions, devices, folders, and the models found."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sam3dnet.cli.command import run_command
from sam3dnet.cli.completion import completion_script
from sam3dnet.errors import CheckpointError, Sam3dError
from sam3dnet.settings.choices import EncoderName, FidelityName, MethodName, TuningName

if TYPE_CHECKING:
    from sam3dnet.inference.model_folders import TrainedModel

_PACKAGES = ("sam3dnet", "torch", "nnunetv2", "segment-anything", "monai", "SimpleITK", "numpy", "scipy")
_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def info(
    *,
    root: Path | None = None,
    ext_trainer: bool = False,
    completion: Literal["bash", "zsh", "tcsh"] | None = None,
    weights: bool = False,
    parameters: bool = False,
    method: MethodName = "sam3d",
    fidelity: FidelityName | None = None,
    tuning: TuningName = "spatial-adapter",
    encoder: EncoderName = "vit_b",
    classes: int = 2,
    channels: int = 1,
    no_prompts: bool = False,
    json: bool = False,
) -> list[str]:
    """Tell versions, devices, folders and the trained models found.

    Args:
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
        ext_trainer: Print nothing but the folder to set nnUNet_extTrainer to, so that stock nnU-Net finds our trainer.
        completion: Print nothing but a script that completes our commands in this shell; for bash and zsh, type
            eval "$(sam3d_info --completion bash)" or write this line into the shell's start file.
        weights: Print nothing but the files of SAM's weights: whether each is here and its digest right, where it is
            looked for, and what to type on a machine with internet to get it.
        parameters: Print nothing but the parameters of a network, tuned and in total, of each part; the options that
            follow say which.
        method: Network whose parameters are counted.
        fidelity: For 3dsam-adapter, without the defects of the published code, or with them; without it corrected.
        tuning: How the image encoder is tuned.
        encoder: Size of the image encoder; vit_b, vit_l and vit_h as if they held SAM's weights.
        classes: Outputs of the network, background among them.
        channels: Channels of the image.
        no_prompts: Leave out the prompt encoder.
        json: Print the parameters as JSON.

    Returns:
        The lines to print.

    Raises:
        PlanError: If the method does not have the fidelity.
        CheckpointError: If the registry of weights that a variable names is wrong.
    """
    if completion:
        return [completion_script(completion)]
    if weights:
        from sam3dnet.cli.weights_table import weights_lines

        return weights_lines()
    if parameters:
        return _parameters(method, fidelity, tuning, not no_prompts, encoder, classes, channels, json)
    if ext_trainer:
        return [str(ext_trainer_folder())]
    folders = {name: root / name if root else os.environ.get(name) for name in _VARIABLES}
    return [
        *_section("Versions", {"Python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}),
        *_section("Devices", _devices()),
        *_section("Folders", {name: str(folder or "not set") for name, folder in folders.items()}),
        *_section("SAM weights", _sam_weights()),
        *_section("Models", _models(folders["nnUNet_results"])),
    ]


def _parameters(
    method: str, fidelity: str | None, tuning: str, prompts: bool, encoder: str, classes: int, channels: int, json: bool
) -> list[str]:
    from sam3dnet.cli.parameter_table import parameter_lines
    from sam3dnet.planning.methods import MethodChoice

    return parameter_lines(MethodChoice(method, fidelity, tuning, prompts), encoder, classes, channels, json)


def ext_trainer_folder() -> Path:
    """Folder that holds nothing but the module that names our trainer for stock nnU-Net."""
    return Path(__file__).resolve().parents[1] / "nnunet_ext"


def _section(title: str, entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries), default=0)
    return [f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in entries.items() or {"none": ""}.items())]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed; type: pip install {package}"


def _devices() -> dict[str, str]:
    from sam3dnet.devices import available_devices

    return available_devices()


def _sam_weights() -> dict[str, str]:
    from sam3dnet.network.weights_file import places
    from sam3dnet.network.weights_registry import known_files

    try:
        found = {f"{file.family} {file.encoder}": places(file) for file in known_files()}
    except CheckpointError as error:
        return {"error": str(error)}
    here = {name: next((str(path) for path in paths if path.is_file()), None) for name, paths in found.items()}
    return {name: path or "not here; sam3d_info --weights says how to get it" for name, path in here.items()}


def _models(results: Path | str | None) -> dict[str, str]:
    from sam3dnet.inference.model_folders import list_models

    models = list_models(Path(results)) if results else []
    return {f"{model.dataset_name}/{model.folder.name}": _in_words(model, models) for model in models}


def _in_words(model: "TrainedModel", models: Sequence["TrainedModel"]) -> str:
    """Say which folds are trained, and what label maps go through; what is wrong with that is said of this model."""
    from sam3dnet.inference.postprocessing import FILE, read_postprocessing
    from sam3dnet.preprocessing.cases import read_dataset_json

    folds = _folds(model, models)
    of_folds = [model.folder / f"fold_{fold}" for fold in model.folds]
    if not any((folder / FILE).is_file() for folder in (model.folder, *of_folds)):
        return folds
    try:
        dataset_json = read_dataset_json(model.folder, CheckpointError)
        after = read_postprocessing(model.folder, dataset_json, of_folds).in_words(dataset_json)
    except Sam3dError:
        return f"{folds}; {FILE} or dataset.json cannot be used, sam3d_predict says why"
    return f"{folds}; {after}" if after else folds


def _folds(model: "TrainedModel", models: Sequence["TrainedModel"]) -> str:
    """Say which folds are trained, and in a cascade which of the first stage."""
    from sam3dnet.inference.cascade import previous_model_folder
    from sam3dnet.preprocessing.json_files import read_json_if_whole

    folds = f"folds {' '.join(map(str, model.folds))}"
    plan = read_json_if_whole(model.folder / "plans.json") or {}
    stage = plan.get("configurations", {}).get(model.configuration, {}).get("previous_stage")
    if stage is None:
        return folds
    before = [m for m in models if m.folder.absolute() == previous_model_folder(model.folder, stage)]
    first = f"folds {' '.join(map(str, before[0].folds))} of {stage}" if before else f"no {stage}, which it needs"
    return f"{folds}, after {first}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(info, "sam3d_info", argv, exit_status=_print_lines)


def _print_lines(lines: list[str]) -> int:
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
