"""A trained model with the cases that it is clicked on: the validation cases of a fold, or a folder's images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.evaluation.cases import Scoring, make_scoring, mask_of
from sam3dnet.evaluation.click_cases import ClickCase, ClickVolume, cases_of_folders, read_volume, validation_cases
from sam3dnet.evaluation.clicks import Mask, Session
from sam3dnet.evaluation.lesions import DEFAULT_LESION_IOU
from sam3dnet.evaluation.tolerance import Tolerance, choose_tolerance
from sam3dnet.inference.models import OUR_PLANS, find_model, read_model_json, trained_folds
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import load_model
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.preprocessing.progress import Progress
from sam3dnet.prompts.types import ClassPrompts


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
    _reader_writer: Any
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
                    study_case(case, read_volume(case, self._reader_writer, self._dataset_json))
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


def open_model(
    folders: Folders,
    *,
    dataset: str | None = None,
    fold: int | str | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    max_cases: int | None = None,
    tolerance_mm: float | None = None,
    configuration: str = "3d_fullres",
    plans_name: str = OUR_PLANS,
    device: str | None = None,
) -> ClickedModel:
    """Load a trained model and list what to click with it.

    Args:
        folders: Where model, splits and cases are.
        dataset: That the model was trained on; None if there is only one model.
        fold: Whose model is used; None for the first trained one.
        images: Images in place of the validation cases of the fold, with `labels`.
        labels: Their true labels.
        max_cases: Take the first so many cases; None for all.
        tolerance_mm: Of the NSD; None for the literature's, else 2.
        configuration: Of the plan.
        plans_name: Of the plan.
        device: To predict on; None for the best there is.

    Raises:
        Sam3dError: If model, splits or cases are missing.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if (images is None) != (labels is None):
        raise DatasetError("images and labels belong together: give both -i and -g, or neither")
    folder = find_model(folders.results, dataset, plans_name=plans_name, configuration=configuration)
    dataset_json = read_model_json(folder / "dataset.json")
    chosen = trained_folds(folder)[0] if fold is None else fold
    failed: dict[str, str] = {}
    if images is None or labels is None:
        cases = validation_cases(folder.parent.name, folders, chosen)
    else:
        cases, failed = cases_of_folders(images, labels, dataset_json)
    tolerance = choose_tolerance([folder.parent.name], tolerance_mm)
    plans = PlansManager(read_model_json(folder / "plans.json"))
    settings = plans.get_configuration(configuration)
    return ClickedModel(
        folder=folder,
        fold=chosen,
        cases=cases[:max_cases],
        scoring=make_scoring(dataset_json, tolerance.mm, DEFAULT_LESION_IOU),
        tolerance=tolerance,
        patch_mm=np.multiply(settings.patch_size, settings.spacing)[list(plans.transpose_backward)],
        _session=load_model(folder, [chosen], device).session(),
        _reader_writer=plans.image_reader_writer_class(),
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
