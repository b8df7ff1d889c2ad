"""Predict all images of a folder, and know from one run to the next what is there; a bad image costs itself alone."""

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from sam3dnet.devices import choose_device
from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.calibration import UNCALIBRATED, Calibration, Validated, read_validated
from sam3dnet.inference.cascade import load_stages, make_input
from sam3dnet.inference.case_pipeline import CaseSteps, OnProgress, PredictionReport, predict_cases, reason_of
from sam3dnet.inference.companions import Companion, LabelMaps, Segmentation, start_companions
from sam3dnet.inference.confidence import ENDING as CONFIDENCE_ENDING
from sam3dnet.inference.confidence import ConfidenceVolume
from sam3dnet.inference.images import Case, Preprocessed, find_cases, image_bytes
from sam3dnet.inference.model_folders import find_model, read_model_dataset, require_model_folder
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.output_record import SETTINGS_FILE, OutputRecord, Source, write_noted_label_map
from sam3dnet.inference.postprocessing import Postprocessing, read_postprocessing
from sam3dnet.inference.probabilities import ProbabilityVolume, are_whole, remove_probabilities
from sam3dnet.inference.text import ask_for_text
from sam3dnet.inference.writing import remove_abandoned, unfinished_folder
from sam3dnet.preprocessing.cases import channel_names, foreground_classes
from sam3dnet.preprocessing.cluster import cluster_at
from sam3dnet.preprocessing.folders import activate_folders, parse_fold, write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.workers import map_cases
from sam3dnet.settings.prediction import PredictionSettings

if TYPE_CHECKING:
    from sam3dnet.preprocessing.cluster import DaskCluster


logger = logging.getLogger(__name__)


class PromptedSegmentation(Protocol):
    """Segments cases under their prompts, see `interactive.run_prompts`."""

    def label_maps(
        self, name: str, case: Preprocessed, on_progress: OnProgress, companion: Companion | None = None
    ) -> LabelMaps:
        """Segment a case; give its label map, and the same before something was taken out."""


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
    settings: PredictionSettings,
    prompts: ReadPrompts | None = None,
    cluster: "DaskCluster | None" = None,
    *,
    only: Collection[str] | None = None,
) -> PredictionReport:
    """Predict a label map for every image of a folder.

    Args:
        settings: What is asked for.
        prompts: Reads what is said about the cases, see `interactive.run_prompts.prompt_reader`; None for nothing.
        cluster: Predicts in place of this process; None for one at the settings' address, if there is one. Each worker
            loads the model once and takes whole cases.
        only: Names of the cases to predict; None for all.

    Returns:
        What was written, skipped and failed; a case fails alone.

    Raises:
        DatasetError: If there is no image, or the output folder cannot be written to, or the step is out of range.
        CheckpointError, PlanError: If there is no such model, or it cannot be loaded.
        PromptError: If prompts cannot be read, or the model does not answer any.
    """
    if not 0 < settings.step <= 1:
        raise DatasetError(f"step size {settings.step}: expected a share of the window above 0 and at most 1")
    settings = _with_whole_paths(settings)
    if cluster is not None:
        return _predict_folder(settings, prompts, cluster, only)
    with cluster_at(settings.scheduler, settings.num_processes) as found:
        return _predict_folder(settings, prompts, found, only)


