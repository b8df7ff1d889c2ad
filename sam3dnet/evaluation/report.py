"""A report on one fold of a model: what was planned, how it trained, how well it does, and where it fails."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation.cases import CaseResult, read_labels
from sam3dnet.evaluation.click_cases import ClickCase, validation_cases
from sam3dnet.evaluation.folder import Evaluation, evaluate_folder
from sam3dnet.evaluation.metrics import METRICS
from sam3dnet.evaluation.report_page import folded, heading, page, paragraph, picture, table
from sam3dnet.evaluation.report_pictures import box_plots, training_curves
from sam3dnet.evaluation.results import SUMMARY_HEADER, evaluation_rows, format_number, notes
from sam3dnet.inference.calibration import read_validated
from sam3dnet.inference.images import Case
from sam3dnet.inference.model_folders import find_model, read_model_dataset, read_model_plans, trained_folds
from sam3dnet.inference.postprocessing import read_postprocessing
from sam3dnet.interactive.planes import three_planes
from sam3dnet.planning.objects import mask_of
from sam3dnet.planning.plan import Plan, load_plan, value_in_words
from sam3dnet.preprocessing.cases import list_training_cases, output_names, read_dataset_json
from sam3dnet.preprocessing.folders import LABELS_FOLDER, Folders, parse_fold, whole_or_nothing
from sam3dnet.preprocessing.reading import DatasetReader, reader_named
from sam3dnet.settings.evaluation import ScoringSettings
from sam3dnet.settings.report import ReportSettings
from sam3dnet.training.epoch_log import LOG_FILE, Epoch, read_log

REPORT_FILE = "report.html"
PLOTTED = ("dice", "nsd", "hd95_mm")


@dataclass(frozen=True)
class ReportedFold:
    """What a report is about.

    Attributes:
        model: Folder of the model.
        fold: Of the model.
        plan: The model's plan.
        log: An entry an epoch; empty where there is no log.
        cases: The validation cases by name; of fold "all" all cases, which it was trained on.
        evaluation: Of the validation; None where nothing has been predicted.
    """

    model: Path
    fold: int | str
    plan: Plan
    log: list[Epoch]
    cases: dict[str, ClickCase]
    evaluation: Evaluation | None

    @property
    def reader(self) -> DatasetReader:
        """Reads the files of the cases."""
        plans = read_model_plans(self.model)
        return reader_named(str(plans["image_reader_writer"]), read_model_dataset(self.model))


def write_report(settings: ReportSettings, folders: Folders) -> Path:
    """Write the report on a fold as one HTML file.

    Args:
        settings: What is asked for.
        folders: Where model, splits and cases are.

    Returns:
        The file.

    Raises:
        Sam3dError: If model, plan, splits or cases are missing.
    """
    model = find_model(
        folders.results, settings.dataset, plans_name=settings.plans, configuration=settings.configuration
    )
    chosen = trained_folds(model)[0] if settings.fold is None else parse_fold(settings.fold)
    dataset = model.parent.name
    validated = _all_cases(folders.raw / dataset) if chosen == "all" else validation_cases(dataset, folders, chosen)
    cases = {case.image.name: case for case in validated}
    reported = ReportedFold(
        model=model,
        fold=chosen,
        plan=load_plan(model / "plans.json"),
        log=read_log(model / f"fold_{chosen}" / LOG_FILE),
        cases=cases,
        evaluation=_evaluate(model, chosen, cases, folders.preprocessed / dataset / LABELS_FOLDER, settings),
    )
    file = model / f"fold_{chosen}" / REPORT_FILE if settings.output is None else Path(settings.output)
    file.parent.mkdir(parents=True, exist_ok=True)
    html = page(f"{dataset}, fold {chosen}", _sections(reported))
    with whole_or_nothing(file) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return file


def _all_cases(raw: Path) -> list[ClickCase]:
    """List what fold "all" is validated on: the cases that it was trained on."""
    cases = list_training_cases(raw, read_dataset_json(raw))
    return [ClickCase(Case(case.name, case.images), case.label) for case in cases]


def telling_cases(evaluation: Evaluation, class_name: str) -> dict[str, CaseResult]:
    """Choose the worst, the median and the best case of a class by Dice, then NSD; cases without it tell nothing.

    Returns:
        By "worst", "median" and "best"; fewer where there are fewer than three cases.
    """
    found = [case for case in evaluation.cases.values() if case.scores[class_name].empty != "both"]
    found.sort(key=lambda case: (case.scores[class_name].dice, case.scores[class_name].nsd))
    places = {"worst": 0, "median": len(found) // 2, "best": len(found) - 1}
    chosen: dict[str, CaseResult] = {}
    for name, place in places.items():
        if found and found[place] not in chosen.values():
            chosen[name] = found[place]
    return chosen


def _evaluate(
    model: Path, fold: int | str, cases: dict[str, ClickCase], labels: Path, settings: ReportSettings
) -> Evaluation | None:
    """Score the predictions that validation at the end of training left, where it did, as it did."""
    predictions = model / f"fold_{fold}" / "validation"
    ending = str(read_model_dataset(model)["file_ending"])
    if not any((predictions / f"{name}{ending}").is_file() for name in cases):
        return None
    scoring = ScoringSettings(
        dataset_json=model / "dataset.json", tolerance=settings.tolerance, num_processes=settings.num_processes
    )
    return evaluate_folder(predictions, labels, scoring, only=cases.keys())


def _sections(reported: ReportedFold) -> Iterator[str]:
    yield paragraph(f"Model {reported.model.name}, written by sam3dnet {version('sam3dnet')}.")
    yield heading("Plan")
    yield _decisions(reported.plan)
    yield heading("Training")
    yield _training(reported)
    yield heading("Validation")
    if reported.evaluation is None:
        yield paragraph("No case of this fold has been predicted yet; training does that at its end.")
        return
    if reported.fold == "all":
        yield paragraph("Fold all was trained on every case: these have been seen in training, and new cases do worse.")
    yield from _metrics(reported.evaluation)
    described, fold_folder = read_model_dataset(reported.model), reported.model / f"fold_{reported.fold}"
    if done := read_postprocessing(reported.model, described, [fold_folder]).in_words(described):
        yield paragraph(
            f"These are scores of label maps as the network gives them. sam3d_predict {done}, as validation chose: of "
            "what that gives sam3d_evaluate tells the scores."
        )
    validated = read_validated([fold_folder])
    if validated.dice.said:
        yield paragraph(f"{validated.in_words()}.")
    yield heading("Worst, median and best case of each class")
    yield paragraph("Three planes through the object: the truth is outlined in green, the prediction in red.")
    yield from _pictures(reported, reported.evaluation)


def _decisions(plan: Plan) -> str:
    rows = [(d.name, value_in_words(d), d.reason, d.source) for d in plan.decisions]
    return table("decisions", ("decision", "value", "reason", "source"), rows, num_left=4)


def _training(reported: ReportedFold) -> str:
    if not reported.log:
        return paragraph(f"There is no {LOG_FILE} in this fold.")
    last = reported.log[-1]
    text = f"{len(reported.log)} epochs, {last.iterations} iterations, {last.seconds / 60:.0f} minutes"
    classes = [name for name in output_names(read_model_dataset(reported.model)) if name != "background"]
    return picture(training_curves(reported.log, classes), f"Training curves: {text}")


def _metrics(evaluation: Evaluation) -> Iterator[str]:
    yield table("metrics", SUMMARY_HEADER, evaluation_rows(evaluation), num_left=2)
    for note in notes(evaluation):
        yield paragraph(note)
    for case, reason in evaluation.failed.items():
        yield paragraph(f"Without result: {case}: {reason}")
    plotted = [metric for metric in METRICS if metric.key in PLOTTED]
    values = {m.title: {name: evaluation.values(name, m.key) for name in evaluation.scoring.classes} for m in plotted}
    yield picture(box_plots(values), "Box plots of every class: quartiles, and every case as a point")
    rows = [
        (name, class_name, *(format_number(float(getattr(score, metric.key))) for metric in METRICS), score.empty)
        for name, case in evaluation.cases.items()
        for class_name, score in case.scores.items()
    ]
    header = ("case", "class", *(metric.title for metric in METRICS), "empty")
    yield folded("All cases", table("cases", header, rows, num_left=2))


def _pictures(reported: ReportedFold, evaluation: Evaluation) -> Iterator[str]:
    for class_name in evaluation.scoring.classes:
        yield heading(class_name, 3)
        for rank, case in telling_cases(evaluation, class_name).items():
            score = case.scores[class_name]
            figures = f"Dice {format_number(score.dice)}, NSD {format_number(score.nsd)}"
            caption = f"{class_name}, {rank} case: {case.files.name}, {figures}"
            yield picture(_planes(reported, evaluation, case, class_name), caption)


def _planes(reported: ReportedFold, evaluation: Evaluation, case: CaseResult, class_name: str) -> bytes:
    values = evaluation.scoring.classes[class_name]
    name = case.files.name
    truth, grid = read_labels(name, case.files.truth, reported.reader)
    assert case.files.prediction is not None
    prediction, _ = read_labels(name, case.files.prediction, reported.reader)
    image, problems = reported.reader.read_voxels(name, reported.cases[name].image.files[0])
    if image is None:
        raise DatasetError(problems[0].message)
    return three_planes(image, mask_of(truth, values), mask_of(prediction, values), grid.spacing_mm)
