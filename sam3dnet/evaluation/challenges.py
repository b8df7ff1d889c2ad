"""The protocols of two challenges on interactive segmentation: what a model is told step by step, and its figures.

Both click whole volumes. "cvpr25": Foundation Models for Interactive 3D Biomedical Image Segmentation, CVPR 2025; see
`cvpr25`. "autopet4": the interactive task of autoPET/CT IV, MICCAI 2025; see `autopet4`.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy.integrate import trapezoid

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation import autopet4, cvpr25
from sam3dnet.evaluation.click_cases import ClickCase, ClickVolume
from sam3dnet.evaluation.click_model import ClickedModel, open_model
from sam3dnet.evaluation.clicks import Session, timed
from sam3dnet.evaluation.statistics import SEED
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.settings.evaluation import ChallengeName, EvaluationSettings

ALL_CLASSES = "all classes"


@dataclass(frozen=True)
class Challenge:
    """A protocol.

    Attributes:
        name: Of the option.
        placing: Where prompts go.
        given: How the model gets them.
        steps: What each step is called.
        units: Of each metric.
        first_of_auc: The step that the area under the curve begins with; it ends with the last.
        rule: What the figures mean, in a sentence for the reader.
    """

    name: ChallengeName
    placing: str
    given: str
    steps: tuple[str, ...]
    units: Mapping[str, str]
    first_of_auc: int
    rule: str

    def figure_units(self) -> dict[str, str]:
        """Give the unit of each figure: of a metric at a step, its area under the curve, and its final value."""
        units = dict(self.units)
        width = len(self.steps) - 1 - self.first_of_auc
        for metric, unit in self.units.items():
            area = f"{unit} x click steps"
            if unit != "ml":
                area = f"{metric_title(metric)} x click steps, at most {width}"
            units |= {f"auc_{metric}": area, f"final_{metric}": unit}
        return units


CHALLENGES: dict[ChallengeName, Challenge] = {
    "cvpr25": Challenge(
        name="cvpr25",
        placing="box, then corrective",
        given="one-by-one",
        steps=("box", *(f"{n} click{'' if n == 1 else 's'}" for n in range(1, cvpr25.NUM_CLICKS + 1))),
        units={"dice": "Dice from 0 to 1", "nsd": f"NSD from 0 to 1 at {cvpr25.TOLERANCE_MM:g} mm"},
        first_of_auc=1,
        rule=cvpr25.RULE,
    ),
    "autopet4": Challenge(
        name="autopet4",
        placing="drawn beforehand",
        given="at-once",
        steps=tuple(f"{n} pair{'' if n == 1 else 's'}" for n in range(autopet4.NUM_PAIRS + 1)),
        units={"dice": "Dice from 0 to 1", "false_positive_ml": "ml", "false_negative_ml": "ml"},
        first_of_auc=0,
        rule=autopet4.RULE,
    ),
}


@dataclass(frozen=True)
class Figure:
    """One figure of one class of one case; `step` is None for what sums up all steps, value NaN if undefined."""

    case: str
    class_name: str
    step: int | None
    metric: str
    value: float


@dataclass
class ChallengeStudy:
    """What came of a challenge's protocol.

    Attributes:
        model: Folder of the model.
        fold: Whose model was prompted.
        challenge: The protocol.
        classes: Names, in the order of dataset.json; before them `ALL_CLASSES` where the challenge averages them.
        figures: Of every case.
        absent: In how many cases a class does not occur.
        late: Cases and classes that took too long.
        failed: Cases without result, and why.
    """

    model: Path
    fold: int | str
    challenge: Challenge
    classes: tuple[str, ...]
    figures: list[Figure] = field(default_factory=list)
    absent: dict[str, int] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def values(self, class_name: str, metric: str, step: int | None = None) -> list[float]:
        """Give a figure of a class, one value a case."""
        wanted = (class_name, metric, step)
        return [figure.value for figure in self.figures if (figure.class_name, figure.metric, figure.step) == wanted]


def study_challenge(settings: EvaluationSettings, folders: Folders) -> ChallengeStudy:
    """Prompt a model by a challenge's protocol, and take the challenge's figures.

    Args:
        settings: Which protocol, with which model.
        folders: Where model, splits and cases are.

    Raises:
        Sam3dError: If model, splits or cases are missing, a class is unknown, or no case could be studied.
    """
    assert settings.protocol is not None
    name, without_box = settings.protocol, settings.without_box or []
    model = open_model(settings, folders)
    classes = tuple(model.scoring.classes)
    unknown = [one for one in without_box if one not in classes]
    if unknown:
        raise DatasetError(f"--without-box {', '.join(unknown)}: no such class; the model has {', '.join(classes)}")
    first = (ALL_CLASSES,) if name == "cvpr25" else ()
    study = ChallengeStudy(model.folder, model.fold, CHALLENGES[name], (*first, *classes), failed=model.failed)
    runner: _Cvpr25 | _AutoPet4 = _Cvpr25(study, model, without_box) if name == "cvpr25" else _AutoPet4(study, model)
    model.each_case(runner.study_case)
    if not study.figures:
        raise model.nothing_clicked()
    return study


class _Cvpr25:
    """Scores a case by the protocol of CVPR 2025."""

    def __init__(self, study: ChallengeStudy, model: ClickedModel, without_box: Sequence[str]) -> None:
        self._study, self._model, self._without_box = study, model, without_box

    def study_case(self, case: ClickCase, volume: ClickVolume) -> None:
        """Add the figures of a case, all or none."""
        study, model = self._study, self._model
        present = [name for name in model.scoring.classes if model.truth(volume, name).any()]
        absent = [name for name in model.scoring.classes if name not in present]
        if not present:
            _count_absent(study, absent)
            return
        session, seconds = timed(lambda: model.session_with(volume))
        scores: dict[str, list[cvpr25.StepScore]] = {}
        late: list[str] = []
        for name in present:
            scores[name] = self._score(session, case, volume, name)
            used = seconds / len(present) + sum(score.seconds for score in scores[name])
            if used > cvpr25.MOST_SECONDS:
                scores[name] = [cvpr25.StepScore(0.0, 0.0)] * len(scores[name])
                late.append(f"{case.image.name}, {name} ({used:.0f} s)")
        study.late += late
        by_class = {ALL_CLASSES: cvpr25.mean_of_classes(list(scores.values()))}
        by_class |= {name: cvpr25.mean_of_classes([found]) for name, found in scores.items()}
        for name, found in by_class.items():
            curves = {"dice": [score.dice for score in found], "nsd": [score.nsd for score in found]}
            study.figures += _figures(study.challenge, case, name, curves)
        _count_absent(study, absent)

    def _score(self, session: Session, case: ClickCase, volume: ClickVolume, name: str) -> list[cvpr25.StepScore]:
        truth = self._model.truth(volume, name)
        box = None if name in self._without_box else cvpr25.slice_box(truth, _rng(self._study, case, name))
        steps = cvpr25.steps_of_class(session, truth, name, box)
        return cvpr25.score_steps(steps, truth, volume.spacing_mm, self._model.ignored(volume))


class _AutoPet4:
    """Scores a case by the protocol of autoPET/CT IV."""

    def __init__(self, study: ChallengeStudy, model: ClickedModel) -> None:
        self._study, self._model = study, model

    def study_case(self, case: ClickCase, volume: ClickVolume) -> None:
        """Add the figures of a case, all or none."""
        study, model = self._study, self._model
        session = model.session_with(volume)
        figures: list[Figure] = []
        absent: list[str] = []
        for name in study.classes:
            truth = model.truth(volume, name)
            absent += [] if truth.any() else [name]
            ignored = model.ignored(volume)
            pairs = autopet4.draw_clicks(truth, volume.image_CZYX[-1], ignored, _rng(study, case, name))
            curves = autopet4.curves_of_class(session, truth, name, pairs, volume.spacing_mm)
            figures += _figures(study.challenge, case, name, curves)
        study.figures += figures
        _count_absent(study, absent)


def _rng(study: ChallengeStudy, case: ClickCase, class_name: str) -> Generator:
    seed = f"{case.image.name} {class_name} {study.challenge.name}"
    return np.random.default_rng((SEED, zlib.crc32(seed.encode())))


def _figures(
    challenge: Challenge, case: ClickCase, class_name: str, curves: Mapping[str, Sequence[float]]
) -> list[Figure]:
    """Give every step, the area under the curve by the trapezoid rule with steps of one, and the final value."""
    found: list[tuple[int | None, str, float]] = []
    for metric, curve in curves.items():
        found += [(step, metric, value) for step, value in enumerate(curve)]
        found.append((None, f"auc_{metric}", float(trapezoid(curve[challenge.first_of_auc :]))))
        found.append((None, f"final_{metric}", curve[-1]))
    return [Figure(case.image.name, class_name, *one) for one in found]


def _count_absent(study: ChallengeStudy, names: Sequence[str]) -> None:
    for name in names:
        study.absent[name] = study.absent.get(name, 0) + 1


def metric_title(metric: str) -> str:
    """Name a metric for the reader."""
    return {"dice": "Dice", "nsd": "NSD"}.get(metric, metric)
