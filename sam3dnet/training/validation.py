"""The validation of a fold: its cases, predicted as `sam3d_predict` does, then scored by nnU-Net.

The images are those preprocessed for training. They are what prediction makes of the raw ones, but for a channel that
is normalised by a mask (`use_mask_for_norm`): in training nnU-Net counts what is labelled as inside of the mask.
"""

import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from sam3dnet.devices import half_type
from sam3dnet.errors import CheckpointError, DatasetError, FailedCasesError, PlanError
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.calibration import FILE as CALIBRATION_FILE
from sam3dnet.inference.calibration import UNCALIBRATED, Validated
from sam3dnet.inference.case_pipeline import CaseSteps, OnProgress, predict_cases
from sam3dnet.inference.companions import Companion, LabelMaps, Segmentation, start_companions
from sam3dnet.inference.confidence import ENDING as CONFIDENCE_ENDING
from sam3dnet.inference.confidence import ConfidenceVolume, as_json, from_json, left_of
from sam3dnet.inference.images import Case, Preprocessed, as_tensor, image_bytes, with_labels
from sam3dnet.inference.model_folders import trained_folds
from sam3dnet.inference.models import LoadedModel, input_labels, load_model, mirrored_axes
from sam3dnet.inference.postprocessing import FILE as POSTPROCESSING_FILE
from sam3dnet.inference.postprocessing import Postprocessing, forget_postprocessing, write_postprocessing_of_fold
from sam3dnet.inference.probabilities import ProbabilityVolume, remove_probabilities
from sam3dnet.inference.small_objects import dice_of, measure_objects
from sam3dnet.inference.writing import remove_abandoned, unfinished_folder, write_label_map
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.folders import LABELS_FOLDER
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.records import configuration_of_cases, settings_digest
from sam3dnet.preprocessing.splits import FILE as SPLITS_FILE
from sam3dnet.preprocessing.splits import REMEDY
from sam3dnet.training.distributed import are_joined, gathered, is_first_process
from sam3dnet.training.next_stage import next_stages
from sam3dnet.training.single_objects import measure_single_objects, single_objects_of, whole_foreground

FOLDER = "validation"
SUMMARY = "summary.json"
CASES_BETWEEN_MEETINGS = 20  # of several processes, nnU-Net's: one that waits too long for the others gives up
BYTES_OF_SCORING = 4 << 30
BYTES_A_SCORED_VOXEL = 16  # truth and prediction in float32, and masks of one class

logger = logging.getLogger(__name__)


def is_ours_to_validate(configuration: Any) -> bool:
    """Tell whether `sam3d_predict` predicts one of nnU-Net's configurations: it is 3D."""
    return len(configuration.patch_size) == 3


def validate_trained(trainer: nnUNetTrainer, network: nn.Module, save_probabilities: bool = False) -> None:
    """Validate a trainer's network as it is now, without what wraps it; see `validate`."""
    trainer.set_deep_supervision_enabled(False)
    model = LoadedModel(
        network=network.eval(),
        weights=[network.state_dict()],
        checkpoint_files=[],
        plans=trainer.plans_manager,
        configuration=trainer.configuration_manager,
        labels=trainer.label_manager,
        dataset_json=trainer.dataset_json,
        mirror_axes=mirrored_axes(
            trainer.inference_allowed_mirroring_axes, trainer.plans_manager.plans, trainer.dataset_json
        ),
        trained_in=half_type(trainer.device),
        input_labels=input_labels(trainer.configuration_manager, trainer.label_manager),
        training_cases=trainer.training_cases,
        started_from=trainer.started_from,
    )
    with _room_of_training_given_back(trainer.optimizer):
        validate(trainer, model, save_probabilities)
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)


