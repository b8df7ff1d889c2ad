"""Trained models: which checkpoint of a fold counts, how networks and their folds are rebuilt."""

import copy
import logging
import pydoc
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sam3dnet.devices import prediction_type
from sam3dnet.errors import CheckpointError, PlanError
from sam3dnet.inference.economy import Economy
from sam3dnet.inference.model_folders import (
    TrainedModel,
    read_model_dataset,
    read_model_plans,
    require_model_folder,
    trained_folds,
)
from sam3dnet.inference.postprocessing import NO_POSTPROCESSING, Postprocessing
from sam3dnet.network.earlier_weights import completed
from sam3dnet.planning.sides import MirroredSides, mirrored_sides
from sam3dnet.preprocessing.cases import channel_names
from sam3dnet.preprocessing.reading import DatasetReader, reader_named

logger = logging.getLogger(__name__)

CHECKPOINT_ORDER = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
TRAINING_CASES = "training_cases"  # in a checkpoint's block "sam3d"; exported models do not have it
STARTED_FROM = "started_from"  # the same of the model that the training began with, where that is of the same dataset
PSEUDO_LABELLED = "pseudo_labelled"  # further images that it was trained on, by what another model found in them
EARLIER = "checkpoint_earlier.pth"  # of the training before, until the one that began anew has ended
Weights = Mapping[str, Tensor]
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and of DistributedDataParallel
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # of files written with numpy 1 and with numpy 2
NUMPY_MAKERS: tuple[Any, ...] = (np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0])  # of scalars, of arrays
NUMPY_TYPES_IN_CHECKPOINTS: list[Any] = [  # stock nnU-Net's checkpoints hold numpy scalars; none of these runs code
    *((maker, f"{module}.{maker.__name__}") for maker in NUMPY_MAKERS for module in NUMPY_MODULES),
    np.dtype,
    np.ndarray,
    np.dtypes.BoolDType,
    np.dtypes.Int32DType,
    np.dtypes.Int64DType,
    np.dtypes.UInt32DType,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]


@dataclass
class LoadedModel:
    """A network with the weights of one or more folds, and nnU-Net's view of its plan.

    Attributes:
        trained_in: Type of the training's matrix products, of all folds; None for float32, or where folds differ.
        economy: How images that exhaust the device's memory are predicted.
        input_labels: Of the previous stage that have a channel each in the network's input, after the image's; none
            without such a stage.
        previous: Of a cascade's second stage, the first; see `cascade.py`.
        postprocessing: What users' label maps go through; a validation's do not.
        training_cases: Names of those that any of its folds was trained on; see `training_cases`.
        started_from: Names of those that the models before them were trained on, where these are of the same dataset.
        pseudo_labelled: Names of images that were trained on by what another model had found in them.
    """

    network: nn.Module
    weights: list[dict[str, Tensor]]
    checkpoint_files: list[Path]
    plans: Any
    configuration: Any
    labels: Any
    dataset_json: dict[str, Any]
    mirror_axes: tuple[int, ...]
    trained_in: torch.dtype | None = None
    economy: Economy = field(default_factory=Economy)
    input_labels: tuple[int, ...] = ()
    previous: "LoadedModel | None" = None
    postprocessing: Postprocessing = NO_POSTPROCESSING
    training_cases: frozenset[str] = frozenset()
    started_from: frozenset[str] = frozenset()
    pseudo_labelled: frozenset[str] = frozenset()

    @property
    def fold_folders(self) -> list[Path]:
        """Where its folds were trained."""
        return [file.parent for file in self.checkpoint_files]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def precision(self) -> torch.dtype | None:
        """Type that matrix products are computed in; None: as they come."""
        return prediction_type(self.device, self.trained_in)

    @cached_property
    def reader(self) -> DatasetReader:
        """Reads images and label maps of the model's dataset."""
        return reader_named(str(self.plans.plans["image_reader_writer"]), self.dataset_json)

    @cached_property
    def sides(self) -> MirroredSides | None:
        """Which classes become each other in the mirror."""
        sides = mirrored_sides(self.plans.plans, self.dataset_json)
        return sides.with_input(self.num_images, self.input_labels) if sides and self.input_labels else sides

    @property
    def num_images(self) -> int:
        """Channels of an image, which come first in the network's input."""
        return len(channel_names(self.dataset_json))

    @cached_property
    def names_that_differ(self) -> frozenset[str]:
        """Names of the weights that are not the same in all folds; a frozen encoder's are."""
        return names_that_differ(self.weights)

    def network_of(self, fold: int) -> nn.Module:
        """Give the network with the weights of one of the folds, until it is asked for that of another one."""
        load_into(self.network, self.weights[fold], self.names_that_differ)
        return self.network


