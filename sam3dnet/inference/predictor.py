"""Predict all images of a folder, and know from one run to the next what is there; a bad image costs itself alone."""

import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import numpy as np
import torch

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.case_pipeline import CaseSteps, OnProgress, PredictionReport, predict_cases, reason_of
from sam3dnet.inference.images import Case, ImageInput, Preprocessed, find_cases, image_bytes
from sam3dnet.inference.models import LoadedModel, find_model, load_model, read_model_json
from sam3dnet.inference.text import TextQuestion, ask_for_text
from sam3dnet.inference.writing import TEMPORARY_FOLDER, is_finished, write_label_map
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.workers import map_cases

if TYPE_CHECKING:
    from sam3dnet.preprocessing.cluster import DaskCluster

__all__ = ["PredictionReport", "find_model", "predict_folder"]

logger = logging.getLogger(__name__)

SETTINGS_FILE = "sam3d_prediction.json"


class PromptedSegmentation(Protocol):
    """Segments cases under their prompts, see `interactive.run_prompts`."""

    def label_map(self, name: str, case: Preprocessed, reader_writer: Any, on_progress: OnProgress) -> np.ndarray:
        """Segment a case."""


class Prompts(Protocol):
    """What is said about the cases of a run, see `interactive.run_prompts`."""

    def speak_of(self, name: str) -> bool:
        """Tell whether there are prompts for a case."""

    def statements(self) -> dict[str, Any]:
        """Give the prompts of all cases as JSON holds them."""

    def answered_by(self, model: LoadedModel, step_size: float, mirror: bool) -> PromptedSegmentation:
        """Have a model answer them."""


ReadPrompts = Callable[[Collection[str], Any], Prompts]  # given all cases, and nnU-Net's LabelManager of the model


def predict_folder(
    input_folder: Path | str,
    output_folder: Path | str,
    model_folder: Path | str,
    *,
    folds: Sequence[int | str] | None = None,
    device: torch.device | str | None = None,
    step_size: float = 0.5,
    mirror: bool = True,
    checkpoint: str | None = None,
    num_processes: int | None = None,
    progress: bool = True,
    prompts: ReadPrompts | None = None,
    question: TextQuestion | None = None,
    cluster: "DaskCluster | None" = None,
) -> PredictionReport:
    """Predict a label map for every image of a folder, on each image's own grid.

    What is there already, whole and made with the same settings, is not predicted again.

    Args:
        input_folder: Images named CASE_0000.nii.gz, a file a channel.
        output_folder: Made if it does not exist; gets CASE.nii.gz, dataset.json, plans.json and the settings.
        model_folder: Model folder of nnUNet_results, see `find_model`.
        folds: Folds whose logits are averaged; None for all trained ones.
        device: Device or its name, of a cluster's workers if there is one; None for the best there is.
        step_size: Step between windows as a share of the window, above 0 and at most 1.
        mirror: Whether to average over mirrored windows, along the axes that were mirrored in training.
        checkpoint: File name in each fold; None for the final one, else the best, else the latest.
        num_processes: Images that are read ahead at the same time, each in a thread, as far as memory allows; 0 reads
            each when its turn comes; None for one.
        progress: Whether to show a bar.
        prompts: Reads what is said about the cases, see `interactive.run_prompts.prompt_reader`; None for nothing.
        question: What to ask a model that reads text for, in place of its classes; None for its classes.
        cluster: Predicts in place of this process; each worker loads the model once and takes whole cases.

    Returns:
        What was written, skipped and failed; a case fails alone.

    Raises:
        DatasetError: If there is no image, or the output folder cannot be written to, or the step is out of range.
        CheckpointError, PlanError: If the model cannot be loaded.
        PromptError: If prompts cannot be read, or the model does not answer any.
    """
    inputs, output, model_path = (Path(folder).absolute() for folder in (input_folder, output_folder, model_folder))
    if not 0 < step_size <= 1:
        raise DatasetError(f"step size {step_size}: expected a share of the window above 0 and at most 1")
    dataset_json = read_model_json(model_path / "dataset.json")
    ending = dataset_json["file_ending"]
    cases, failed = find_cases(inputs, ending, len(dataset_json["channel_names"]))
    prepare_output_folder(output, inputs)
    open_model = partial(_open_model, model_path, folds, checkpoint, _at_a_whole_path(question))
    model = open_model("cpu" if cluster else device)
    names = [case.name for case in cases]
    known = [*names, *failed]
    said = None if prompts is None else prompts(known, model.labels)
    run = _Run(model, output, step_size, mirror, said)
    before = _read_settings(output)
    settings = _settings(model_path, model, step_size, mirror) | ({"text": question.text} if question else {})
    settings["prompts"] = _prompts_of_others(before, names) | (said.statements() if said else {})
    for name in _outdated(output, before, settings, names):
        (output / f"{name}{ending}").unlink(missing_ok=True)
    skipped = [case.name for case in cases if is_finished(output / f"{case.name}{ending}", case)]
    _write_companions(output, settings, model)
    to_do = [case for case in cases if case.name not in set(skipped)]
    if cluster is None:
        report = run.predict(to_do, 1 if num_processes is None else max(0, num_processes), progress)
    else:
        job = _Job(uuid4().hex, open_model, device, output, step_size, mirror, said)
        report = _predict_on(cluster, job, to_do, [inputs, model_path, output / TEMPORARY_FOLDER], progress)
    shutil.rmtree(output / TEMPORARY_FOLDER, ignore_errors=True)
    return PredictionReport(report.written, skipped, failed | report.failed)