def load_trained(
    model_folder: Path,
    fold: int | str,
    checkpoint: str | None,
    device: torch.device,
    preprocessed_by: tuple[PlansManager, str, dict[str, Any]],
) -> LoadedModel:
    """Load a trained fold that shall be validated.

    Args:
        model_folder: Of the plan and configuration.
        fold: Which.
        checkpoint: See `load_model`.
        device: Where the network goes.
        preprocessed_by: Plan, name of the configuration and dataset.json of the preprocessed cases.

    Raises:
        CheckpointError: If the fold or checkpoint is not there, or damaged.
        PlanError: If the fold was trained on cases that were preprocessed otherwise, or is for nnU-Net to validate.
    """
    plans, name, dataset_json = preprocessed_by
    if not is_ours_to_validate(plans.get_configuration(name)):
        raise PlanError(f"configuration {name} is 2D; validate it with nnUNetv2_train --val")
    if fold not in trained_folds(model_folder):
        folder = model_folder / f"fold_{fold}"
        raise CheckpointError(f"{folder}: no checkpoint to validate; train the fold first, without --validate-only")
    model = load_model(model_folder, [fold], checkpoint, device)
    settings = (
        settings_digest(of.plans, configuration_of_cases(of.plans, name), described)
        for of, described in ((plans, dataset_json), (model.plans, model.dataset_json))
    )
    if len(set(settings)) > 1:
        raise PlanError(
            f"{model_folder}: trained on cases that were preprocessed by another plan than {plans.plans_name} is now; "
            "train again, or predict the images with sam3d_predict and score them with sam3d_evaluate"
        )
    return model


def validate(trainer: nnUNetTrainer, model: LoadedModel, save_probabilities: bool = False) -> None:
    """Predict the validation cases of a trainer's fold and score them, into its folder "validation".

    What an earlier validation left there is removed. Several processes share the cases.

    Args:
        trainer: Says which cases, and where they are; its own network is not used.
        model: What predicts.
        save_probabilities: Whether to write probabilities too, for ensembles.

    Raises:
        DatasetError: If there are none; what is there stays.
        CheckpointError: If the model has been trained on some of them; what is there stays.
        FailedCasesError: If some could not be predicted; the others are scored.
    """
    trained, names = trainer.do_split()
    if not names:
        file = Path(trainer.preprocessed_dataset_folder_base) / SPLITS_FILE
        raise DatasetError(f"{file}: folds[{trainer.fold}].val is empty; expected the names of cases; {REMEDY}")
    require_unseen({*names} - {*trained}, model.training_cases, Path(trainer.output_folder))
    known = sorted(({*names} - {*trained}) & model.started_from)
    if known and is_first_process():
        logger.warning(
            "Warning: the model that this training started from had been trained on %d of the %d cases of the "
            "validation: %s; it says too much",
            *(len(known), len(names), shorten(known)),
        )
    known = sorted(({*names} - {*trained}) & model.pseudo_labelled)
    if known and is_first_process():
        logger.warning(
            "Warning: %d of the %d cases of the validation were trained on before they had labels, by what another "
            "model had found in them: %s; it says too much",
            *(len(known), len(names), shorten(known)),
        )
    output = Path(trainer.output_folder) / FOLDER
    if trainer.fold == "all":
        trainer.print_to_log_file("fold all was trained on every case: the scores are of cases that it has seen")
        _tell_kept(trainer, names)
    if is_first_process():
        _clear(output, trainer.dataset_json["file_ending"])
    failed = _predict_share(_Validation(trainer, model, output, save_probabilities), sorted(names))
    if is_first_process() and len(failed) < len(names):
        label_maps = output.glob(f"*{trainer.dataset_json['file_ending']}")
        _score(trainer, output, scoring_processes(label_maps, model.reader))
        _calibrate(trainer, model, output, _choose_postprocessing(trainer, model, output))
    _tell_failed(failed, len(names), output)