def trained_model(model_folder: Path) -> TrainedModel:
    """Say what model lies in a folder, also one whose name is none of nnU-Net's: then by its plans and a checkpoint.

    Raises:
        CheckpointError: If it is needed and no checkpoint opens.
        PlanError: If the plans are missing or damaged.
    """
    folds, plans = trained_folds(model_folder), read_model_plans(model_folder)
    above = model_folder.absolute().parent.name
    dataset = above if above.startswith("Dataset") else str(plans["dataset_name"])
    parts = model_folder.absolute().name.split("__")
    if len(parts) != 3 or parts[2] not in plans["configurations"]:
        if not folds:
            raise CheckpointError(f"{model_folder}: no fold is trained, so that nothing says of what plan it is")
        _, checkpoint = choose_checkpoint(model_folder / f"fold_{folds[0]}")
        parts = [checkpoint["trainer_name"], str(plans["plans_name"]), checkpoint["init_args"]["configuration"]]
    trainer, plans_name, configuration = parts
    return TrainedModel(model_folder, dataset, trainer, plans_name, configuration, folds)


def choose_checkpoint(fold_folder: Path, name: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Open the checkpoint of a fold: the one asked for, else final, best, latest, the first that opens.

    Args:
        fold_folder: The folder.
        name: Of the file, or what it has between "checkpoint_" and ".pth".

    Raises:
        CheckpointError: If none opens; says which are damaged.
    """
    names = CHECKPOINT_ORDER if name is None else (checkpoint_file_name(name),)
    problems = []
    for candidate in names:
        path = fold_folder / candidate
        if name is None and not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; using %s", problem, path.name)
        if name is None and path.name != CHECKPOINT_ORDER[0] and (fold_folder / EARLIER).is_file():
            logger.warning(
                "Warning: %s is of a training that began anew and has not ended; --checkpoint earlier takes the one "
                "before it",
                path,
            )
        return path, checkpoint
    found = "; ".join(problems) or f"expected one of {', '.join(CHECKPOINT_ORDER)}, there is none"
    raise CheckpointError(
        f"{fold_folder}: no checkpoint to predict with: {found}; train this fold, or choose other folds"
    )


def checkpoint_file_name(name: str) -> str:
    """Complete "best" to "checkpoint_best.pth"; whole file names stay."""
    return name if name.endswith(".pth") else f"checkpoint_{name}.pth"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Map a checkpoint of nnU-Net's layout into memory without running code from it.

    Raises:
        CheckpointError: If the file is missing, truncated, or not such a checkpoint.
    """
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pth"))) or "no checkpoint"
        raise CheckpointError(f"{path} does not exist; there is {there}")
    torch.serialization.add_safe_globals(NUMPY_TYPES_IN_CHECKPOINTS)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler met
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path.name} is truncated, damaged or not a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "init_args"} <= checkpoint.keys():
        raise CheckpointError(f"{path.name} is not a checkpoint of an nnU-Net trainer: no network_weights or init_args")
    return checkpoint


