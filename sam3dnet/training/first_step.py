"""The first step on a card is a measurement: what does not fit after all is made smaller before training begins."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sam3dnet.errors import PlanError
from sam3dnet.inference.economy import is_out_of_memory, release_cached
from sam3dnet.inference.model_folders import trained_folds
from sam3dnet.planning.reducing import configuration_of, smaller_steps, step_of, with_step
from sam3dnet.planning.rules import Decision
from sam3dnet.preprocessing.json_files import read_json, read_json_if_whole
from sam3dnet.training.distributed import gathered
from sam3dnet.training.drawing import draw_questions, finest
from sam3dnet.training.prompt_training import PromptTraining

logger = logging.getLogger(__name__)

RECORD = "first_step"  # in a plan's block "sam3d": for each configuration what was planned, and what fits
DECISION = "first step"


class Steppable(Protocol):
    """What of a trainer is needed here."""

    device: torch.device
    network: Any
    optimizer: Any
    loss: Any
    plans_manager: Any
    configuration_manager: Any
    configuration_name: str
    label_manager: Any
    batch_size: int
    num_input_channels: int
    preprocessed_dataset_folder_base: str
    output_folder_base: str
    fold: int | str
    prompts: PromptTraining | None

    def accumulate_gradients(self, batch: dict) -> Tensor:
        """Compute loss and gradients of a batch."""

    def follow(self, plans: dict[str, Any]) -> None:
        """Start anew, by another plan."""

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Return the share of the patch's size that each output has."""


def is_measured(device: torch.device) -> bool:
    """Tell whether the first step is a measurement: where memory is the device's own, and an estimate may be wrong."""
    return device.type == "cuda"


def fit_first_step(trainer: Steppable) -> int:
    """Try a step as planned, then ever smaller ones by the planner's rules, until one fits; the trainer follows it.

    Of several processes all must fit.

    Args:
        trainer: Initialised; its weights and state are left as they are, or start anew where the step was made smaller.

    Returns:
        The most bytes that were allocated at one time.

    Raises:
        PlanError: If the smallest step does not fit, or the first that could is another model than that of folds that
            have been trained.
    """
    plans, name = trainer.plans_manager.plans, trainer.configuration_name
    smaller = smaller_steps(plans, name, _fingerprint(trainer))
    tried = configuration_of(plans, name)
    while (peak := _try_step(trainer)) is None:
        step = next(smaller, None)
        if step is None:
            raise PlanError(
                f"a training step does not fit {trainer.device}, not even {_in_words(step_of(tried))}; close other "
                "programs on the card, or plan with --encoder small or for another --device"
            )
        _require_same_model(trainer, tried, step)
        tried = step
        trainer.follow(_with_configuration(plans, name, step))
    planned, fitting = step_of(configuration_of(plans, name)), step_of(tried)
    if fitting != planned:
        trainer.follow(_recorded(plans, name, tried, str(trainer.device)))
        logger.warning(
            "The planned step (%s) does not fit %s: training goes on with %s, and so will further folds",
            _in_words(planned),
            trainer.device,
            _in_words(fitting),
        )
    return peak


def _require_same_model(trainer: Steppable, tried: Mapping[str, Any], step: Mapping[str, Any]) -> None:
    """Refuse another crop, whose network has other tables of positions, where other folds have been trained."""
    others = [fold for fold in trained_folds(Path(trainer.output_folder_base)) if fold != trainer.fold]
    if others and step["patch_size"] != tried["patch_size"]:
        folds = " ".join(map(str, others))
        raise PlanError(
            f"a training step does not fit {trainer.device}, not even {_in_words(step_of(tried))}, and another crop "
            f"would make another model than that of fold(s) {folds}; train on a card like theirs, or plan anew for "
            "this one (--gpu-memory-target) and train all folds again"
        )


def as_fitted_before(plans: dict[str, Any], name: str, model_plans: Path) -> dict[str, Any]:
    """Return a plan with the step that the model's earlier folds were trained with, where that had to be smaller.

    Args:
        plans: Content of the dataset's plan.
        name: Of the configuration.
        model_plans: plans.json of the model; it may not be there.
    """
    before = read_json_if_whole(model_plans) or {}
    record = before.get("sam3d", {}).get(RECORD, {}).get(name)
    if not record or record["planned"] != step_of(configuration_of(plans, name)):
        return plans
    logger.info("As in earlier folds of this model: %s, since what was planned did not fit", _in_words(record["fits"]))
    return _recorded(plans, name, with_step(configuration_of(plans, name), record["fits"]), record["device"])


