"""A trained model with the cases that it is clicked on: the validation cases of a fold, or a folder's images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.evaluation.cases import Scoring, make_scoring
from sam3dnet.evaluation.click_cases import ClickCase, ClickVolume, cases_of_folders, read_volume, validation_cases
from sam3dnet.evaluation.clicks import Mask, Session
from sam3dnet.evaluation.tolerance import Tolerance, choose_tolerance
from sam3dnet.inference.model_folders import find_model, read_model_dataset, read_model_plans, trained_folds
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import load_model
from sam3dnet.planning.objects import mask_of
from sam3dnet.preprocessing.folders import Folders, parse_fold
from sam3dnet.preprocessing.progress import Progress
from sam3dnet.preprocessing.reading import DatasetReader, reader_named
from sam3dnet.prompts.types import ClassPrompts
from sam3dnet.settings.evaluation import LESION_IOU, EvaluationSettings


@dataclass(frozen=True, eq=False)
class ClickedModel:
    """What a study clicks.

    Attributes:
        folder: Of the model.
        fold: Whose model is clicked.
        cases: To click.
        failed: Cases without result, and why; `each_case` adds to it.
        scoring: Classes and ignore label.
        tolerance: Of the NSD.
        patch_mm: What the model sees at once, (Z, Y, X) as the reader gives images.
    """

    folder: Path
    fold: int | str
    cases: list[ClickCase]
    scoring: Scoring
    tolerance: Tolerance
    patch_mm: np.ndarray
    _session: PromptSession
    _reader: DatasetReader
    _dataset_json: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)

    def each_case(self, study_case: Callable[[ClickCase, ClickVolume], None]) -> None:
        """Read and study case after case; one that cannot be costs itself alone.

        Raises:
            DatasetError: If none could be studied.
        """
        done = 0
        with Progress(len(self.cases), "clicking") as progress:
            for case in self.cases:
                try:
                    study_case(case, read_volume(case, self._reader, self._dataset_json))
                    done += 1
                except Sam3dError as error:
                    self.failed[case.image.name] = str(error)
                progress.update(note=case.image.name)
        if not done:
            raise self.nothing_clicked()

    def nothing_clicked(self) -> DatasetError:
        """Say why there is no result."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.failed.items())[:3])
        return DatasetError(f"none of {len(self.cases)} cases could be clicked: {reasons or 'no class occurs'}")

    def session_with(self, volume: ClickVolume) -> Session:
        """Give the session an image; the one before it is gone."""
        self._session.set_image(volume.image_CZYX, volume.spacing_mm, space="voxel")
        return _SessionOnImage(self._session, self.ignored(volume))

    def truth(self, volume: ClickVolume, class_name: str) -> Mask:
        """Mark where a class or region is."""
        return mask_of(volume.labels_ZYX, self.scoring.classes[class_name])

    def ignored(self, volume: ClickVolume) -> Mask | None:
        """Mark what nobody has annotated; None where the dataset has no ignore label."""
        return None if self.scoring.ignore is None else volume.labels_ZYX == self.scoring.ignore


def open_model(settings: EvaluationSettings, folders: Folders) -> ClickedModel:
    """Load a trained model and list what to click with it.

    Args:
        settings: Which model, and which cases.
        folders: Where model, splits and cases are.

    Raises:
        Sam3dError: If model, splits or cases are missing.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = find_model(
        folders.results, settings.dataset, plans_name=settings.plans, configuration=settings.configuration
    )
    dataset_json = read_model_dataset(folder)
    chosen = trained_folds(folder)[0] if settings.fold is None else parse_fold(settings.fold)
    failed: dict[str, str] = {}
    if settings.images is None or settings.labels is None:
        cases = validation_cases(folder.parent.name, folders, chosen)
    else:
        cases, failed = cases_of_folders(Path(settings.images), Path(settings.labels), dataset_json)
    plans = PlansManager(read_model_plans(folder))
    configuration = plans.get_configuration(settings.configuration)
    tolerance = choose_tolerance([folder.parent.name], settings.tolerance, configuration.spacing)
    return ClickedModel(
        folder=folder,
        fold=chosen,
        cases=cases[: settings.cases],
        scoring=make_scoring(dataset_json, tolerance.mm, LESION_IOU),
        tolerance=tolerance,
        patch_mm=np.multiply(configuration.patch_size, configuration.spacing)[list(plans.transpose_backward)],
        _session=load_model(folder, [chosen], settings.device).session(),
        _reader=reader_named(str(plans.plans["image_reader_writer"]), dataset_json),
        _dataset_json=dataset_json,
        failed=failed,
    )


class _SessionOnImage:
    """A session whose masks leave out what nobody has annotated, so that no click corrects it."""

    def __init__(self, session: PromptSession, ignored_ZYX: Mask | None) -> None:
        self._session = session
        self._ignored = ignored_ZYX

    def mask(self, class_name: str) -> Mask:
        return self._annotated(self._session.mask(class_name))

    def click(self, at: tuple[float, float, float], positive: bool, class_name: str) -> Mask:
        return self._annotated(self._session.click(at, positive=positive, class_name=class_name))

    def prompt(self, prompts: ClassPrompts, class_name: str) -> Mask:
        return self._annotated(self._session.prompt(prompts, class_name))

    def reset(self) -> None:
        self._session.reset()

    def _annotated(self, mask_ZYX: Mask) -> Mask:
        return mask_ZYX.copy() if self._ignored is None else mask_ZYX & ~self._ignored