def _predict_folder(
    settings: PredictionSettings,
    prompts: ReadPrompts | None,
    cluster: "DaskCluster | None",
    only: Collection[str] | None,
) -> PredictionReport:
    inputs, output, model_path = (
        Path(str(folder)) for folder in (settings.input_folder, settings.output_folder, settings.model_folder)
    )
    dataset_json = read_model_dataset(model_path)
    ending = dataset_json["file_ending"]
    cases, failed = find_cases(inputs, ending, len(channel_names(dataset_json)))
    source = Source.of_images(inputs)
    known = {*(case.name for case in cases), *failed, *source.known}  # prompts may speak of other parts' cases too
    if only is not None:
        wanted = set(only)
        cases = [case for case in cases if case.name in wanted]
        failed = {name: why for name, why in failed.items() if name in wanted}
    cases = cases[settings.part_id :: settings.num_parts]
    prepare_output_folder(output, inputs)
    model = _open_model(settings, "cpu" if cluster else settings.device)
    _tell_postprocessing(settings, model)
    said = None if prompts is None else prompts(sorted(known), model.labels)
    if said is not None:
        said.answered_by(model, settings.step, settings.mirror)  # or it says that it cannot before anything is removed
    record = _output_record(settings, model, [case.name for case in cases], said, source)
    sorting = record.sort(cases, _companions_lie_beside(output, model, settings))
    to_do, skipped, failed = sorting.to_do, sorting.skipped, failed | sorting.refused
    kept = {*sorting.kept}
    record.begin([case for case in to_do if case.name not in kept])
    for case in to_do:
        _remove_companions(output / case.name)
    _write_companions(record, model)
    if cluster is None:
        ahead = 1 if settings.num_processes is None else max(0, settings.num_processes)
        report = _Run(settings, model, said).predict(to_do, ahead)
    else:
        job = _Job(uuid4().hex, settings, said)
        report = _predict_on(cluster, job, to_do, [inputs, model_path, output])
    return PredictionReport(report.written, skipped, failed | report.failed)


def _with_whole_paths(settings: PredictionSettings) -> PredictionSettings:
    """Name all places so that a process in another folder finds them, and the model by its folder."""
    weights, stored = settings.clip_weights, settings.prev_stage_predictions
    return replace(
        settings,
        input_folder=Path(settings.input_folder).absolute(),
        output_folder=Path(settings.output_folder).absolute(),
        model_folder=model_folder_of(settings).absolute(),
        clip_weights=str(Path(weights).absolute()) if weights and Path(weights).is_file() else weights,
        prev_stage_predictions=None if stored is None else Path(stored).absolute(),
    )


def model_folder_of(settings: PredictionSettings) -> Path:
    """Find the model that is asked for.

    Raises:
        CheckpointError: If there is none, or several.
    """
    if settings.model_folder is not None:
        folder = Path(settings.model_folder).expanduser()
        require_model_folder(folder)
        return folder
    results = activate_folders(settings.root).results
    return find_model(results, settings.dataset, plans_name=settings.plans, configuration=settings.configuration)


def prepare_output_folder(output: Path, inputs: Path) -> None:
    """Make the output folder and see that files can be written there.

    Raises:
        DatasetError: If that is impossible, or the folder is the input folder.
    """
    if output.exists() and output.resolve() == inputs.resolve():
        raise DatasetError(f"output folder {output} is the input folder; choose another one with -o")
    try:
        output.mkdir(parents=True, exist_ok=True)
        remove_abandoned(output)
        with tempfile.TemporaryFile(dir=output) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise DatasetError(
            f"output folder {output} cannot be written to ({error}); choose another one with -o"
        ) from error


def _open_model(settings: PredictionSettings, device: str | None) -> LoadedModel:
    folds = [parse_fold(fold) for fold in settings.folds or ()]
    folder, stored = Path(str(settings.model_folder)), settings.prev_stage_predictions
    model = load_stages(folder, folds, settings.checkpoint, choose_device(device), previous=stored is None)
    if stored is not None and not model.input_labels:
        raise DatasetError(f"{folder.name} is no second stage of a cascade; leave out --prev-stage-predictions")
    if settings.postprocess:
        model.postprocessing = _stored_postprocessing(settings, model)
    if settings.text is None or settings.clip_weights is None:
        return model
    return ask_for_text(model, settings.text, settings.clip_weights)


def _stored_postprocessing(settings: PredictionSettings, model: LoadedModel) -> Postprocessing:
    return read_postprocessing(Path(str(settings.model_folder)), model.dataset_json, model.fold_folders)


def _tell_postprocessing(settings: PredictionSettings, model: LoadedModel) -> None:
    if model.postprocessing:
        what = model.postprocessing.in_words(model.dataset_json)
        logger.info("post-processing: %s; --no-postprocessing leaves it out", what)
    elif settings.save_probabilities and _stored_postprocessing(settings, model):
        logger.info("post-processing is left out: with probabilities it belongs after the ensemble")