def prepare_output_folder(output: Path, inputs: Path) -> None:
    """Make the output folder and see that files can be written there.

    Raises:
        DatasetError: If that is impossible, or the folder is the input folder.
    """
    if output.exists() and output.resolve() == inputs.resolve():
        raise DatasetError(f"output folder {output} is the input folder; choose another one with -o")
    try:
        output.mkdir(parents=True, exist_ok=True)
        temporary = output / TEMPORARY_FOLDER
        shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted run left
        temporary.mkdir()
        (temporary / "probe").write_bytes(b"probe")
    except OSError as error:
        raise DatasetError(
            f"output folder {output} cannot be written to ({error}); choose another one with -o"
        ) from error


def _open_model(
    folder: Path,
    folds: Sequence[int | str] | None,
    checkpoint: str | None,
    question: TextQuestion | None,
    device: torch.device | str | None,
) -> LoadedModel:
    model = load_model(folder, folds, checkpoint, _device(device))
    return model if question is None else ask_for_text(model, question)


def _at_a_whole_path(question: TextQuestion | None) -> TextQuestion | None:
    """Name the weights, if they are a file, so that a process in another folder finds them."""
    if question is None or not Path(question.clip_weights).is_file():
        return question
    return replace(question, clip_weights=str(Path(question.clip_weights).absolute()))


def _device(device: torch.device | str | None) -> torch.device:
    if isinstance(device, torch.device):
        return device
    from sam3dnet.devices import choose_device

    return choose_device(device)


def _settings(model_folder: Path, model: LoadedModel, step_size: float, mirror: bool) -> dict[str, Any]:
    """Return what a prediction depends on besides the image."""
    return {
        "model": str(model_folder.resolve()),
        "checkpoints": [
            [file.parent.name, file.name, file.stat().st_size, file.stat().st_mtime_ns]
            for file in model.checkpoint_files
        ],
        "step_size": step_size,
        "mirror": mirror,
    }


def _read_settings(output: Path) -> dict[str, Any] | None:
    """Read the settings of earlier predictions; None where there are none."""
    file = output / SETTINGS_FILE
    return (read_json_if_whole(file) or {}) if file.exists() else None


