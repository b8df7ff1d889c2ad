"""What commands do, called with the fewest words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam3dnet.preprocessing.folders import Folders
from sam3dnet.settings.evaluation import ChallengeName, EvaluationSettings, ScoringSettings
from sam3dnet.settings.prediction import PredictionSettings
from sam3dnet.settings.report import ReportSettings
from sam3dnet.settings.training import TrainingSettings


def predict_folder(images: Path, output: Path, model: Path, cluster: Any = None, **options: Any) -> Any:
    """Predict with a model folder, here or on a cluster."""
    from sam3dnet.inference.predictor import predict_folder
    from sam3dnet.interactive.run_prompts import prompt_reader

    settings = PredictionSettings(input_folder=images, output_folder=output, model_folder=model, **options)
    return predict_folder(settings, prompt_reader(settings.prompts, settings.instance), cluster)


def train_fold(dataset: str, fold: int | str, folders: Folders, validate: bool = True, **options: Any) -> Path:
    """Train, and validate if that is wanted."""
    from sam3dnet.training.run import train_fold

    return train_fold(TrainingSettings(dataset, fold, **options), folders, validate)


def validate_fold(dataset: str, fold: int | str, folders: Folders, **options: Any) -> Path:
    """Validate what was trained."""
    from sam3dnet.training.run import validate_fold

    return validate_fold(TrainingSettings(dataset, fold, validate_only=True, **options), folders)


def evaluate_folder(
    predictions: Path, labels: Path, only: Any = None, progress: bool = False, cluster: Any = None, **options: Any
) -> Any:
    """Score a folder."""
    from sam3dnet.evaluation.folder import evaluate_folder

    settings = ScoringSettings(**options)
    return evaluate_folder(predictions, labels, settings, only=only, progress=progress, cluster=cluster)


def compare_folders(first: Path, second: Path, labels: Path, progress: bool = False, **options: Any) -> Any:
    """Compare two folders."""
    from sam3dnet.evaluation.compare import compare_folders

    return compare_folders(first, second, labels, ScoringSettings(**options), progress=progress)


def study_clicks(clicks: Sequence[int], folders: Folders, **options: Any) -> Any:
    """Study clicks."""
    from sam3dnet.evaluation.click_study import study_clicks

    return study_clicks(EvaluationSettings(clicks=",".join(map(str, clicks)), **options), folders)


def study_challenge(name: ChallengeName, folders: Folders, **options: Any) -> Any:
    """Study what a challenge's protocol makes of a model."""
    from sam3dnet.evaluation.challenges import study_challenge

    return study_challenge(EvaluationSettings(protocol=name, **options), folders)


def write_report(folders: Folders, **options: Any) -> Path:
    """Write a report."""
    from sam3dnet.evaluation.report import write_report

    return write_report(ReportSettings(**options), folders)