def _try_step(trainer: Steppable) -> int | None:
    """Compute gradients of a batch beside what the optimiser will keep; None where memory ends."""
    try:
        peak: int | None = _peak_of_step(trainer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        peak = None
    trainer.optimizer.zero_grad(set_to_none=True)
    release_cached(trainer.device)
    peaks = gathered(peak)
    return None if None in peaks else peak


def _peak_of_step(trainer: Steppable) -> int:
    is_card = trainer.device.type == "cuda"
    if is_card:
        torch.cuda.reset_peak_memory_stats(trainer.device)
    trained = [parameter for parameter in trainer.network.parameters() if parameter.requires_grad]
    states = [] if trainer.optimizer.state else [torch.empty_like(p) for p in (*trained, *trained)]  # AdamW's
    trainer.network.train()
    with _without_others(trainer):
        trainer.accumulate_gradients(make_batch(trainer))
    del states
    return int(torch.cuda.max_memory_allocated(trainer.device)) if is_card else 0


@contextmanager
def _without_others(trainer: Steppable) -> Iterator[None]:
    """Let a step exchange neither gradients nor Dice with other processes.

    Where memory ends in one process, the others would wait for its share for ever.
    """
    exchanging = [part for part in trainer.loss.modules() if getattr(part, "ddp", False)]  # nnU-Net's Dice of a batch
    for part in exchanging:
        part.ddp = False
    network = trainer.network
    try:
        with network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext():
            yield
    finally:
        for part in exchanging:
            part.ddp = True


def make_batch(trainer: Steppable) -> dict[str, Any]:
    """Make up a batch of the planned size, with a block of every class in its targets, and questions about them."""
    patch, batch_size = trainer.configuration_manager.patch_size, trainer.batch_size
    scales = trainer._get_deep_supervision_scales()
    targets = [_make_target(trainer.label_manager, batch_size, _scaled(patch, scale)) for scale in scales or [[1] * 3]]
    batch: dict[str, Any] = {
        "data": torch.zeros((batch_size, trainer.num_input_channels, *patch)),
        "target": targets if scales else targets[0],
    }
    if trainer.prompts is not None:
        classes = trainer.prompts.classes
        batch["questions"] = draw_questions(finest(batch["target"]), classes, np.random.default_rng(0))
    return batch


def _scaled(patch: Sequence[int], scale: Sequence[float]) -> list[int]:
    return [round(size * share) for size, share in zip(patch, scale, strict=True)]


def _make_target(label_manager: Any, batch_size: int, shape: Sequence[int]) -> Tensor:
    """Return a target as nnU-Net's loaders give it: a channel of labels, or one a region."""
    z, y, x = (slice(size // 4, size // 4 + max(1, size // 2)) for size in shape)
    if label_manager.has_regions:
        channels = len(label_manager.foreground_regions)
        target = torch.zeros(batch_size, channels + label_manager.has_ignore_label, *shape)
        target[:, :channels, z, y, x] = 1
        return target
    target = torch.zeros(batch_size, 1, *shape, dtype=torch.int16)
    target[:, 0, z, y, x] = max(label_manager.foreground_labels)
    return target


def _with_configuration(plans: dict[str, Any], name: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {**plans, "configurations": {**plans["configurations"], name: dict(configuration)}}


def _recorded(plans: dict[str, Any], name: str, configuration: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return a plan with another configuration, which says what was planned before."""
    planned, fits = step_of(configuration_of(plans, name)), step_of(configuration)
    block = plans.get("sam3d", {})
    reason = f"{_in_words(planned)} did not fit {device}"
    decision = asdict(Decision(f"{DECISION} ({name})", _in_words(fits), reason, "measured before training"))
    record = {**block.get(RECORD, {}), name: {"planned": planned, "fits": fits, "device": device}}
    changed = {**block, RECORD: record, "decisions": [*block.get("decisions", []), decision]}
    return {**_with_configuration(plans, name, configuration), "sam3d": changed}


def _in_words(step: Mapping[str, Any]) -> str:
    crop = "x".join(str(size) for size in step["patch_size"])
    return f"crop {crop}, batch {step['batch_size']}{', activations recomputed' if step['checkpointing'] else ''}"


def _fingerprint(trainer: Steppable) -> dict[str, Any]:
    file = Path(trainer.preprocessed_dataset_folder_base) / "dataset_fingerprint.json"
    content: dict[str, Any] = read_json(file, PlanError, "plan again")
    return content