def require_unseen(validating: Collection[str], trained_on: Collection[str], fold_folder: Path) -> None:
    """See that a fold's weights can be validated on cases.

    Args:
        validating: Those that validate; not those that the same fold trains on, as "all" does.
        trained_on: What the weights were trained on, as far as that is known.
        fold_folder: Where they are.

    Raises:
        CheckpointError: If they were trained on some of them.
    """
    seen = sorted({*validating} & {*trained_on})
    if seen:
        raise CheckpointError(
            f"{fold_folder}: its weights were trained on {len(seen)} of the {len(validating)} cases that this fold "
            f"validates on: {shorten(seen)}; expected cases that they have not seen, and the folds have changed since; "
            "train the fold again, without --continue and --validate-only"
        )


def _tell_kept(trainer: nnUNetTrainer, names: Iterable[str]) -> None:
    """Say which label maps for the next stage of a cascade fold "all" leaves as they are."""
    for stage in next_stages(trainer):
        kept = [name for name in names if not stage.wants(name)]
        if kept:
            trainer.print_to_log_file(
                f"{stage.output}: the label maps of {len(kept)} cases stay as they are, since folds that had not seen "
                "the cases may have written them; remove a map and validate again to have it written by fold all"
            )


def _tell_failed(failed: Mapping[str, str], num_cases: int, output: Path) -> None:
    if not failed:
        return
    if is_first_process():
        for name, reason in failed.items():
            logger.error("case %s failed: %s", name, reason)
    gathered(None)  # a process that ends with an error takes the others with it, also the one that scores
    others = f"the scores of the others are in {output / SUMMARY}" if len(failed) < num_cases else "nothing is scored"
    raise FailedCasesError(f"{len(failed)} of {num_cases} validation cases failed, {', '.join(failed)}; {others}")


def _clear(output: Path, file_ending: str) -> None:
    """Remove what an earlier validation wrote, perhaps of other cases and by other weights."""
    output.mkdir(parents=True, exist_ok=True)
    remove_abandoned(output)
    noted = (output.parent / CALIBRATION_FILE, output.parent / POSTPROCESSING_FILE)
    ours = (*output.glob(f"*{CONFIDENCE_ENDING}"), *noted)
    for file in (output / SUMMARY, *output.glob(f"*{file_ending}"), *ours):
        file.unlink(missing_ok=True)
    for file in output.glob("*.npz"):
        remove_probabilities(file.with_name(file.name.removesuffix(".npz")))


def forget_validation(model_folder: Path, fold_folder: Path) -> None:
    """Remove what was decided by the validation of weights that a training is about to replace."""
    forget_postprocessing(model_folder, fold_folder)
    (fold_folder / CALIBRATION_FILE).unlink(missing_ok=True)


