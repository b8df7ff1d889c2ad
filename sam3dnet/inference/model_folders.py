"""Folders of trained models: which there are, of which dataset, and what their plans and descriptions say."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import CheckpointError, PlanError
from sam3dnet.preprocessing.cases import read_dataset_json
from sam3dnet.preprocessing.checks_description import DATASET_JSON
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.problems import shorten

_COPY_IT = "copy it from where the model was trained"
OUR_PLANS = "SAM3DPlans"
PLANS_FILE = "plans.json"  # of a model


@dataclass(frozen=True)
class TrainedModel:
    """A model folder of nnU-Net's results that has at least one fold with a checkpoint."""

    folder: Path
    dataset_name: str
    trainer: str
    plans_name: str
    configuration: str
    folds: tuple[int | str, ...]

    @property
    def name(self) -> str:
        """Give the name that nnU-Net has for such a folder."""
        return "__".join((self.trainer, self.plans_name, self.configuration))


def list_models(results: Path) -> list[TrainedModel]:
    """Return all models below nnUNet_results that have a fold with a checkpoint, by name."""
    models = []
    for plans_file in sorted(results.glob("Dataset*/*__*__*/plans.json")):
        folder = plans_file.parent
        folds = trained_folds(folder)
        if folds and folder.name.count("__") == 2:
            trainer, plans_name, configuration = folder.name.split("__")
            models.append(TrainedModel(folder, folder.parent.name, trainer, plans_name, configuration, folds))
    return models


def trained_folds(model_folder: Path) -> tuple[int | str, ...]:
    """Return the folds that have a checkpoint file, numbers first."""
    names = {path.parent.name.removeprefix("fold_") for path in model_folder.glob("fold_*/checkpoint_*.pth")}
    numbers = sorted(int(name) for name in names if name.isdigit())
    return (*numbers, *(["all"] if "all" in names else []))


def find_model(
    results: Path, dataset: int | str | None = None, *, plans_name: str = OUR_PLANS, configuration: str = "3d_fullres"
) -> Path:
    """Find the model of a dataset, or the only one that has been trained.

    Args:
        results: nnUNet_results.
        dataset: Number or name of the dataset; None if only one model is there.
        plans_name: Name of the plan.
        configuration: Configuration of the plan.

    Returns:
        The model folder, ...__SAM3DPlans__3d_fullres.

    Raises:
        CheckpointError: If there is none, or more than one; the candidates are listed.
    """
    trained = [m for m in list_models(results) if (m.plans_name, m.configuration) == (plans_name, configuration)]
    chosen = [model for model in trained if dataset is None or _is_dataset(model.dataset_name, str(dataset))]
    if len(chosen) == 1:
        return chosen[0].folder
    wanted = "a trained model" if dataset is None else f"a trained model for dataset {dataset}"
    option = "" if configuration == "3d_fullres" else f" -c {configuration}"
    if not chosen:
        there = _listing(trained) if trained else "there is none"
        raise CheckpointError(
            f"{results}: expected {wanted}{option}; {there}; train one first: sam3d_train DATASET fold0{option}"
        )
    raise CheckpointError(f"{results}: expected one model, {_listing(chosen)}; choose a dataset (-d)")


def require_model_folder(folder: Path) -> None:
    """See that a folder is that of a model, even of one in which something is missing.

    Raises:
        CheckpointError: If it is not; says which one may be meant.
    """
    if (folder / PLANS_FILE).is_file() or ((folder / DATASET_JSON).is_file() and trained_folds(folder)):
        return
    expected = f"expected the folder of a model, which holds {PLANS_FILE}, or a zip file of sam3d_export"
    if not folder.exists():
        raise CheckpointError(f"{folder}: is not there; {expected}")
    if folder.name.startswith("fold_") and (folder.absolute().parent / PLANS_FILE).is_file():
        raise CheckpointError(f"{folder}: is one fold; expected the folder of the model, {folder.absolute().parent}")
    below = [file.parent for depth in ("*", "*/*") for file in sorted(folder.glob(f"{depth}__*__*/{PLANS_FILE}"))]
    there = f"; there are {shorten([str(one) for one in below])}" if below else f"; it holds no {PLANS_FILE}"
    raise CheckpointError(f"{folder}: {expected}{there}")


def find_model_to_start_from(results: Path, dataset: int | str, configuration: str, plans_name: str) -> Path:
    """Find the model of a dataset that a plan or training of another one begins with.

    It is that of the same plans and configuration, else of `OUR_PLANS`, else the only one of the configuration, else
    the only one of the dataset.

    Args:
        results: nnUNet_results.
        dataset: Number or name of the dataset.
        configuration: That is going to be trained.
        plans_name: Of the plan that is going to be trained.

    Returns:
        The model folder.

    Raises:
        CheckpointError: If there is none, or nothing says which of several; they are listed.
    """
    there = [model for model in list_models(results) if _is_dataset(model.dataset_name, str(dataset))]
    alike = [model for model in there if model.configuration == configuration]
    for found in (*([m for m in alike if m.plans_name == name] for name in (plans_name, OUR_PLANS)), alike, there):
        if len(found) == 1:
            return found[0].folder
        if found:
            raise CheckpointError(
                f"{results}: expected one model of dataset {dataset} to start from, {_listing(found)}; name one by its "
                "folder"
            )
    others = list_models(results)
    listed = _listing(others) if others else "there is none"
    raise CheckpointError(
        f"{results}: expected a trained model for dataset {dataset}; {listed}; train one first, or start from another"
    )


def _is_dataset(name: str, wanted: str) -> bool:
    return name.startswith(f"Dataset{int(wanted):03d}_") if wanted.isdigit() else name == wanted


def _listing(models: Iterable[TrainedModel]) -> str:
    lines = [f"{m.dataset_name}/{m.folder.name} (folds {' '.join(map(str, m.folds))})" for m in models]
    return f"trained are {', '.join(lines)}"


def read_model_plans(model_folder: Path) -> dict[str, Any]:
    """Read plans.json of a model folder.

    Raises:
        PlanError: If it is missing or damaged.
    """
    content: dict[str, Any] = read_json(model_folder / PLANS_FILE, PlanError, _COPY_IT)
    return content


def read_model_dataset(model_folder: Path) -> dict[str, Any]:
    """Read dataset.json of a model folder.

    Raises:
        PlanError: If it is missing or damaged.
    """
    return read_dataset_json(model_folder, PlanError, _COPY_IT)