def _output_record(
    settings: PredictionSettings, model: LoadedModel, names: Sequence[str], said: Prompts | None, source: Source
) -> OutputRecord:
    output, ending = Path(settings.output_folder), model.dataset_json["file_ending"]
    before = _read_record(output)
    prompts = _prompts_of_others(before, names) | (said.statements() if said else {})
    stored_labels = partial(_stored_labels, settings.prev_stage_predictions, ending)
    made_with = _record(settings, model)
    return OutputRecord(output, ending, model.reader, made_with, prompts, source, before, stored_labels)


def _record(settings: PredictionSettings, model: LoadedModel) -> dict[str, Any]:
    """Return what a prediction depends on besides the image."""
    done = model.postprocessing.as_json()
    only_where_asked = {
        "text": settings.text,
        "postprocessing": done["keep_largest"],
        "min_volumes": done["min_volumes"],
    }
    return {
        "model": "/".join(Path(str(settings.model_folder)).resolve().parts[-2:]),  # wherever it lies
        "checkpoints": _checkpoints(model),
        "step_size": settings.step,
        "mirror": settings.mirror,
        **({} if model.previous is None else {"previous_stage": _checkpoints(model.previous)}),
        **({} if settings.prev_stage_predictions is None else {"previous_stage": str(settings.prev_stage_predictions)}),
    } | {key: value for key, value in only_where_asked.items() if value}