def _prompts_of_others(before: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """Give the prompts of earlier predictions, but for the cases of this run."""
    return {name: said for name, said in (before or {}).get("prompts", {}).items() if name not in names}


def _outdated(output: Path, before: dict[str, Any] | None, now: dict[str, Any], names: Sequence[str]) -> Sequence[str]:
    """Tell which cases of this run were predicted with other settings or other prompts.

    In a folder without settings these are those with prompts; the rest of it is left alone.
    """
    before = now | {"prompts": {}} if before is None else before
    if before | {"prompts": {}} != now | {"prompts": {}}:
        logger.warning(
            "%s holds predictions of another model or with other settings; those of these images are made anew", output
        )
        return names
    prompts_before = before.get("prompts", {})
    return [name for name in names if now["prompts"].get(name) != prompts_before.get(name)]


def _write_companions(output: Path, settings: dict[str, Any], model: LoadedModel) -> None:
    """Write the settings, and the two files that nnU-Net's tools want beside predictions."""
    contents = {SETTINGS_FILE: settings, "dataset.json": model.dataset_json, "plans.json": model.plans.plans}
    for name, content in contents.items():
        write_json(output / name, content)


class _Run:
    """One run over the cases of a folder."""

    def __init__(
        self,
        model: LoadedModel,
        output: Path,
        step_size: float,
        mirror: bool,
        prompts: Prompts | None,
    ) -> None:
        self._model = model
        self._output = output
        self._input = ImageInput(model)
        self._automatic = AutomaticSegmentation(model, step_size=step_size, mirror=mirror)
        self._prompts = prompts
        self._prompted = None if prompts is None else prompts.answered_by(model, step_size, mirror)

    def predict(self, cases: Sequence[Case], ahead: int, progress: bool) -> PredictionReport:
        """Predict the cases and report how each went."""
        bytes_of = partial(image_bytes, spacing_mm=self._model.configuration.spacing)
        steps = CaseSteps(self._input.read, bytes_of, self._segment, self._write)
        return predict_cases(cases, steps, ahead, progress)

    def _segment(self, case: Case, preprocessed: Preprocessed, on_progress: OnProgress) -> np.ndarray:
        if self._prompts is None or self._prompted is None or not self._prompts.speak_of(case.name):
            return self._automatic.label_map(*preprocessed, on_progress)
        return self._prompted.label_map(case.name, preprocessed, self._input.reader_writer, on_progress)

    def _write(self, case: Case, labels: np.ndarray, properties: Mapping[str, Any]) -> None:
        path = self._output / f"{case.name}{self._model.dataset_json['file_ending']}"
        write_label_map(labels, path, case.files[0], properties, self._input.reader_writer)


@dataclass(frozen=True)
class _Job:
    """A run as the workers of a cluster are told of it; its name alone says which it is."""

    name: str
    open_model: Callable[[torch.device | str | None], LoadedModel] = field(compare=False)
    device: torch.device | str | None = field(compare=False)
    output: Path = field(compare=False)
    step_size: float = field(compare=False)
    mirror: bool = field(compare=False)
    prompts: Prompts | None = field(compare=False)


def _predict_on(
    cluster: "DaskCluster", job: _Job, cases: Sequence[Case], folders: Sequence[Path], progress: bool
) -> PredictionReport:
    """Predict the cases on the workers of a cluster."""
    report = PredictionReport()
    try:
        outcomes = map_cases(partial(_predict_case, job), cases, cluster, "predicting", progress, folders=folders)
    finally:
        cluster.call_on_each(_forget_model)
    for outcome in outcomes:
        if outcome.result is None:
            report.failed[outcome.item.name] = reason_of(outcome.error or Sam3dError("lost"))
        else:
            report.written += outcome.result.written
            report.failed |= outcome.result.failed
    return report


def _predict_case(job: _Job, case: Case) -> PredictionReport:
    return _run_of(job).predict([case], ahead=0, progress=False)


@lru_cache(maxsize=1)
def _run_of(job: _Job) -> _Run:
    """Load the model, once in a process."""
    return _Run(job.open_model(job.device), job.output, job.step_size, job.mirror, job.prompts)


def _forget_model() -> None:
    _run_of.cache_clear()
