"""The second stage of a cascade: full resolution's step, or a smaller one, since its input has more channels."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sam3dnet.planning.fingerprint import BLOCK
from sam3dnet.planning.fitting import CropFitter
from sam3dnet.planning.methods import CUSTOM_METHOD
from sam3dnet.planning.reducing import smaller_steps, step_of
from sam3dnet.planning.rules import NNUNET, Decision

NAME = "full resolution"
KEYS_OF_STEP = ("batch_size", "patch_size", "batch_dice", "architecture")


@dataclass(frozen=True)
class PlannedStage:
    """What is planned.

    Attributes:
        channels: Of the image.
        labels: Of the first stage, a channel each.
        changes: Of full resolution's configuration, where its step does not fit; None where there is no such stage.
        step_bytes: Of a training step.
        reason: Why there is none.
    """

    channels: int
    labels: int
    changes: dict[str, Any] | None = None
    step_bytes: int = 0
    reason: str = ""

    def decisions(self, memory_decision: Callable[[int], Decision]) -> list[Decision]:
        """Say what was decided."""
        if self.changes is None:
            return [Decision("input channels", None, f"no such stage: {self.reason}", "sam3dnet")]
        reason = f"{self.channels} of the image, and one for each of {self.labels} labels of the first stage"
        found = [Decision("input channels", self.channels + self.labels, reason, NNUNET)]
        if self.changes:
            step = step_of(self.changes)
            crop = " x ".join(map(str, step["patch_size"]))
            reason = "the step of 3d_fullres does not fit with these channels; smaller ones were tried in turn"
            found.append(Decision("step", f"crop {crop}, batch {step['batch_size']}", reason, "sam3dnet"))
        return [*found, memory_decision(self.step_bytes)]


class SecondStage:
    """Plans it.

    Args:
        fitter: Of the image's own channels; knows the budget.
        dataset_json: Of the dataset.
        block: Ours, of the fingerprint.
    """

    def __init__(self, fitter: CropFitter, dataset_json: Mapping[str, Any], block: Mapping[str, Any]):
        self._channels, self._labels = fitter.input_channels, count_labels(dataset_json)
        self._fitter = fitter.with_channels(self._channels + self._labels)
        self._block = block

    def of(self, fullres: Mapping[str, Any], transpose_forward: Sequence[int], method: str) -> PlannedStage:
        """Plan it for a configuration of full resolution, with as large a step as fits.

        Args:
            fullres: What it inherits.
            transpose_forward: nnU-Net's.
            method: Name of the method; a network of the user's own need not take further channels.
        """
        plans = {
            "configurations": {NAME: copy.deepcopy(dict(fullres))},
            "transpose_forward": list(transpose_forward),
            "sam3d": {"method": method},
        }
        try:
            for step in chain([fullres], smaller_steps(plans, NAME, {BLOCK: self._block})):
                if (needed := self._bytes_that_fit(step)) is not None:
                    changes = {} if step_of(step) == step_of(fullres) else {key: step[key] for key in KEYS_OF_STEP}
                    return PlannedStage(self._channels, self._labels, changes, needed)
        except Exception as error:  # whatever a network that is not ours raises
            if method != CUSTOM_METHOD:
                raise
            return self._none(f"the network does not take these channels ({type(error).__name__}: {error})")
        return self._none("a training step with these channels does not fit the memory at any crop size")

    def _bytes_that_fit(self, step: Mapping[str, Any]) -> int | None:
        """Measure a step; None if it does not fit."""
        needed = self._fitter.step_bytes(step["architecture"]["arch_kwargs"], step["batch_size"])
        limit = self._fitter.budget.bytes
        return needed if limit is None or needed <= limit else None

    def _none(self, reason: str) -> PlannedStage:
        return PlannedStage(self._channels, self._labels, reason=reason)


def count_labels(dataset_json: Mapping[str, Any]) -> int:
    """Count the labels that a first stage hands on: all but background and what is ignored, also where regions are."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(dict(dataset_json["labels"]), dataset_json.get("regions_class_order"))
    return len(manager.foreground_labels)
