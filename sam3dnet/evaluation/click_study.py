"""What clicks are worth: simulated users on the validation cases of a fold, or on images with known labels.

Two protocols. "whole volume": the model gets the image, and is told nothing but the clicks. "crop around truth", as in
the literature on promptable models: the model gets a crop around the true object, and nothing but the crop is scored,
so it is told where to look before the first click. An image whose intensities are scaled by its own mean and deviation
(such as MR) is scaled within the crop then.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from sam3dnet.evaluation.click_cases import ClickCase, ClickVolume, crop_around
from sam3dnet.evaluation.click_model import ClickedModel, open_model
from sam3dnet.evaluation.click_users import User, make_users, steps_after, steps_at
from sam3dnet.evaluation.clicks import Removal, Session, Step, remove_false_positives
from sam3dnet.evaluation.metrics import score_masks
from sam3dnet.evaluation.statistics import SEED
from sam3dnet.evaluation.tolerance import Tolerance
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.settings.evaluation import EvaluationSettings, FirstClick, Given, Placing

WHOLE, CROP = "whole volume", "crop around truth"
PROTOCOLS = (WHOLE, CROP)
_ROUNDING_VOXELS = 1e-3  # files hold spacings in single precision


@dataclass(frozen=True)
class ClickRow:
    """One class of one case after so many clicks of a user."""

    case: str
    class_name: str
    protocol: str
    placing: Placing
    given: Given
    clicks: int
    dice: float
    nsd: float


@dataclass
class ClickStudy:
    """What came of a study.

    Attributes:
        model: Folder of the model.
        folds: Folds whose model was clicked.
        classes: Names, in the order of dataset.json.
        users: Who clicked.
        clicks: Numbers of clicks after which was scored.
        first_click: Where corrective clicks began.
        tolerance: Of the NSD.
        rows: The scores.
        removals: What negative clicks left of false positives of the whole volume, by class.
        absent: In how many cases a class does not occur; it cannot be clicked there.
        first_seconds: Time of each first click of an object in the whole volume, by the first user who clicks one by
            one; after that the image's features are known.
        further_seconds: Time of each further one.
        failed: Cases without result, and why.
    """

    model: Path
    folds: tuple[int | str, ...]
    classes: tuple[str, ...]
    users: tuple[User, ...]
    clicks: tuple[int, ...]
    first_click: FirstClick
    tolerance: Tolerance
    rows: list[ClickRow] = field(default_factory=list)
    removals: dict[str, list[Removal]] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    first_seconds: list[float] = field(default_factory=list)
    further_seconds: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def values(self, class_name: str, protocol: str, clicks: int, metric: str, user: User | None = None) -> list[float]:
        """Give "dice" or "nsd" of a class, one value a case; without a user those of the first."""
        user = user or self.users[0]
        wanted = (class_name, protocol, user.placing, user.given, clicks)
        return [
            getattr(row, metric)
            for row in self.rows
            if (row.class_name, row.protocol, row.placing, row.given, row.clicks) == wanted
        ]


def study_clicks(settings: EvaluationSettings, folders: Folders) -> ClickStudy:
    """Click every class of every case as patient users would, and score the masks.

    Args:
        settings: Who clicks how often, and what.
        folders: Where model, splits and cases are.

    Returns:
        The scores, and what could not be studied.

    Raises:
        Sam3dError: If model, splits or cases are missing, corrective clicks could only be given at once, or no case
            could be studied.
    """
    users = make_users(settings.placing or ["corrective"], settings.given or ["one-by-one"])
    model = open_model(settings, folders)
    classes, clicks = tuple(model.scoring.classes), settings.numbers_of_clicks
    study = ClickStudy(model.folder, (model.fold,), classes, users, clicks, settings.first_click, model.tolerance)
    study.failed = model.failed
    model.each_case(_Runner(study, model).study_case)
    if not study.rows:
        raise model.nothing_clicked()
    return study


class _Runner:
    """Studies one case after the other with one session."""

    def __init__(self, study: ClickStudy, model: ClickedModel) -> None:
        self._study = study
        self._model = model

    def study_case(self, case: ClickCase, volume: ClickVolume) -> None:
        """Add the rows of a case to the study, all or none."""
        present = [name for name in self._study.classes if self._model.truth(volume, name).any()]
        rows: list[ClickRow] = []
        removals: dict[str, list[Removal]] = {}
        seconds: list[list[float]] = []
        session = self._model.session_with(volume)
        for name in present:
            found, times = self._click(session, case, volume, name, WHOLE)
            rows += found
            seconds.append(times)
        for name in self._study.classes:
            removals[name] = remove_false_positives(session, self._model.truth(volume, name), name, volume.spacing_mm)
        for name in present:
            least_shape = np.ceil(np.divide(self._model.patch_mm, volume.spacing_mm) - _ROUNDING_VOXELS).astype(int)
            crop = volume.crop(crop_around(self._model.truth(volume, name), tuple(least_shape.tolist())))
            rows += self._click(self._model.session_with(crop), case, crop, name, CROP)[0]
        self._add(rows, removals, seconds, present)

    def _click(
        self, session: Session, case: ClickCase, volume: ClickVolume, name: str, protocol: str
    ) -> tuple[list[ClickRow], list[float]]:
        """Let every user click a class; score after each number of clicks that is asked for.

        Returns:
            The rows, and the seconds of every click of the first user who clicks one by one.
        """
        rows, seconds = list[ClickRow](), list[float]()
        truth, ignored = self._model.truth(volume, name), self._model.ignored(volume)
        score = partial(score_masks, tolerance_mm=self._study.tolerance.mm, ignored_ZYX=ignored)
        for user in self._study.users:
            steps, times = self._steps(user, session, case, volume, name), list[float]()
            if user.given == "one-by-one":
                steps = steps_at(steps, self._study.clicks, times)
            for clicks, step in zip(self._study.clicks, steps, strict=True):
                found = score(step.mask, truth, volume.spacing_mm)
                place = (case.image.name, name, protocol, user.placing, user.given)
                rows.append(ClickRow(*place, clicks, found.dice, found.nsd))
            seconds = seconds or times
        return rows, seconds

    def _steps(self, user: User, session: Session, case: ClickCase, volume: ClickVolume, name: str) -> Iterator[Step]:
        """Let a user click a class."""
        study = self._study
        seed = f"{case.image.name} {name}" + ("" if user.placing == "corrective" else f" {user.placing}")
        rng = np.random.default_rng((SEED, zlib.crc32(seed.encode())))
        truth = self._model.truth(volume, name)
        return steps_after(user, session, truth, name, volume.spacing_mm, study.clicks, study.first_click, rng)

    def _add(
        self,
        rows: list[ClickRow],
        removals: Mapping[str, list[Removal]],
        seconds: Sequence[Sequence[float]],
        present: Sequence[str],
    ) -> None:
        study = self._study
        study.rows += rows
        for name, found in removals.items():
            study.removals.setdefault(name, []).extend(found)
        for name in set(study.classes) - set(present):
            study.absent[name] = study.absent.get(name, 0) + 1
        for first, *further in filter(None, seconds):
            study.first_seconds.append(first)
            study.further_seconds += further
