"""The planner: nnU-Net's extension points, filled by the rules, and the SAM3DPlans.json that comes out."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from sam3dnet.errors import PlanError
from sam3dnet.planning import rules
from sam3dnet.planning.decisions import memory_decision, normalization_decision, sides_decision, time_decision
from sam3dnet.planning.edits import changes_by_hand, tell_changes, with_changes
from sam3dnet.planning.encoder import FindWeights, choose_encoder, no_weights
from sam3dnet.planning.fingerprint import BLOCK, load_or_make_fingerprint
from sam3dnet.planning.fitting import Cost, CropFitter, EncoderChoice, Grid
from sam3dnet.planning.likeness import LIKE_DIGEST, PLANNED_LIKE, Likeness, without_what_is_taken
from sam3dnet.planning.methods import DEFAULT_METHOD, DEFAULT_PLANS_NAME, MethodChoice
from sam3dnet.planning.orientation import left_right_axis, orientations, read_grids
from sam3dnet.planning.plan import PLAN_VERSION, read_earlier_plan
from sam3dnet.planning.rules import Budget, Decision
from sam3dnet.planning.second_stage import SecondStage
from sam3dnet.planning.sides import Sides, find_sides, swapped_channels, swapped_values
from sam3dnet.planning.single_objects import KEY as SINGLE_OBJECTS
from sam3dnet.planning.single_objects import find_single_objects, single_objects_decision
from sam3dnet.planning.target_spacing import ASKED_SPACING, spacing_decision, without_the_spacing
from sam3dnet.preprocessing.cases import (
    channel_names,
    foreground_classes,
    has_regions,
    list_training_cases,
    output_channels,
    read_dataset_json,
)
from sam3dnet.preprocessing.folders import Folders, whole_or_nothing, write_json
from sam3dnet.preprocessing.reading import DatasetReader, dataset_reader
from sam3dnet.preprocessing.splits import FILE as SPLITS_FILE
from sam3dnet.preprocessing.workers import Workers

logger = logging.getLogger(__name__)

FULLRES, LOWRES, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
PLANNED_CONFIGURATIONS = ("2d", FULLRES, LOWRES, CASCADE)
NO_ENCODER = {"encoder": "none", "pretrained": False}  # of other packages' networks
# nnU-Net's torch resampling holds all labels of a case at once; beyond this many the stock one takes less memory.
MANY_LABELS = 16


class SAM3DPlanner(ExperimentPlanner):
    """Plan a dataset for one of our networks by nnU-Net's rules and ours.

    Args:
        dataset_name: A folder in nnUNet_raw whose fingerprint exists.
        cost: (arch_kwargs, input channels, classes, batch size) -> bytes of a training step; seconds a call.
        budget: What a step may cost, with its decision.
        encoder: "auto" or a size by name.
        find_weights: (encoder, asked for) -> what there is of SAM's weights; called where they would be taken.
        seconds: (arch_kwargs, input channels, classes, batch size) -> seconds that a training step takes on a core, by
            which encoder, tokens, crop and batch are chosen for a CPU; needed there.
        plans_name: Name of the plans file.
        choice: The method, and how it is tuned; None takes the default, or that of `like`, with its text where it reads
            text and has the dataset's classes.
        target_spacing_mm: Of full resolution, (Z, Y, X) as the reader gives images, in place of nnU-Net's.
        like: A model whose spacing, crop, network and normalisation are taken; then full resolution alone is planned.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        cost: Cost,
        budget: tuple[Budget, Decision],
        encoder: str = "auto",
        find_weights: FindWeights = no_weights,
        seconds: Cost | None = None,
        plans_name: str = DEFAULT_PLANS_NAME,
        choice: MethodChoice | None = None,
        target_spacing_mm: Sequence[float] | None = None,
        like: Likeness | None = None,
    ) -> None:
        if like is not None:
            target_spacing_mm = like.spacing_mm
        overwrite = None if target_spacing_mm is None else [float(mm) for mm in target_spacing_mm]
        try:
            super().__init__(dataset_name, plans_name=plans_name, overwrite_target_spacing=overwrite)
        except (AssertionError, LookupError, OSError, ValueError):
            # Its last act compares folds beside the raw data with those that count, which go on with new cases;
            # `take_given_splits` reads both, and tells where they differ.
            if not (hasattr(self, "plans") and (Path(self.raw_dataset_folder) / SPLITS_FILE).exists()):
                raise
        listed = list_training_cases(Path(self.raw_dataset_folder), self.dataset_json)
        self.cases = {case.name: case for case in listed}  # `dataset`, nnU-Net's, has files that begin with "._" too
        limits, budget_decision = budget
        self.like = like
        self.encoder = encoder
        self.find_weights = find_weights
        self.chosen_encoder: EncoderChoice | None = None
        self.weights: Mapping[str, Any] | None = None
        self.choice = choice or (MethodChoice() if like is None else like.choice_for(self.dataset_json))
        of_choice = self.choice.decisions()
        if self.choice.method.answers_prompts:
            of_choice.append(rules.choose_prompts(self.choice.prompts))
        self.decisions: list[Decision] = [budget_decision, *(of_choice if like is None else like.taken(of_choice))]
        self.block: dict[str, Any] = self.dataset_fingerprint[BLOCK]
        self.fitter = CropFitter(
            cost,
            limits,
            len(channel_names(self.dataset_json)),
            output_channels(self.dataset_json),
            self.choice.network_options(has_regions(self.dataset_json)),
            self.choice.method.finest_strides,
            single_output=self.choice.method.peer is not None,
            flat_kernels=self.choice.method.fits_grid,
            crop_multiple=self.choice.method.crop_multiple,
            seconds=seconds,
        )

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Take nnU-Net's order of axes, or the model's that is planned after."""
        return super().determine_transpose() if self.like is None else self.like.transpose

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Normalise as nnU-Net does, or channels of the same name as the model that is planned after."""
        schemes, use_mask = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        if self.like is None:
            return schemes, use_mask
        return self.like.normalization(list(channel_names(self.dataset_json).values()), schemes, use_mask)

    def determine_resampling(self, *_args: Any, **_kwargs: Any) -> tuple[Callable, dict, Callable, dict]:
        """Take nnU-Net's torch resampling: linear, with thick slices apart, many times faster than its default."""
        options = torch_resampling_options()
        image = (resample_torch_fornnunet, {"is_seg": False, **options})
        if len(self.dataset_json["labels"]) > MANY_LABELS:
            _, _, *labels = super().determine_resampling()
            return (*image, *labels)
        return (*image, resample_torch_fornnunet, {"is_seg": True, **options})

    def determine_segmentation_softmax_export_fn(self, *_args: Any, **_kwargs: Any) -> tuple[Callable, dict]:
        """Take nnU-Net's torch resampling for probabilities as well."""
        return resample_torch_fornnunet, {"is_seg": False, **torch_resampling_options()}

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict[str, Any]:
        """Plan one 3D configuration; stock keys only.

        Args:
            spacing: (Z, Y, X) in mm, axes already reordered.
            median_shape: Median image on that grid.
            data_identifier: Folder name of the preprocessed cases.
            approximate_n_voxels_dataset: Voxels of all training images on that grid.
            _cache: nnU-Net's; not used.

        Raises:
            PlanError: If not even the smallest crop fits the memory.
        """
        grid = Grid(spacing, median_shape, self.object_extent(spacing))
        encoder = self.encoder_choice(grid, approximate_n_voxels_dataset)
        if self.like is None:
            fit = self.fitter.find(grid, encoder)
        else:
            measure = partial(self.fitter.step_bytes, batch_size=rules.SMALLEST_BATCH)
            fit = self.like.fit(self.fitter.network_options, measure)
        if fit is None:
            raise PlanError(self.too_little_memory(encoder))
        batch = rules.choose_batch_size(
            fit.patch.value, approximate_n_voxels_dataset, partial(self.fitter.largest_batch, fit)
        )
        step_bytes = self.fitter.step_bytes(fit.arch_kwargs, batch.value)
        batch_dice = rules.choose_batch_dice(fit.patch.value, median_shape)
        costs = [memory_decision(step_bytes)]
        if self.fitter.budget.is_time:
            costs.append(time_decision(self.fitter.step_seconds(fit.arch_kwargs, batch.value)))
        self.record(data_identifier, [*fit.decisions(), batch, batch_dice, *costs])
        schemes, use_mask_for_norm = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        data, data_options, labels, labels_options = self.determine_resampling()
        probabilities, probabilities_options = self.determine_segmentation_softmax_export_fn()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": batch.value,
            "batch_dice": batch_dice.value,
            "patch_size": list(fit.patch.value),
            "median_image_size_in_voxels": [float(n) for n in median_shape],
            "spacing": [float(mm) for mm in spacing],
            "normalization_schemes": schemes,
            "use_mask_for_norm": [bool(use) for use in use_mask_for_norm],
            "resampling_fn_data": data.__name__,
            "resampling_fn_seg": labels.__name__,
            "resampling_fn_data_kwargs": data_options,
            "resampling_fn_seg_kwargs": labels_options,
            "resampling_fn_probabilities": probabilities.__name__,
            "resampling_fn_probabilities_kwargs": probabilities_options,
            "architecture": {
                "network_class_name": self.choice.method.network_class,
                "arch_kwargs": fit.arch_kwargs,
                "_kw_requires_import": [],
            },
        }

    @cached_property
    def reader(self) -> DatasetReader:
        """What reads the dataset."""
        return dataset_reader(self.dataset_json, next(iter(self.cases.values())).images[0])

    def encoder_choice(self, grid: Grid, dataset_voxels: float) -> EncoderChoice:
        """Choose the encoder at the first stage that is planned, full resolution; the others share it."""
        if self.choice.method.peer:
            return NO_ENCODER
        if self.like is not None:
            self.weights = self.like.weights
            return self.like.encoder
        if self.chosen_encoder is None:
            times = partial(self.fitter.times_the_seconds, grid)
            needs_transformer = self.choice.name != DEFAULT_METHOD
            chosen = choose_encoder(self.encoder, dataset_voxels, self.find_weights, times, needs_transformer)
            if chosen.warning:
                logger.warning("Warning: %s", chosen.warning)
            self.decisions.append(chosen.decision)
            self.chosen_encoder, self.weights = chosen.decision.value, chosen.weights
        return self.chosen_encoder

    def too_little_memory(self, encoder: EncoderChoice) -> str:
        """Say that nothing fits, and what helps."""
        gigabytes = (self.fitter.budget.bytes or 0) / 1e9
        return (
            f"{self.dataset_name}: a training step of encoder {encoder['encoder']!r} does not fit {gigabytes:.1f} GB "
            "at any crop size; choose a smaller one (--encoder small) or a larger memory target"
        )

    def object_extent(self, spacing: Sequence[float]) -> list[float] | None:
        """Give the extent of the largest objects on a planned grid."""
        transpose_forward, _ = self.determine_transpose()
        return rules.object_extent_voxels(self.block["classes"], spacing, transpose_forward)

    def record(self, data_identifier: str, decisions: Sequence[Decision]) -> None:
        """Keep decisions; those of a stage other than full resolution are named after it."""
        configuration = data_identifier.removeprefix(f"{self.plans_identifier}_")
        suffix = "" if configuration == FULLRES else f" ({configuration})"
        self.decisions += [Decision(d.name + suffix, d.value, d.reason, d.source) for d in decisions]

    def plan_experiment(self) -> dict[str, Any]:
        """Plan all 3D configurations and write the plans file; no 2D one is ever planned."""
        forward, backward = self.determine_transpose()
        spacing = np.asarray(self.determine_fullres_target_spacing(), dtype=float)
        if self.like is not None:
            self.decisions += self.like.decisions()
        else:
            self.decisions.append(spacing_decision(spacing, self.dataset_fingerprint, self.overwrite_target_spacing))
        shapes = [
            compute_new_shape(shape, original, spacing)
            for original, shape in zip(
                self.dataset_fingerprint["spacings"], self.dataset_fingerprint["shapes_after_crop"], strict=True
            )
        ]
        schemes, _ = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        self.decisions.append(normalization_decision(schemes))
        configurations = self.plan_configurations(spacing[forward].tolist(), np.median(shapes, 0)[forward].tolist())
        grids = read_grids((case.images[0] for case in self.cases.values()), self.reader)
        left_right = left_right_axis(grids, self.reader)
        sides = Sides() if left_right is None else self.find_sides(left_right)
        mirror_axes = rules.choose_mirror_axes(
            left_right, forward, sides.unlike, channel_names(self.dataset_json).values()
        )
        self.decisions.append(mirror_axes)
        if sides.pairs:
            self.decisions.append(sides_decision(sides.pairs))
        single_objects = find_single_objects(self.block["classes"])
        self.decisions.append(single_objects_decision(single_objects))
        plans = {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": [float(mm) for mm in self.median_of("spacings")[forward]],
            "original_median_shape_after_transp": [
                round(float(n)) for n in self.median_of("shapes_after_crop")[forward]
            ],
            "image_reader_writer": self.reader.name,
            "transpose_forward": [int(axis) for axis in forward],
            "transpose_backward": [int(axis) for axis in backward],
            "configurations": configurations,
            "experiment_planner_used": type(self).__name__,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": self.intensity_properties(schemes),
        }
        encoder = configurations[FULLRES]["architecture"]["arch_kwargs"]
        plans["sam3d"] = {
            "version": PLAN_VERSION,
            "method": self.choice.name,
            "text_model": self.choice.text.model if self.choice.text else None,
            "encoder": encoder["encoder"],
            "pretrained": encoder["pretrained"],
            "weights": self.weights,
            "orientations": orientations(grids, self.reader),
            "mirror_axes": mirror_axes.value,
            "sides": {"axis": list(forward).index(left_right), "pairs": [list(pair) for pair in sides.pairs]}
            if left_right is not None and sides.pairs
            else None,
            SINGLE_OBJECTS: single_objects,
            "decisions": [asdict(decision) for decision in self.decisions],
            **self.asked_for(),
        }
        self.plans = self.save_plans(plans)
        return self.plans

    def asked_for(self) -> dict[str, Any]:
        """Give what holds for this planning alone, so that the next one can say that it no longer does."""
        if self.like is not None:
            return {PLANNED_LIKE: self.like.asked_for, LIKE_DIGEST: self.like.digest}
        return {ASKED_SPACING: self.overwrite_target_spacing} if self.overwrite_target_spacing else {}

    def find_sides(self, left_right: int) -> Sides:
        """Find the classes that differ by their side alone."""
        values = foreground_classes(self.dataset_json)

        def read_masks(case: str) -> dict[str, Any]:
            labels_ZYX = self.reader.read_seg(self.cases[case].label)[0][0]
            return {name: np.isin(labels_ZYX, of_class) for name, of_class in values.items()}

        found = find_sides(self.block["classes"], left_right, read_masks)
        if swapped_channels(swapped_values(found.pairs, values), self.dataset_json) is None:
            return Sides((), (*found.pairs, *found.unlike))  # regions that hold one of the two, and not the other
        return found

    def median_of(self, key: str) -> np.ndarray:
        """Take the median over the cases of a fingerprint entry."""
        return np.median(np.asarray(self.dataset_fingerprint[key], dtype=float), 0)

    def plan_configurations(self, spacing: list[float], median_shape: list[float]) -> dict[str, Any]:
        """Plan full resolution, and low resolution with cascade where nnU-Net would."""
        cases = len(self.cases)
        fullres = self.get_plans_for_configuration(
            spacing, median_shape, self.generate_data_identifier(FULLRES), math.prod(median_shape) * cases, {}
        )
        if self.like is not None:
            return {FULLRES: fullres}
        patch_voxels = math.prod(fullres["patch_size"])
        finest = max(fullres["architecture"]["arch_kwargs"]["token_stride"])

        def voxels_of_crop(mm: Sequence[float], shape: Sequence[float]) -> float:
            stride = rules.choose_token_stride(finest, mm, shape).value
            patch = rules.choose_patch_size(self.object_extent(mm), shape, mm, stride, patch_voxels)
            return math.prod(patch.value)

        decision = rules.choose_lowres_spacing(spacing, median_shape, voxels_of_crop)
        self.decisions.append(decision)
        if decision.value is None:
            return {FULLRES: fullres}
        shape = [round(n * full / low) for n, full, low in zip(median_shape, spacing, decision.value, strict=True)]
        lowres = self.get_plans_for_configuration(
            decision.value, shape, self.generate_data_identifier(LOWRES), math.prod(shape) * cases, {}
        )
        stage = SecondStage(self.fitter, self.dataset_json, self.block).of(
            fullres, self.determine_transpose()[0], self.choice.name
        )
        self.decisions += [replace(one, name=f"{one.name} ({CASCADE})") for one in stage.decisions(memory_decision)]
        if stage.changes is None:
            return {LOWRES: lowres, FULLRES: fullres}
        second = {"inherits_from": FULLRES, "previous_stage": LOWRES, **stage.changes}
        return {LOWRES: {**lowres, "next_stage": CASCADE}, FULLRES: fullres, CASCADE: second}

    def intensity_properties(self, schemes: Sequence[str]) -> dict[str, dict[str, float]]:
        """Write the chosen window of each CT channel over nnU-Net's foreground properties."""
        properties = {
            channel: dict(values)
            for channel, values in self.dataset_fingerprint["foreground_intensity_properties_per_channel"].items()
        }
        for channel, scheme in zip(properties, schemes, strict=True):
            if scheme != "CTNormalization":
                continue
            quantiles = self.block["foreground_quantiles"].get(channel)
            window = rules.choose_window(channel, properties[channel], quantiles, self.block["classes"])
            properties[channel].update(window.value)
            self.decisions.append(window)
        if self.like is not None:
            return self.like.intensities(list(channel_names(self.dataset_json).values()), properties)
        return properties

    def save_plans(self, plans: dict[str, Any]) -> dict[str, Any]:
        """Write the plan, whole or not at all, with what a user added to an older one or changed in it.

        Returns:
            The plan as it is written.

        Raises:
            PlanError: If the older one cannot be read.
        """
        from nnunetv2.paths import nnUNet_preprocessed

        folder = Path(str(nnUNet_preprocessed)) / self.dataset_name
        plans_file = folder / f"{self.plans_identifier}.json"
        before = read_earlier_plan(plans_file)
        changes = without_what_is_taken(changes_by_hand(before), before, plans, plans_file.name)
        if self.like is None:
            changes = without_the_spacing(changes, before, plans, plans_file.name)
        plans = with_changes(plans, changes, plans_file.name)
        tell_changes(plans, changes, plans_file.name)
        for name, configuration in before.get("configurations", {}).items():
            if name not in PLANNED_CONFIGURATIONS:
                plans["configurations"][name] = configuration
        write_json(plans_file, plans)
        with whole_or_nothing(folder / "dataset.json") as temporary:
            shutil.copyfile(Path(self.raw_dataset_folder) / "dataset.json", temporary)
        return plans