def _checkpoints(model: LoadedModel) -> list[list[Any]]:
    files = model.checkpoint_files
    return [[file.parent.name, file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _read_record(output: Path) -> dict[str, Any] | None:
    """Read what earlier predictions were made with; None where there are none."""
    file = output / SETTINGS_FILE
    return (read_json_if_whole(file) or {}) if file.exists() else None


def _prompts_of_others(before: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """Give the prompts of earlier predictions, but for the cases of this run."""
    own = set(names)
    return {name: said for name, said in (before or {}).get("prompts", {}).items() if name not in own}


def _stored_labels(folder: str | Path | None, ending: str, name: str) -> list[Path]:
    """Name the first stage's label map of a case, where label maps of the first stage are given."""
    return [] if folder is None else [Path(folder) / f"{name}{ending}"]


def _companions_lie_beside(
    output: Path, model: LoadedModel, settings: PredictionSettings
) -> Callable[[Case, Path], bool]:
    """Make what tells whether all that is wanted lies beside a case's label map, confidences calibrated as of now."""
    calibration = _validated(model).digest if settings.confidence else ""

    def lie_beside(case: Case, label_map: Path) -> bool:
        stem = output / case.name
        if settings.confidence:
            found = read_json_if_whole(stem.with_name(f"{stem.name}{CONFIDENCE_ENDING}")) or {}
            if found.get("calibration") != calibration:
                return False
        if not settings.save_probabilities:
            return True
        grid, _ = model.reader.read_grid(case.name, label_map, is_label=True)
        return grid is not None and are_whole(stem, grid.shape, model.labels.num_segmentation_heads)

    return lie_beside


def _validated(model: LoadedModel) -> Validated:
    """Read what teaches what confidences are worth: the validations of the folds that predict, not those of all cases.

    Of label maps as they are written: a class that post-processing leaves alone was validated without it.
    """
    folds = sorted({file.parent for file in model.checkpoint_files if file.parent.name != "fold_all"})
    changed, classes = model.postprocessing.labels, foreground_classes(model.dataset_json)
    return read_validated(folds, [name for name, labels in classes.items() if changed & {*labels}])


def _remove_companions(stem: Path) -> None:
    """Remove what belongs to a label map that is no longer, or no longer the same."""
    remove_probabilities(stem)
    stem.with_name(f"{stem.name}{CONFIDENCE_ENDING}").unlink(missing_ok=True)


def _calibration_of(model: LoadedModel) -> Calibration:
    """Learn from the validation of the folds that predict."""
    validated = _validated(model)
    found = validated.calibration()
    if not validated.num_cases:
        logger.warning(
            "Warning: confidences are the network's own, which is surer than it should be: no fold that predicts has "
            "been validated with them; sam3d_train DATASET FOLD --validate-only does"
        )
    elif found.left_out:
        logger.warning(
            "Warning: confidences of %s are the network's own, which may be surer than it should be: calibration, "
            "learned from the validation (cases: %d), would not make those of other cases better",
            " and ".join(found.left_out),
            validated.num_cases,
        )
    return found


def _write_companions(record: OutputRecord, model: LoadedModel) -> None:
    """Write the settings, and the two files that nnU-Net's tools want beside predictions."""
    record.write_settings()
    for name, content in {"dataset.json": model.dataset_json, "plans.json": model.plans.plans}.items():
        write_json(record.output / name, content)


class _Run:
    """One run over the cases of a folder."""

    def __init__(self, settings: PredictionSettings, model: LoadedModel, prompts: Prompts | None) -> None:
        self._model = model
        self._output = Path(settings.output_folder)
        self._with_probabilities, self._with_confidence = settings.save_probabilities, settings.confidence
        self._calibration = _calibration_of(model) if settings.confidence else UNCALIBRATED
        self._turn = Lock()  # of the networks: a cascade's first stage is asked where images are read
        stored = settings.prev_stage_predictions
        options: dict[str, Any] = {"step_size": settings.step, "mirror": settings.mirror}
        self._input = make_input(model, self._turn, stored, **options)
        self._automatic = AutomaticSegmentation(model, **options)
        self._prompts = prompts
        self._prompted = None if prompts is None else prompts.answered_by(model, settings.step, settings.mirror)

    def predict(self, cases: Sequence[Case], ahead: int, progress: bool = True) -> PredictionReport:
        """Predict the cases and report how each went."""
        bytes_of = partial(
            image_bytes,
            reader=self._model.reader,
            spacing_mm=self._model.configuration.spacing,
            label_channels=len(self._model.input_labels),
        )
        steps = CaseSteps(self._input.read, bytes_of, self._segment, self._write)
        return predict_cases(cases, steps, ahead, progress)

    def _segment(self, case: Case, preprocessed: Preprocessed, on_progress: OnProgress) -> Segmentation:
        model, properties = self._model, preprocessed[1]
        of_model = (properties, model.plans, model.labels)
        companions = start_companions(
            self._with_probabilities and (lambda: ProbabilityVolume(unfinished_folder(self._output), *of_model)),
            self._with_confidence and (lambda: ConfidenceVolume(*of_model, model.dataset_json, self._calibration)),
        )
        with self._turn:
            work = partial(self._label_maps, case, preprocessed, on_progress, companions or None)
            return Segmentation.of(companions, work)

    def _label_maps(
        self, case: Case, preprocessed: Preprocessed, on_progress: OnProgress, companion: Companion | None
    ) -> LabelMaps:
        if self._prompts is None or self._prompted is None or not self._prompts.speak_of(case.name):
            labels_ZYX = self._automatic.label_map(*preprocessed, on_progress, companion=companion)
            postprocessing = self._model.postprocessing
            if not postprocessing:
                return labels_ZYX, None
            return postprocessing.applied_to(labels_ZYX, preprocessed[1]["spacing"]), labels_ZYX
        return self._prompted.label_maps(case.name, preprocessed, on_progress, companion)

    def _write(self, case: Case, segmentation: Segmentation, properties: Mapping[str, Any]) -> None:
        path = self._output / f"{case.name}{self._model.dataset_json['file_ending']}"
        _remove_companions(self._output / case.name)
        companions = segmentation.companions_of(case.name)
        write_noted_label_map(segmentation.labels_ZYX, path, case.files[0], properties, self._input.reader, companions)


@dataclass(frozen=True)
class _Job:
    """A run as the workers of a cluster are told of it; its name alone says which it is."""

    name: str
    settings: PredictionSettings = field(compare=False)
    prompts: Prompts | None = field(compare=False)


def _predict_on(cluster: "DaskCluster", job: _Job, cases: Sequence[Case], folders: Sequence[Path]) -> PredictionReport:
    """Predict the cases on the workers of a cluster."""
    report = PredictionReport()
    try:
        outcomes = map_cases(partial(_predict_case, job), cases, cluster, "predicting", folders=folders)
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
    return _Run(job.settings, _open_model(job.settings, job.settings.device), job.prompts)


def _forget_model() -> None:
    _run_of.cache_clear()