def _predict_share(validation: "_Validation", names: Sequence[str]) -> dict[str, str]:
    """Predict this process's cases, meeting the other processes now and then; give the failed ones of all and why."""
    failed: dict[str, str] = {}
    if not are_joined():
        return validation.predict(names)
    gathered(None)  # the folder is there
    world = dist.get_world_size()
    mine = names[dist.get_rank() :: world]
    for start in range(0, -(-len(names) // world), CASES_BETWEEN_MEETINGS):
        for of_process in gathered(validation.predict(mine[start : start + CASES_BETWEEN_MEETINGS])):
            failed |= of_process
    return failed


class _Validation:
    """Predicts preprocessed cases of a trainer."""

    def __init__(self, trainer: nnUNetTrainer, model: LoadedModel, output: Path, save_probabilities: bool):
        self._model, self._output, self._with_probabilities = model, output, save_probabilities
        self._automatic = AutomaticSegmentation(model)
        self._ending = trainer.dataset_json["file_ending"]
        self._truth = Path(trainer.preprocessed_dataset_folder_base) / LABELS_FOLDER
        folder, previous = trainer.preprocessed_dataset_folder, trainer.folder_with_segs_from_previous_stage
        self._dataset = infer_dataset_class(folder)(folder, folder_with_segs_from_previous_stage=previous)
        self._next_stages = next_stages(trainer)

    def predict(self, names: Sequence[str]) -> dict[str, str]:
        """Write the label maps of these cases; give those that failed and why."""
        cases = [Case(name, (self._truth / f"{name}{self._ending}",)) for name in names]
        steps = CaseSteps(self._read, self._bytes_of, self._segment, self._write)
        return predict_cases(cases, steps, 1, is_first_process(), "validating").failed

    def _bytes_of(self, case: Case) -> int:
        model = self._model
        channels = model.num_images + len(model.input_labels)
        return channels * image_bytes(case, model.reader, model.configuration.spacing, is_label=True)

    def _read(self, case: Case) -> Preprocessed:
        data, _, previous, properties = self._dataset.load_case(case.name)
        image = np.require(data[:], np.float32, ["WRITEABLE"])
        if previous is not None:
            image = with_labels(image, previous[:], self._model.input_labels)
        return as_tensor(image), properties

    def _segment(self, case: Case, preprocessed: Preprocessed, on_progress: OnProgress) -> Segmentation:
        model, reader = self._model, self._model.reader
        of_model = (preprocessed[1], model.plans, model.labels)
        companions = start_companions(
            self._with_probabilities and (lambda: ProbabilityVolume(unfinished_folder(self._output), *of_model)),
            lambda: ConfidenceVolume(
                *of_model, model.dataset_json, read_truth=lambda: reader.read_seg(case.files[0])[0][0]
            ),
        )
        return Segmentation.of(companions, partial(self._label_maps, case, preprocessed, on_progress, companions))

    def _label_maps(
        self, case: Case, preprocessed: Preprocessed, on_progress: OnProgress, companion: Companion
    ) -> LabelMaps:
        """Segment a case, and leave what the next stage of a cascade is trained on."""
        stages = [stage for stage in self._next_stages if stage.wants(case.name)]
        logits = self._automatic.room_for_logits(preprocessed[0]) if stages else None
        labels = self._automatic.label_map(*preprocessed, on_progress, logits, companion=companion)
        for stage in stages:
            assert logits is not None
            stage.write(case.name, logits, preprocessed[1], self._model)
        return labels, None

    def _write(self, case: Case, segmentation: Segmentation, properties: Mapping[str, Any]) -> None:
        """Write a label map with the geometry of the true one, which is the image's, and along its axes."""
        path, reader = self._output / f"{case.name}{self._ending}", self._model.reader
        if reader.reorients:  # the true one may be stored along other axes than the image
            properties = reader.read_seg(case.files[0])[1]
        companions = segmentation.companions_of(case.name)
        write_label_map(segmentation.labels_ZYX, path, case.files[0], properties, reader, companions)


def scoring_processes(
    label_maps: Iterable[Path], reader: DatasetReader, bytes_a_voxel: int = BYTES_A_SCORED_VOXEL
) -> int:
    """Choose as many processes as nnU-Net would, but no more than such large label maps leave memory for."""
    sizes = (math.prod(grid.shape) for file in label_maps if (grid := reader.read_grid(file.name, file, True)[0]))
    largest = max(sizes, default=1)  # of formats whose headers it cannot read, nothing is known
    return max(1, min(default_num_processes, BYTES_OF_SCORING // (bytes_a_voxel * largest)))


def _score(trainer: nnUNetTrainer, output: Path, num_processes: int) -> None:
    """Write nnU-Net's summary.json, and say what nnU-Net says."""
    labels = trainer.label_manager
    metrics = compute_metrics_on_folder(
        str(Path(trainer.preprocessed_dataset_folder_base) / LABELS_FOLDER),
        str(output),
        str(output / SUMMARY),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=num_processes,
    )
    for label, scores in metrics["mean"].items():
        trainer.logger.log_summary(f"final_val/class_{label}_dice", scores["Dice"])
    mean = metrics["foreground_mean"]["Dice"]
    trainer.logger.log_summary("final_val/foreground_dice", mean)
    trainer.print_to_log_file("Validation complete")
    trainer.print_to_log_file("Mean Validation Dice: ", mean)


def _calibrate(trainer: nnUNetTrainer, model: LoadedModel, output: Path, chosen: Postprocessing) -> None:
    """Note what the confidences of the validation were worth, for `sam3d_predict --confidence`.

    Those are of label maps after post-processing, and so is what is noted, with what holds without it beside; the files
    beside the label maps of the validation, which have none, stay. Cases that were trained on teach nothing.
    """
    if trainer.fold == "all":
        (output.parent / CALIBRATION_FILE).unlink(missing_ok=True)  # of a version that wrote one
        return
    files = sorted(output.glob(f"*{CONFIDENCE_ENDING}"))
    before = {file.name.removesuffix(CONFIDENCE_ENDING): json.loads(file.read_text()) for file in files}
    validated = without = Validated.of_cases(before)
    if chosen:
        after = {name: _after(chosen, name, content, trainer, model, output) for name, content in before.items()}
        validated = Validated.of_cases(after)
    validated.write(output.parent, without if chosen else None)
    trainer.print_to_log_file(validated.in_words())


def _after(
    chosen: Postprocessing,
    name: str,
    content: Mapping[str, Any],
    trainer: nnUNetTrainer,
    model: LoadedModel,
    output: Path,
) -> dict[str, Any]:
    """Say what a CASE_confidence.json of the validation would hold of its label map after post-processing."""
    file, classes = f"{name}{trainer.dataset_json['file_ending']}", foreground_classes(trainer.dataset_json)
    labels_1ZYX, properties = model.reader.read_seg(output / file)
    truth_ZYX = model.reader.read_seg(Path(trainer.preprocessed_dataset_folder_base) / LABELS_FOLDER / file)[0][0]
    left_ZYX = chosen.applied_to(labels_1ZYX[0].astype(np.int32), properties["spacing"])
    compared = {"truth_ZYX": truth_ZYX, "ignored": model.labels.ignore_label}
    left = left_of(from_json(content), labels_1ZYX[0], left_ZYX, classes, properties, **compared)
    return as_json(left, UNCALIBRATED)


def _choose_postprocessing(trainer: nnUNetTrainer, model: LoadedModel, output: Path) -> Postprocessing:
    """Note what becomes of classes that are one object when the largest alone is kept, and objects; say what is done.

    Of cases that were trained on objects say nothing: false ones hardly occur there.
    """
    ending, truth = trainer.dataset_json["file_ending"], Path(trainer.preprocessed_dataset_folder_base) / LABELS_FOLDER
    pairs = [(file, truth / file.name) for file in sorted(output.glob(f"*{ending}"))]
    steps, classes = (
        single_objects_of(model.plans.plans, trainer.dataset_json),
        foreground_classes(trainer.dataset_json),
    )
    if steps:
        steps = whole_foreground(sorted(truth.glob(f"*{ending}")), trainer.dataset_json, model.reader) | steps
    measured = measure_single_objects(pairs, steps, classes, model.reader, model.labels.ignore_label)
    several = (
        measure_objects(pairs, classes, steps.values(), model.reader, model.labels.ignore_label)
        if trainer.fold != "all"
        else []
    )
    chosen = write_postprocessing_of_fold(output.parent, measured, trainer.dataset_json, several)
    if chosen:
        of_labels = {one.labels: one.cases for one in several}
        changes = [(one.dice_before, one.dice_after) for one in measured if one.keep_largest in chosen.keep_largest]
        changes += [dice_of(of_labels[one.labels], one.up_to_mm3) for one in chosen.min_volumes]
        before, after = np.mean(changes, axis=0)
        what = chosen.in_words(trainer.dataset_json)
        trainer.print_to_log_file(f"post-processing: {what}; Dice of these {before:.3f} before, {after:.3f} after")
    return chosen


@contextmanager
def _room_of_training_given_back(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Drop the gradients, and keep the optimiser's state in the CPU's memory meanwhile: prediction has none of it."""
    optimizer.zero_grad(set_to_none=True)
    moved = [
        (state, key, value.device)
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.device.type != "cpu"
    ]
    for state, key, _ in moved:
        state[key] = state[key].cpu()
    try:
        yield
    finally:
        for state, key, device in moved:
            state[key] = state[key].to(device)