def load_model(
    model_folder: Path,
    folds: Sequence[int | str] | None = None,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Rebuild the network of a model folder from its own plan and load the weights of its folds.

    Args:
        model_folder: Folder with plans.json, dataset.json and the folds.
        folds: Which folds; None for all trained ones ("all" only where no numbered fold is).
        checkpoint: Of each fold, such as "best" or "checkpoint_best.pth"; None for the final one, else the best, else
            the latest.
        device: Where the network goes.

    Returns:
        The network in evaluation mode with the weights of the first fold loaded, and the weights of all folds.

    Raises:
        CheckpointError: If the folder is no model's; or a fold or its checkpoint is missing, damaged, or of another
            network.
        PlanError: If the plan cannot be read, or its network class cannot be found, or it is a 2D one.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    require_model_folder(model_folder)
    plans = PlansManager(read_model_plans(model_folder))
    dataset_json = read_model_dataset(model_folder)
    opened = [choose_checkpoint(model_folder / f"fold_{f}", checkpoint) for f in _choose_folds(model_folder, folds)]
    first = opened[0][1]
    configuration = plans.get_configuration(first["init_args"]["configuration"])
    _require_3d(model_folder, configuration)
    labels = plans.get_label_manager(dataset_json)
    network = build_network(plans, configuration, labels, dataset_json)
    weights = [completed(unwrapped(content["network_weights"]), network.state_dict()) for _, content in opened]
    for (path, _), state in zip(opened, weights, strict=True):
        _require_same_network(network, state, path)
    network.load_state_dict(weights[0])
    return LoadedModel(
        network=network.to(device).eval(),
        weights=weights,
        checkpoint_files=[path for path, _ in opened],
        plans=plans,
        configuration=configuration,
        labels=labels,
        dataset_json=dataset_json,
        mirror_axes=mirrored_axes(first.get("inference_allowed_mirroring_axes"), plans.plans, dataset_json),
        trained_in=trained_in(content for _, content in opened),
        input_labels=input_labels(configuration, labels),
        training_cases=training_cases([content for _, content in opened]),
        started_from=training_cases([content for _, content in opened], STARTED_FROM),
        pseudo_labelled=training_cases([content for _, content in opened], PSEUDO_LABELLED),
    )


def input_labels(configuration: Any, labels: Any) -> tuple[int, ...]:
    """Give the labels that a cascade's second stage sees of the first; none for other configurations."""
    return () if configuration.previous_stage_name is None else tuple(labels.foreground_labels)


def mirrored_axes(
    for_nnunet: Sequence[int] | None, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> tuple[int, ...]:
    """Give the axes along which a model's windows are mirrored.

    Args:
        for_nnunet: What a checkpoint or trainer tells nnU-Net, None if nothing is mirrored; the axis along which sides
            are swapped, which nnU-Net does not do, is not among them.
        plans: Of the model.
        dataset_json: Of the model.
    """
    sides = mirrored_sides(plans, dataset_json)
    return tuple(sorted({int(axis) for axis in for_nnunet or ()} | ({sides.axis} if sides else set())))


def trained_in(checkpoints: Iterable[Mapping[str, Any]]) -> torch.dtype | None:
    """Tell in which type all of some checkpoints were trained; stock nnU-Net's say nothing, and were in fp16.

    Returns:
        None for float32, or where they differ.
    """
    names = {content.get("sam3d", {"trained_in": "float16"}).get("trained_in") for content in checkpoints}
    (name,) = names if len(names) == 1 else (None,)
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name or "")


def training_cases(checkpoints: Iterable[Mapping[str, Any]], key: str = TRAINING_CASES) -> frozenset[str]:
    """Name the cases that the weights of some checkpoints were trained on.

    Args:
        checkpoints: Their content.
        key: `TRAINING_CASES`; `STARTED_FROM` for those of the models that they began with, or `PSEUDO_LABELLED`.

    Returns:
        As far as they say: stock nnU-Net's, our earlier ones and those of exported models do not, and give none.
    """
    return frozenset(name for content in checkpoints for name in content.get("sam3d", {}).get(key, ()))


def _choose_folds(model_folder: Path, folds: Sequence[int | str] | None) -> Sequence[int | str]:
    trained = trained_folds(model_folder)
    if not trained:
        raise CheckpointError(f"{model_folder}: no fold has a checkpoint; train one first: sam3d_train DATASET fold0")
    if not folds:
        return [fold for fold in trained if fold != "all"] or trained
    missing = [fold for fold in folds if fold not in trained]
    if missing:
        raise CheckpointError(
            f"{model_folder}: fold(s) {' '.join(map(str, missing))} asked for, trained are "
            f"{' '.join(map(str, trained))}; train the fold, or choose from these with -f"
        )
    return folds


def _require_3d(model_folder: Path, configuration: Any) -> None:
    if len(configuration.patch_size) != 3:
        raise PlanError(f"{model_folder.name}: a 2D configuration; sam3dnet predicts 3D ones, use nnUNetv2_predict")


def build_network(plans: Any, configuration: Any, labels: Any, dataset_json: dict[str, Any]) -> nn.Module:
    """Build the network that a plan names, without deep supervision.

    Raises:
        PlanError: If the class cannot be found or does not take the plan's arguments.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    name = configuration.network_arch_class_name
    try:
        found = pydoc.locate(name)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):  # a plan must not have anything else called
            raise ImportError("no such network" if found is None else "not a network")
        return get_network_from_plans(
            name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            determine_num_input_channels(plans, configuration, dataset_json),
            labels.num_segmentation_heads,
            allow_init=False,
            deep_supervision=False,
        )
    except (ImportError, pydoc.ErrorDuringImport, TypeError) as error:
        raise PlanError(
            f"the plan's network {name} cannot be built ({error}); install the version it was made with"
        ) from error


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the network's own names, without the prefixes that wrappers add."""
    return {_without_prefixes(name): value for name, value in state.items()}


def _without_prefixes(name: str) -> str:
    stripped = name
    for prefix in WRAPPER_PREFIXES * 2:  # a compiled network may be wrapped, and a wrapped one compiled
        stripped = stripped.removeprefix(prefix)
    return stripped


def _require_same_network(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in state.items()}
    if expected != there:
        differing = sorted(n for n in expected.keys() | there.keys() if expected.get(n) != there.get(n))
        raise CheckpointError(
            f"{path}: its weights are not those of the network in plans.json; {len(differing)} differ, such as "
            f"{differing[0]}: expected {expected.get(differing[0])}, found {there.get(differing[0])}; train it again"
        )


def names_that_differ(weights: Sequence[Weights]) -> frozenset[str]:
    """Name the weights that are not the same in all folds."""
    first, *others = weights
    return frozenset(
        name for name, value in first.items() if not all(torch.equal(value, other[name]) for other in others)
    )


@torch.no_grad()
def load_into(network: nn.Module, weights: Weights, names: Collection[str]) -> None:
    """Copy the weights of these names into a network, in place."""
    there = network.state_dict()
    for name in names:
        there[name].copy_(weights[name])


def networks_of_folds(network: nn.Module, weights: Sequence[Weights], differing: Collection[str]) -> list[nn.Module]:
    """Make a network for each fold; they share the tensors of all that does not differ, also with the network given.

    Args:
        network: With the weights of any of the folds.
        weights: Of each fold.
        differing: Names of the weights that are not the same in all folds.
    """
    shared = [value for name, value in _tensors(network) if name not in differing]
    networks = []
    for of_fold in weights:
        mine = copy.deepcopy(network, {id(value): value for value in shared})
        load_into(mine, of_fold, differing)
        networks.append(mine)
    return networks


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """List parameters and buffers under all their names."""
    return [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