def torch_resampling_options() -> dict[str, Any]:
    """Give the options of nnU-Net's torch resampling: thick slices are resampled apart, as in its default."""
    return {"force_separate_z": None, "memefficient_seg_resampling": False}


def free_memory_bytes(device: str) -> int | None:
    """Ask the device for its free memory; None where it cannot be asked."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device if ":" in device else None)[0])
    if device.startswith("mps") and torch.backends.mps.is_available():
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def plan_dataset(
    dataset_name: str,
    folders: Folders,
    *,
    cost: Cost,
    gpu_memory_target_gb: float | None = None,
    encoder: str = "auto",
    find_weights: FindWeights = no_weights,
    seconds: Cost | None = None,
    device: str = "cpu",
    plans_name: str | None = None,
    num_processes: int = 1,
    progress: bool = True,
    choice: MethodChoice | None = None,
    target_spacing_mm: Sequence[float] | None = None,
    cluster: Workers | None = None,
    like: Likeness | None = None,
) -> Path:
    """Plan a dataset and write its plans file.

    Args:
        dataset_name: A folder in `folders.raw`.
        folders: nnU-Net's three folders, already active (see `activate_folders`).
        cost: (arch_kwargs, input channels, classes, batch size) -> bytes of a training step.
        gpu_memory_target_gb: Plan for a card with this much memory, whatever the device.
        encoder: "auto", "none" (no transformer), "tiny", "small", "vit_b", "vit_l" or "vit_h".
        find_weights: (encoder, asked for) -> what there is of SAM's weights; called where they would be taken.
        seconds: (arch_kwargs, input channels, classes, batch size) -> seconds that a training step takes on a core;
            needed where `device` is a CPU and no memory target is given.
        device: Where training will run.
        plans_name: Name of the plans file; None: the choice's.
        num_processes: Cases read at the same time where the fingerprint must be made.
        progress: Show a progress bar.
        choice: The method, and how it is tuned; None: as of `SAM3DPlanner`.
        target_spacing_mm: Of full resolution, (Z, Y, X) as the reader gives images; None: nnU-Net's.
        cluster: Reads the cases in place of processes of this machine.
        like: A model whose spacing, crop, network and normalisation are taken.

    Returns:
        The plans file, folders.preprocessed / dataset_name / (plans_name + ".json").

    Raises:
        DatasetError: If the dataset cannot be read.
        PlanError: If no network fits the memory, an earlier plan cannot be read, or `like` reads text of other classes.
    """
    if choice is None:
        choice = MethodChoice() if like is None else like.choice_for(read_dataset_json(folders.raw / dataset_name))
    plans_name = plans_name or choice.plans_name
    load_or_make_fingerprint(dataset_name, folders, cluster or num_processes, progress)
    budget = rules.choose_budget(device, gpu_memory_target_gb, free_memory_bytes(device))
    planner = SAM3DPlanner(
        dataset_name,
        cost=cost,
        budget=budget,
        encoder=encoder,
        find_weights=find_weights,
        seconds=seconds,
        plans_name=plans_name,
        choice=choice,
        target_spacing_mm=target_spacing_mm,
        like=like,
    )
    planner.plan_experiment()
    return folders.preprocessed / dataset_name / f"{plans_name}.json"
