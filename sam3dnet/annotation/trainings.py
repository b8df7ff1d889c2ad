"""Trainings of a project: on what each learns, by what it is judged, and whether its model is used."""

import logging
import math
from collections.abc import Collection, Mapping

from sam3dnet.annotation.followed import FollowedFolders
from sam3dnet.annotation.history import History, TrainingBegun, TrainingEnded
from sam3dnet.annotation.images import ProjectImages
from sam3dnet.annotation.job import Result
from sam3dnet.annotation.judges import may_teach
from sam3dnet.annotation.judging import is_no_worse
from sam3dnet.annotation.labelled import LabelledDataset
from sam3dnet.annotation.learning import Learning
from sam3dnet.errors import DatasetError
from sam3dnet.inference.images import Case
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.patients import patients_of
from sam3dnet.preprocessing.problems import shorten

FEW_LABELLED = 20  # so many label maps that what a model finds in images without any teaches it

logger = logging.getLogger(__name__)


class Trainings:
    """The trainings of a project, one at a time.

    Args:
        dataset: That is labelled.
        history: Of the project, which names each training.
        folders: Follow the history.
        cases: All images.
        learning: Runs the trainings.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        history: History,
        folders: FollowedFolders,
        cases: ProjectImages,
        learning: Learning,
    ):
        self._dataset, self._history, self._folders = dataset, history, folders
        self._cases, self._learning = cases, learning

    def begin(self, minutes: float) -> TrainingBegun:
        """Begin to train, or go on; see `AnnotationProject.begin_training`."""
        if not 0 < minutes < math.inf:
            raise DatasetError(f"a training of {minutes} minutes: expected a number above 0")
        self.conclude()
        self._folders.catch_up()
        self._folders.take_notice()
        self._folders.catch_up()
        self._learning.end()  # an order that is looked for, so that its label maps stay as they are
        cases = self._dataset.labelled()
        begun = self._history.state.training
        if begun is not None and not self._learning.is_prepared(begun.training):
            begun = self._prepared_anew(begun, cases)
        if begun is None:
            event = self._next_training(cases, minutes)
            self.prepare(event, cases)
            begun = self._history.add(event)
            self._folders.follow([])
        self._learning.begin_training(begun)
        return begun

    def _next_training(self, cases: Mapping[str, TrainingCase], minutes: float) -> TrainingBegun:
        """Say on what the next training learns, and by what it is judged."""
        without = sorted({*self._dataset.cases()} - {*cases})
        if without:
            logger.warning("Warning: left out, since an image or the label map is missing: %s", ", ".join(without))
        state = self._history.state
        held_back = self._judges(cases)
        training = tuple(sorted(set(cases) - set(held_back)))
        if not training:
            raise DatasetError(f"{self._dataset.folder}: has no case to train on; label one at least")
        number = 1 + max(state.trainings, self._learning.last_number)
        further = self._learning.pseudo_labelled(state.model, self.images_to_learn_from())
        return TrainingBegun(
            training=number,
            cases=training,
            held_back=held_back,
            start=state.model,
            minutes=minutes,
            pseudo_labelled=tuple(further),
        )

    def _judges(self, cases: Collection[str]) -> tuple[str, ...]:
        """Name the cases that judge the next training: those of the history, and further ones of their patients.

        Somebody has put the latter into the dataset; what a model has learned from already trains.
        """
        state = self._history.state
        judges = {name for name in state.held_back if name in cases}
        patients = patients_of({*cases, *(image.name for image in self._cases.all())})
        judging = {patients[name] for name in judges}
        of_them = {name for name in cases if patients[name] in judging} - judges - state.learned_from
        if of_them:
            logger.info("held back, since other cases of their patients judge models: %s", shorten(sorted(of_them)))
        return tuple(sorted(judges | of_them))

    def prepare(self, begun: TrainingBegun, cases: Mapping[str, TrainingCase]) -> None:
        """Make all that a training needs, of cases by name; see `Learning.prepare`."""
        self._learning.prepare(begun, cases, self._dataset.to_train_on(), self.images_to_learn_from())

    def images_to_learn_from(self) -> dict[str, Case]:
        """Give the images that wait and that models may learn from, see `judges.may_teach`."""
        images, labelled = self._cases.all(), self._dataset.labelled()
        waiting = {image.name: image for image in images if image.name not in labelled}
        names = may_teach([*waiting], self._history.state, [image.name for image in images], [*labelled])
        return {name: waiting[name] for name in sorted(names)}

    def _prepared_anew(self, begun: TrainingBegun, cases: Mapping[str, TrainingCase]) -> TrainingBegun | None:
        """Prepare a training that has begun without; where its cases are gone it ends, and None is given."""
        gone = sorted({*begun.cases, *begun.held_back} - {*cases})
        if not gone:
            self.prepare(begun, cases)
            return begun
        why = f"left out: {', '.join(gone)} is no longer there with image and label map, so it could not go on"
        event = TrainingEnded(training=begun.training, folder=None, used=False, before=None, after=None, why=why)
        self._history.add(event)
        self._folders.follow([])
        logger.warning("Warning: training %d: %s", begun.training, why)
        return None

    def images_teach(self) -> bool:
        """Tell whether images that wait teach, all of which the model has looked at; see the project's of this name."""
        if any(isinstance(one, TrainingBegun) and one.pseudo_labelled for one in self._history.events):
            return False
        state, labelled = self._history.state, len(self._dataset.labelled())
        if state.model in (None, state.chosen) or not 0 < labelled <= FEW_LABELLED:
            return False
        return labelled <= len(self._learning.pseudo_labelled(state.model, self.images_to_learn_from()))

    def conclude(self) -> TrainingEnded | None:
        """Use the model of a training that has ended; see `AnnotationProject.conclude`."""
        begun = self._history.state.training
        result = None if begun is None else self._learning.result_of(begun.training)
        if begun is None or result is None:
            return None
        judges = {*begun.held_back} - {*result.left_out}
        used = result.folder is not None and is_no_worse(result.before, result.after, len(judges))
        event = self._history.add(
            TrainingEnded(
                training=begun.training,
                folder=result.folder if used else None,
                used=used,
                before=result.before,
                after=result.after,
                why=(result.problem or _why(used, result, len(judges))) + _left_out(result),
                left_out=tuple(sorted(result.left_out)),
            )
        )
        self._folders.follow([])
        if not used:
            self._learning.forget_model_of(begun.training)
        logger.info("training %d: %s", event.training, event.why)
        return event


def _why(used: bool, result: Result, count: int) -> str:
    before, after = result.before, result.after
    if before is not None and after is not None:
        said = f"agrees to {after:.3f} with {count} cases that were held back, before {before:.3f}"
        return f"used: {said}" if used else f"left out: {said}"
    if used:
        return "used; there is nothing to compare it with yet"
    return "left out: there is no model, or nothing is known of how it agrees with the cases that were held back"


def _left_out(result: Result) -> str:
    told = [f"{name} ({check})" for name, check in sorted(result.left_out.items())]
    return f"; without {shorten(told)}, which cannot be trained on" if told else ""
