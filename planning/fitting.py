"""Find the tokens and the crop whose training step fits the budget, from a few looks at the measured cost."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sam3dnet.planning import rules
from sam3dnet.planning.encoder import WITHOUT
from sam3dnet.planning.rules import Budget, Decision

# Memory and seconds are nearly straight lines in the voxels of a crop: few looks find the largest that fits.
COST_CALLS = 6
FIRST_LOOK = 1 / 8  # of the largest crop
AIM, FILLED = 0.98, 0.95  # of the budget, so that a guess is not just beyond it; of the crop that would fit

Cost = Callable[[dict[str, Any], int, int, int], float]
EncoderChoice = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """The grid that a configuration resamples to.

    Attributes:
        spacing_mm: (Z, Y, X).
        median_shape: Median image in voxels.
        object_extent: 95th percentile of the largest objects in voxels; None if not known.
    """

    spacing_mm: Sequence[float]
    median_shape: Sequence[float]
    object_extent: Sequence[float] | None


@dataclass(frozen=True)
class Fit:
    """A network that fits the budget: its crop, strides and the memory of a step of the smallest batch.

    Attributes:
        image_load: What a further image of the batch takes of the budget at least, as a share of it.
    """

    patch: Decision
    token_stride: Decision
    strides: Decision
    arch_kwargs: dict[str, Any]
    step_bytes: int
    kernels: Decision | None = None
    features: Decision | None = None
    image_load: float = 0.0

    def decisions(self) -> list[Decision]:
        """Say what was decided."""
        decided = [self.token_stride, self.strides, self.patch]
        if self.kernels is not None and any(1 in kernel for kernel in self.kernels.value):
            decided.insert(2, self.kernels)
        if self.features is not None and any(1 in stride for stride in self.strides.value[1:-1]):
            decided.insert(2, self.features)
        if self.arch_kwargs.get("checkpointing"):
            reason = "activations are recomputed in the backward pass: no crop that is large enough fits without"
            decided.append(Decision("checkpointing", True, reason, "sam3dnet"))
        return decided

    @property
    def voxels(self) -> int:
        """Voxels of the crop."""
        return math.prod(self.patch.value)


class CropFitter:
    """Fits crops and batches to a budget.

    Args:
        cost: (arch_kwargs, input channels, outputs, batch size) -> bytes of a training step; seconds a call.
        budget: What a step may cost.
        input_channels: Channels of the image.
        output_channels: Channels of the logits.
        network_options: What else the network's arguments hold, whatever its size.
        finest_strides: Token strides to try for the finest axis, best first; None leaves them to the rules.
        single_output: Whether the network has logits at full resolution alone.
        flat_kernels: Whether the network has a kernel for each level, and tokens of any stride.
        crop_multiple: Crops are multiples of it, as well as of the tokens.
        seconds: As `cost`, the seconds that a training step takes on a core; needed where the budget has any.
    """

    def __init__(
        self,
        cost: Cost,
        budget: Budget,
        input_channels: int,
        output_channels: int,
        network_options: Mapping[str, Any],
        finest_strides: Sequence[int] | None = None,
        single_output: bool = False,
        flat_kernels: bool = False,
        crop_multiple: int = 1,
        seconds: Cost | None = None,
    ) -> None:
        self.cost = cost
        self.seconds = seconds
        self.budget = budget
        self.network_options = network_options
        self.finest_strides = finest_strides
        self.single_output = single_output
        self.flat_kernels = flat_kernels
        self.crop_multiple = crop_multiple
        self.input_channels = input_channels
        self.output_channels = output_channels
        self._measured: dict[str, int] = {}
        self._timed: dict[str, float] = {}
        self._load_a_voxel: dict[str, tuple[Grid, float]] = {}
        if budget.is_time and seconds is None:
            raise ValueError("a budget of seconds needs an estimate of the seconds of a step (seconds=)")

    def with_channels(self, input_channels: int) -> CropFitter:
        """Give the same for another number of input channels."""
        other = copy.copy(self)
        other.input_channels, other._measured, other._timed, other._load_a_voxel = input_channels, {}, {}, {}
        return other

    def find(self, grid: Grid, encoder: EncoderChoice) -> Fit | None:
        """Find the finest affordable tokens, else the coarsest that fit; None if none do.

        Activations are recomputed in the backward pass only where nothing is affordable without.
        """
        plain = self.find_with(grid, encoder)
        can_recompute = self.budget.bytes is not None and not self.budget.is_time and encoder["encoder"] != "none"
        if not can_recompute or (plain is not None and self.is_affordable(plain, grid)):
            return plain
        recomputing = self.find_with(grid, {**encoder, "checkpointing": True})
        if plain is None or (recomputing is not None and self.is_affordable(recomputing, grid)):
            return recomputing
        return plain

    def find_with(self, grid: Grid, encoder: EncoderChoice) -> Fit | None:
        """Find the finest affordable tokens for an encoder as it is, else the coarsest that fit; None if none do."""
        found, finest_first = None, self.token_strides(grid, encoder)
        for token_stride in finest_first:
            or_none = token_stride is not finest_first[-1] and not self.is_convolutional(encoder)
            fit = self.fit_to_budget(grid, token_stride, encoder, or_none)
            found = fit or found
            if found is not None and self.is_affordable(found, grid):
                return found
        left_out = [] if found else finest_first[-2::-1]
        return found or next(filter(None, (self.fit_to_budget(grid, one, encoder) for one in left_out)), None)

    @property
    def goes_by_time(self) -> bool:
        """Whether tokens are as coarse as their step must be short; a published system's are as published."""
        return self.budget.is_time and self.flat_kernels

    def is_convolutional(self, encoder: EncoderChoice) -> bool:
        """Whether the network is ours, without a transformer: what it calls tokens is its deepest level."""
        return self.flat_kernels and encoder["encoder"] == WITHOUT

    def token_strides(self, grid: Grid, encoder: EncoderChoice) -> list[Decision]:
        """List the token strides to try, best first: those whose step is short enough, where time is short."""
        place, convolutional = (grid.spacing_mm, grid.median_shape), self.is_convolutional(encoder)
        rule = rules.stride_candidates(encoder["pretrained"], self.budget.is_time, grid.median_shape, convolutional)
        strides = [rules.choose_token_stride(finest, *place, convolutional) for finest in self.finest_strides or rule]
        if self.goes_by_time and not convolutional:
            strides += rules.coarser_token_strides(strides[-1].value, *place)
            while strides[1:] and self.times_a_cube(grid, strides[0], encoder) > rules.LONGEST_STEP:
                strides.pop(0)
        return strides

    def is_affordable(self, fit: Fit, grid: Grid) -> bool:
        """Tell whether a fit's tokens may stay as they are."""
        if self.is_convolutional(fit.arch_kwargs):
            return rules.leaves_features(fit.patch.value, fit.token_stride.value)
        if self.goes_by_time:
            return True
        need = rules.patch_need(grid.object_extent, grid.median_shape, fit.token_stride.value)
        return rules.is_affordable(fit.patch.value, need, fit.token_stride.value)

    def times_a_cube(self, grid: Grid, token_stride: Decision, encoder: EncoderChoice) -> float:
        """Tell how many times as long a step takes as one of as many isotropic voxels, on a crop of the least size."""
        if min(token_stride.value) == max(token_stride.value):
            return 1.0
        fit = self.fit_of(grid, token_stride, encoder, rules.CPU_LEAST_VOXELS)
        side = rules.TOKEN_STRIDE * max(1, round(fit.voxels ** (1 / 3) / rules.TOKEN_STRIDE))
        of_cube = [rules.TOKEN_STRIDE] * 3
        strides = rules.choose_stage_strides(of_cube, [1.0] * 3).value
        cube = {**fit.arch_kwargs, "patch_size": [side] * 3, "token_stride": of_cube, "strides": strides}
        cube.pop("kernels", None)
        cube.pop("features", None)
        return self.step_seconds(fit.arch_kwargs) / self.step_seconds(cube) * side**3 / fit.voxels

    def fit_to_budget(
        self, grid: Grid, token_stride: Decision, encoder: EncoderChoice, or_none: bool = False
    ) -> Fit | None:
        """Find a crop whose step of the smallest batch nearly fills the budget; None if one token does not fit.

        Where the budget is time, the objects' crop may take longer, and no crop is smaller than is of use.

        Args:
            grid: The grid of the crops.
            token_stride: Voxels of a token.
            encoder: The encoder.
            or_none: Whether to look no further, and give None, where the crop will be too small to be affordable.
        """
        found = self._fill(grid, token_stride, encoder, or_none)
        if found is None or self.budget.seconds is None or self.budget.cover_seconds is None:
            return found
        need = math.prod(rules.patch_need(grid.object_extent, grid.median_shape, token_stride.value))
        longer = self.budget.cover_seconds / self.budget.seconds
        if found.voxels < need <= 2 * longer * found.voxels:
            covering = self.fit_of(grid, token_stride, encoder, need)
            if self.load(covering, self.budget.cover_seconds) <= 1:
                return covering
        if found.voxels < rules.CPU_LEAST_VOXELS:
            least = self.fit_of(grid, token_stride, encoder, rules.CPU_LEAST_VOXELS)
            if self.load(least, None) <= 1:
                return least
        return found

    def _fill(self, grid: Grid, token_stride: Decision, encoder: EncoderChoice, or_none: bool) -> Fit | None:
        """Find the largest crop within the budget; see `fit_to_budget`.

        Looks begin at a small crop, since a larger one takes longer to trace, or at what a network that differs in the
        crop alone lets expect.
        """
        most, time = self.budget.patch_voxels, self.budget.seconds
        found = smallest = self.fit_of(grid, token_stride, encoder, 0)
        of_smallest = self.load(smallest, time)
        if self.load(smallest, None) > 1:
            return None
        network = json.dumps({**smallest.arch_kwargs, "patch_size": None})
        guess, beyond = most * FIRST_LOOK if time is None else rules.CPU_LEAST_VOXELS, math.inf
        before, expected = self._load_a_voxel.get(network, (grid, 0.0))
        if before != grid:  # on the same grid the same looks need no new trace
            guess = min(most, smallest.voxels + (AIM - of_smallest) / expected)
        for _ in range(COST_CALLS):
            looked = self.fit_of(grid, token_stride, encoder, guess)
            load = self.load(looked, time)
            if load > 1:
                beyond = min(beyond, looked.voxels)
            elif looked.voxels >= found.voxels:
                found = looked
            if looked.voxels == smallest.voxels:
                guess = min(8 * guess, most)
                continue
            a_voxel = (load - of_smallest) / (looked.voxels - smallest.voxels)
            if a_voxel > 0:
                self._load_a_voxel[network] = grid, a_voxel
            room = smallest.voxels + (AIM - of_smallest) / a_voxel if a_voxel > 0 else most
            guess = min(most, room, beyond - 1)
            if found.voxels >= FILLED * guess:
                break
            if or_none and not self._may_be_affordable(grid, token_stride, guess):
                return None
        return replace(found, image_load=(self.load(found, time) - of_smallest) / rules.SMALLEST_BATCH)

    def load(self, fit: Fit, most_seconds: float | None) -> float:
        """Tell what share of the budget a step of the smallest batch takes: of its memory or time, the larger one."""
        of_memory = 0.0 if self.budget.bytes is None else fit.step_bytes / self.budget.bytes
        if most_seconds is None:
            return of_memory
        return max(of_memory, self.step_seconds(fit.arch_kwargs) / most_seconds)

    def _may_be_affordable(self, grid: Grid, token_stride: Decision, voxels: float) -> bool:
        """Tell whether tokens might stay as fine as they are with a crop of about so many voxels."""
        place = (grid.object_extent, grid.median_shape, grid.spacing_mm, self._multiple(token_stride))
        patch = rules.choose_patch_size(*place, voxels / FILLED).value
        need = rules.patch_need(grid.object_extent, grid.median_shape, token_stride.value)
        return self.goes_by_time or rules.is_affordable(patch, need, token_stride.value)

    def _multiple(self, token_stride: Decision) -> list[int]:
        return [max(stride, self.crop_multiple) for stride in token_stride.value]

    def fit_of(self, grid: Grid, token_stride: Decision, encoder: EncoderChoice, voxels: float) -> Fit:
        """Plan the network for crops of at most so many voxels, and measure its step."""
        strides = rules.choose_stage_strides(token_stride.value, grid.spacing_mm)
        if self.single_output:
            strides = rules.leave_one_output(strides)
        place = (grid.object_extent, grid.median_shape, grid.spacing_mm, self._multiple(token_stride))
        patch = rules.choose_patch_size(*place, voxels)
        kernels = rules.choose_kernels(grid.spacing_mm, strides.value) if self.flat_kernels else None
        features = rules.choose_features(strides.value) if self.flat_kernels else None
        arch_kwargs = {
            **encoder,
            "patch_size": list(patch.value),
            "token_stride": list(token_stride.value),
            "strides": [list(stride) for stride in strides.value],
            **({} if kernels is None else {"kernels": kernels.value}),
            **({} if features is None else {"features": features.value}),
            **self.network_options,
        }
        step_bytes = self.step_bytes(arch_kwargs, rules.SMALLEST_BATCH)
        return Fit(patch, token_stride, strides, arch_kwargs, step_bytes, kernels, features)

    def step_bytes(self, arch_kwargs: dict[str, Any], batch_size: int) -> int:
        """Ask for the memory of a step, each question once."""
        key = json.dumps([arch_kwargs, batch_size])
        if key not in self._measured:
            measured = self.cost(arch_kwargs, self.input_channels, self.output_channels, batch_size)
            self._measured[key] = int(measured)
        return self._measured[key]

    def largest_batch(self, fit: Fit, limit: int) -> int:
        """Give the largest batch within the budget, at most the limit, on straight lines through two measured sizes.

        The second of these is what would fit if an image took no more than it does at least: often that is the answer.
        """
        first, left = rules.SMALLEST_BATCH, 1 - self.load(fit, self.budget.seconds)
        second = min(limit, first + int(left / fit.image_load)) if fit.image_load > 0 else limit
        if left <= 0 or second <= first:
            return first
        largest = second
        if self.budget.bytes is not None:
            measured = fit.step_bytes, self.step_bytes(fit.arch_kwargs, second)
            largest = min(largest, _last_below(self.budget.bytes, (first, second), measured))
        if self.budget.seconds is not None:
            timed = self.step_seconds(fit.arch_kwargs), self.step_seconds(fit.arch_kwargs, second)
            largest = min(largest, _last_below(self.budget.seconds, (first, second), timed))
        return largest

    def step_seconds(self, arch_kwargs: dict[str, Any], batch_size: int = rules.SMALLEST_BATCH) -> float:
        """Ask for the seconds of a step where time is short, each question once."""
        assert self.seconds is not None
        key = json.dumps([arch_kwargs, batch_size])
        if key not in self._timed:
            self._timed[key] = self.seconds(arch_kwargs, self.input_channels, self.output_channels, batch_size)
        return self._timed[key]

    def times_the_seconds(self, grid: Grid, pretrained: str, small: str) -> float | None:
        """Compare a step of an encoder with SAM's weights and one of a small encoder, with the same tokens and crop.

        Args:
            grid: The grid of the crops.
            pretrained: Name of the encoder with SAM's weights.
            small: Name of the other.

        Returns:
            How many times the seconds; infinite if no crop fits. None where time is not short.
        """
        if not self.budget.is_time:
            return None
        scratch = {"encoder": small, "pretrained": False}
        weighty = {"encoder": pretrained, "pretrained": True}
        of_small = self.fit_to_budget(grid, self.token_strides(grid, scratch)[0], scratch)
        if of_small is None:
            return math.inf
        fit = self.fit_of(grid, of_small.token_stride, weighty, of_small.voxels)
        if self.load(fit, None) > 1:
            return math.inf
        return self.step_seconds(fit.arch_kwargs) / self.step_seconds(of_small.arch_kwargs)


def _last_below(limit: float, sizes: tuple[int, int], costs: tuple[float, float]) -> int:
    """Give the last size, from the first one to the second, whose cost on the line through both is within a limit."""
    if costs[1] <= limit:
        return sizes[1]
    a_size = (costs[1] - costs[0]) / (sizes[1] - sizes[0])
    return sizes[0] + max(0, int((limit - costs[0]) / a_size))
