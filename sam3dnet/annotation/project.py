"""A dataset that is annotated: images that wait, a model that proposes, masks that are accepted, and what is learned.

    with AnnotationProject(501, images="new_images") as project:
        for case in project.waiting():
            session = project.session(case)
            session.click(...)
            project.accept(case, session)
            if project.accepted_since_training >= 5:
                project.train(minutes=3)

All lies in the folder sam3d_annotation of the raw dataset: its history, all versions of label maps, and images of cases
that were taken out again; what is trained lies in a folder of this name below nnUNet_results.
"""

import getpass
import logging
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar, get_args
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sam3dnet.annotation.fitting import learned_from, require_fitting
from sam3dnet.annotation.followed import KEPT_IMAGES, FollowedFolders
from sam3dnet.annotation.history import (
    Accepted,
    Found,
    History,
    ModelChosen,
    Returned,
    Skipped,
    State,
    TrainingBegun,
    TrainingEnded,
    state_after,
)
from sam3dnet.annotation.images import ProjectImages
from sam3dnet.annotation.judges import is_judge
from sam3dnet.annotation.judging import Proposal, compare
from sam3dnet.annotation.label_file import fitting_labels, read_label_map, require_same_place
from sam3dnet.annotation.labelled import LabelledDataset, LabelVersions, copy_whole, digest_of, label_files
from sam3dnet.annotation.learning import Learning
from sam3dnet.annotation.trainings import Trainings
from sam3dnet.devices import choose_device
from sam3dnet.errors import CheckpointError, DatasetError
from sam3dnet.inference.images import Case, changed_since, find_cases, require_whole, seen_by_file
from sam3dnet.inference.model_folders import find_model
from sam3dnet.preprocessing.checks_description import DATASET_JSON, accepted_checks
from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name, remove_partial_files
from sam3dnet.preprocessing.locking import sole_process
from sam3dnet.preprocessing.reading import reader_of_images
from sam3dnet.preprocessing.schemas import checked

if TYPE_CHECKING:
    from sam3dnet.annotation.first_model import FirstModel
    from sam3dnet.interactive.session import PromptSession
    from sam3dnet.interactive.slice_session import SliceSession
    from sam3dnet.interactive.slices import PictureNetwork
    from sam3dnet.model import Model

FOLDER, DRAFTS = "sam3d_annotation", "drafts"

Order = Literal["unsure", "sure", "name", "random"]
BY_CONFIDENCE: tuple[Order, ...] = ("unsure", "sure")

Opened = TypeVar("Opened", "PromptSession", "SliceSession")

logger = logging.getLogger(__name__)


class AnnotationProject:
    """A dataset with images that wait to be labelled.

    Args:
        dataset: By number or name; its folder is in nnUNet_raw, with a dataset.json that names channels and classes.
        images: Folder of the images, named as in imagesTr.
        model: The first to propose label maps: a model folder; None for that of the last time, or the trained one of
            the dataset, or none.
        device: To compute on; None for the best there is.
        root: Folder of nnU-Net's three folders; None for the variables.
        needs_prompts: Whether models must answer prompts, as sessions need; without, where all label maps come as
            arrays or files.

    Raises:
        DatasetError: If the dataset or the images are not there, somebody annotates the dataset already, or the model
            has other classes or channels.
        CheckpointError, PlanError: If there is no such model, or it cannot be loaded.
        PromptError: If the model must answer prompts, and does not.
        Sam3dError: If there is no such device.
    """

    def __init__(
        self,
        dataset: str | int,
        images: Path | str,
        *,
        model: Path | str | None = None,
        device: str | None = None,
        root: Path | str | None = None,
        needs_prompts: bool = True,
    ):
        if device is not None:
            choose_device(device)
        folders = activate_folders(root)
        self.name, self.images = find_dataset_name(dataset, folders), Path(images).absolute()
        self._device, self._needs_prompts = device, needs_prompts
        self._model: tuple[str, Model] | None = None
        self._opened: dict[str, Proposal] = {}  # the last one, for label maps from elsewhere
        self._sessions: WeakKeyDictionary[object, tuple[str, Proposal]] = WeakKeyDictionary()
        self._first: FirstModel | None = None
        raw = folders.raw / self.name
        self.folder = raw / FOLDER
        self._dataset = LabelledDataset(raw)
        self._lock = sole_process(self.folder, "somebody annotates this dataset already; end that first")
        try:
            self._dataset.prepare()
            self._open(folders, model)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, folders: Any, model: Path | str | None) -> None:
        self.history = History(self.folder)
        self.cases = ProjectImages(self.images, self._dataset, self.folder / KEPT_IMAGES)
        images = self._found() or self.cases.all()
        self.reader = reader_of_images(self._dataset.json, (image.files[0] for image in images))
        self._versions = LabelVersions(self.folder / "labels", self._dataset.ending, self.reader)
        self.learning = Learning(self.name, folders, self.folder, self._device, self._dataset.ending, self.reader)
        self._folders = FollowedFolders(
            self.folder, self._dataset, self._versions, self.history, self.cases.find, self.reader
        )
        for folder in (self.folder, self.folder / DRAFTS, self.folder / KEPT_IMAGES):
            remove_partial_files(folder)
        self._trainings = Trainings(self._dataset, self.history, self._folders, self.cases, self.learning)
        self._folders.recover()
        self.conclude()
        self._choose(self._trained(folders) if model is None and self.state.model is None else model)

    def _found(self) -> list[Case]:
        """List the images of the folder, in which nothing need be left where there is a history."""
        try:
            found, left_out = find_cases(self.images, self._dataset.ending, self._dataset.num_channels)
        except DatasetError as problem:
            if not self.history.events:
                raise
            logger.warning("Warning: %s", problem)
            return []
        for name, why in left_out.items():
            logger.warning("Warning: %s is left out: %s", name, why)
        return found

    def _choose(self, model: Path | str | None) -> None:
        """Have a model propose from now on, unless it or one that was trained from it does; see that it can."""
        state = self.state
        chosen = state.model if model is None else str(Path(model).absolute())
        if chosen is not None and chosen == state.chosen and chosen != state.model:
            logger.warning(
                "Warning: %s was chosen before, and %s, which was trained since, goes on; the history leads back to "
                "the first one",
                *(chosen, state.model),
            )
            chosen = state.model
        if chosen is None:
            return
        if chosen != state.model or _is_there(Path(chosen)):  # else loading it tells
            self._require_fitting(chosen)
        if chosen != state.model:
            if state.model is not None:
                logger.warning("Warning: %s takes the place of %s; the history leads back", chosen, state.model)
            cases, images = learned_from(Path(chosen), self.name)
            self.history.add(ModelChosen(folder=chosen, trained_on=cases, pseudo_labelled=images))
            self._folders.follow([])

    def _require_fitting(self, model: str) -> None:
        require_fitting(Path(model), self.name, self._dataset.json, self.reader, self._needs_prompts)

    def __enter__(self) -> "AnnotationProject":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what runs beside, and let others annotate the dataset; a training goes on the next time."""
        self.learning.end()
        self.history.end()
        self._lock.release()

    @property
    def state(self) -> State:
        """What is labelled, skipped and trained now."""
        return self.history.state

    # Images and label maps

    def images_waiting(self) -> dict[str, Case]:
        """Give the images without a label map, by name."""
        there = self._dataset.labelled()
        found = {case.name: case for case in self.cases.all() if case.name not in there}
        return dict(sorted(found.items()))

    def waiting(self, order: Order = "unsure", seed: int = 0) -> list[str]:
        """Name the images without a label map in the order in which they are best annotated; skipped ones come last.

        Args:
            order: The ones of which the model is the least sure first, as far as that is known, or last; by name; or by
                chance.
            seed: Of chance.

        Raises:
            DatasetError: If there is no such order.
        """
        if order not in get_args(Order):
            raise DatasetError(f"order is {order!r}; expected {', '.join(map(repr, get_args(Order)))}")
        images = self.images_waiting()
        names = list(images)
        if order == "random":
            random.Random(seed).shuffle(names)
        model = self.state.model
        if order in BY_CONFIDENCE and model is not None:
            known = self.learning.expected_dice(model, images)
            middle = statistics.median(known.values()) if known else 0.0
            names.sort(key=lambda name: known.get(name, middle), reverse=order == "sure")
        skipped = self.state.skipped
        return sorted(names, key=lambda name: skipped.index(name) + 1 if name in skipped else 0)

    def session(self, case: str) -> "PromptSession":
        """Open an image: segmented by the model, ready for prompts.

        Raises:
            DatasetError: If there is no such image, or it is damaged.
            CheckpointError: If there is no model.
            PromptError: If the model does not answer prompts.
        """
        from sam3dnet.interactive.session import PromptSession

        begun = time.monotonic()
        session, files = PromptSession(self.model), self.cases.named(case).files
        image = seen_by_file(self.reader.files_of(files))
        automatic_ZYX = session.set_image(files)
        return self._noted(session, case, Proposal(automatic_ZYX, self.state.model, begun, image))

    def first_session(self, case: str, network: "PictureNetwork | None" = None) -> "SliceSession":
        """Open an image while there is no model: boxes and clicks draw objects slice by slice.

        Args:
            case: Name of the image.
            network: For pictures, see `sam3dnet.interactive.slices`; None for LiteMedSAM.

        Raises:
            DatasetError: If there is no such image.
            CheckpointError: If LiteMedSAM is wanted, and its package is not installed.
        """
        begun = time.monotonic()
        files = self.cases.named(case).files
        self._first = self._first if network is None and self._first is not None else self.first_model(network)
        session = self._first.session()
        image = seen_by_file(self.reader.files_of(files))
        return self._noted(session, case, Proposal(session.set_image(files), None, begun, image))

    def _noted(self, session: Opened, case: str, proposal: Proposal) -> Opened:
        """Remember what was proposed for a case, whichever of its sessions or arrays is accepted."""
        self._opened = {case: proposal}
        self._sessions[session] = case, proposal
        return session

    def first_model(self, network: "PictureNetwork | None" = None) -> "FirstModel":
        """Give what stands in for a model; arguments and errors as of `first_session`."""
        from sam3dnet.annotation.first_model import FirstModel
        from sam3dnet.interactive.slices import LiteMedSam

        network = LiteMedSam(choose_device(self._device)) if network is None else network
        return FirstModel(network, self.reader, self.name, self._dataset.json)

    @property
    def num_labelled(self) -> int:
        """How many cases of the dataset have their image and a label map."""
        return len(self._dataset.labelled())

    @property
    def model(self) -> "Model":
        """The model that proposes label maps.

        Raises:
            CheckpointError: If there is none.
        """
        from sam3dnet.model import load_model

        folder = self.state.model
        if folder is None:
            raise CheckpointError(f"{self.name}: no model yet; label a case by first_session(), then train() one")
        if self._model is None or self._model[0] != folder:
            if not _is_there(Path(folder)):
                raise CheckpointError(
                    f"{folder}: expected the model that proposes by the history of {self.name}, which is no longer "
                    "there; put it back, or begin with another one (-m MODEL)"
                )
            self._model = None  # its memory first
            self._model = folder, load_model(folder, device=self._device)
        return self._model[1]

    def accept(
        self,
        case: str,
        labels: "PromptSession | SliceSession | npt.NDArray[Any] | Path | str",
        *,
        corrected: bool | None = None,
        prompts: Mapping[str, Mapping[str, int]] | None = None,
        seconds: float | None = None,
        by: str | None = None,
        proposal: Proposal | None = None,
        prompts_file: Path | None = None,
    ) -> Accepted:
        """Take an image with its label map into the dataset.

        Args:
            case: Name of the image.
            labels: The session that it was opened with; or a label map, (Z, Y, X) on the grid of the image as nnU-Net's
                reader gives it, or its file, which lies where the image does.
            corrected: Whether anything was changed by hand; None: if the label map is not the one that was proposed.
            prompts: How many of each kind were given for each class; None: those of the session.
            seconds: That the case took; None: since it was opened.
            by: Who accepts it; None for the user of the machine.
            proposal: What was proposed; None: by the session of this project that the case was opened with.
            prompts_file: What was said, to be kept beside the label map.

        Returns:
            The event of the history.

        Raises:
            DatasetError: If there is no such image, it was written anew since it was opened, another one of the dataset
                has its name, or the label map cannot be read, does not fit it or has labels that dataset.json does not
                name.
            OSError, RuntimeError: If it cannot be written. Where that is the label map or the event, it was not
                accepted. Where it is the dataset, it was: the dataset gets it once it can be written, see `catch_up`.
        """
        opened, of_session = self._sessions.get(labels, (case, None)) if _is_session(labels) else (case, None)
        if opened != case:
            raise DatasetError(f"{case}: this session was opened for {opened}; give the one of {case}")
        proposal = proposal or of_session or self._opened.get(case)
        image = self.cases.named(case, () if proposal is None else proposal.image)
        self._dataset.require_addable(image, self.reader)
        if proposal is not None and (changed := changed_since(proposal.image)):
            raise DatasetError(
                f"{changed[0]}: was written anew since {case} was opened, so the label map may be of another image; "
                "open it again"
            )
        if prompts is None and _is_session(labels):
            prompts = labels.prompt_counts()
        said = {"prompts": prompts or {}, "by": _user() if by is None else by, "seconds": seconds}
        unmade = {"case": case, "version": 0, "digest": "", **said}
        checked(Accepted, unmade, f"what is said of {case}", DatasetError, "see AnnotationProject.accept")
        labels_ZYX, properties = self._label_map(labels, image)
        self._folders.catch_up()
        self._folders.take_notice([case])
        self._folders.keep(case)
        self._folders.keep_replaced_image(case, image.files)
        version = self._folders.next_version(case)
        digest = self._versions.write(labels_ZYX, case, version, image.files[0], properties)
        if prompts_file is not None and prompts_file.is_file():
            copy_whole(prompts_file, self._versions.file(case, version).with_name(prompts_file.name))
        compared = compare(proposal, labels_ZYX, self._dataset.json, corrected, seconds)
        images, labelled = [one.name for one in self.cases.all()], [*self._dataset.labelled()]
        held_back = is_judge(case, bool(compared["corrected"]), self.state, images, labelled)
        event = self.history.add(
            Accepted(
                case=case,
                version=version,
                digest=digest,
                image=digest_of(image.files),
                held_back=held_back,
                **{**said, **compared},
            )
        )
        self._opened.pop(case, None)
        self._folders.follow([case])
        return event

    def _label_map(
        self, labels: "PromptSession | SliceSession | npt.NDArray[Any] | Path | str", image: Case
    ) -> tuple[npt.NDArray[np.uint16], Mapping[str, Any]]:
        """Give a label map that is accepted, and where its image lies."""
        if _is_session(labels):
            return self._fitting(labels.labels(), image), labels.properties
        require_whole(image, self.reader, accepted_checks(self._dataset.json))
        of_image = self.reader.read_images(image.files)[1]
        if not isinstance(labels, Path | str):
            return self._fitting(np.asarray(labels), image), of_image
        read_ZYX, properties = read_label_map(Path(labels), image.name, self.reader)
        labels_ZYX = self._fitting(read_ZYX, image)
        require_same_place(Path(labels), labels_ZYX, properties, of_image)
        return labels_ZYX, of_image

    def _fitting(self, labels_ZYX: npt.NDArray[Any], image: Case) -> npt.NDArray[np.uint16]:
        return fitting_labels(labels_ZYX, image, self._dataset.json, self.reader)

    def catch_up(self) -> None:
        """Have the dataset hold all that was accepted, where that could not be written.

        Raises:
            DatasetError, OSError, RuntimeError: If it still cannot.
        """
        self._folders.catch_up()

    @property
    def is_behind(self) -> bool:
        """Whether something was accepted, or gone back to, that the dataset does not hold yet; see `catch_up`."""
        return self._folders.are_behind

    def skip(self, case: str) -> None:
        """Put an image off.

        Raises:
            DatasetError: If there is no such image.
        """
        self.cases.named(case)
        self.history.add(Skipped(case=case))
        self._folders.follow([])

    def go_back(self, number: int) -> None:
        """Make everything as it was after an event; later label maps and models are kept, and can be gone back to.

        Args:
            number: Of the event; 0 for before the first.

        Raises:
            DatasetError, CheckpointError, PlanError, PromptError: If there is no such event, or its model does not fit.
            OSError, RuntimeError: If the dataset cannot be written; it follows once it can, see `catch_up`.
        """
        if not 0 <= number <= len(self.history.events):
            raise DatasetError(f"event {number}: the history of {self.name} has 0 to {len(self.history.events)}")
        model = state_after(self.history.events, number).model
        if model is not None and model != self.state.model and _is_there(Path(model)):
            self._require_fitting(model)
        self._folders.catch_up()
        self._folders.take_notice()
        self._folders.catch_up()
        self.conclude()  # what has ended can be gone back to
        self.learning.end()
        self.history.add(Returned(to=number))
        self._opened = {}
        self._folders.follow()

    def take_notice(self, case: str) -> None:
        """Have the history know what somebody has done to the label map of a case in the dataset's folder.

        Args:
            case: That had a label map of the history before; others are left alone.

        Raises:
            DatasetError, OSError, RuntimeError: If it cannot be written, or the dataset not follow.
        """
        self._folders.catch_up()
        self._folders.take_notice([case])
        self._folders.catch_up()

    def images_labelled(self) -> list[str]:
        """Name the cases to which the history gives a label map, and the images of the folder that had one before."""
        labels = self.state.labels
        others = self._dataset.labelled().keys() - labels.keys()
        return sorted({*labels, *(name for name in others if self._dataset.image_in(self.images, name) is not None)})

    def label_of(self, case: str) -> Path | None:
        """Say where the label map that a case has now lies: a version, or where no event is of it, in the dataset."""
        event = self.state.labels.get(case)
        if event is not None:
            return self._versions.file(case, event.version)
        label = self._dataset.label(case)
        known = {one.case for one in self.history.events if isinstance(one, Accepted | Found)}
        is_left = self.is_behind and case in known  # the history has taken it out, and the dataset follows later
        return label if label.is_file() and not is_left else None

    def require_drawable(self, case: str) -> None:
        """See that the label map that a case has now, if any, can be worked on with classes alone.

        Raises:
            DatasetError: If it has voxels to be ignored or cannot be read; or if it is from elsewhere, and has labels
                that are no class, does not lie where its image does, or the dataset has another image of this name.
            OSError, RuntimeError: If the image cannot be read.
        """
        label = self.label_of(case)
        if label is None:
            return
        place = self._dataset.label(case)
        labels_ZYX, properties = read_label_map(label, case, self.reader)
        ignored = self._dataset.json["labels"].get("ignore")
        if ignored is not None and (labels_ZYX == ignored).any():
            raise DatasetError(f"{place}: has voxels to be ignored, which cannot be drawn")
        if not isinstance(self.state.labels.get(case), Accepted):
            image = self.cases.named(case)
            self._dataset.require_addable(image, self.reader)
            self._fitting(labels_ZYX, image)
            require_same_place(place, labels_ZYX, properties, self.reader.read_images(image.files)[1])

    def copy_label(self, case: str, folder: Path) -> None:
        """Copy the label map that a case has now, if any, into a folder, where it can be worked on.

        Raises:
            DatasetError, OSError, RuntimeError: As of `require_drawable`, or if it cannot be written.
        """
        self.require_drawable(case)
        label = self.label_of(case)
        if label is not None:
            own = label.name.removesuffix(self._dataset.ending)
            for file in label_files(label, self.reader):
                copy_whole(file, folder / file.name.replace(own, case, 1))

    # Learning

    @property
    def accepted_since_training(self) -> int:
        """How many cases have a label map that was accepted since the last training began, or since the first."""
        accepted: dict[str, int] = {}
        for event in self.history.events:
            if isinstance(event, TrainingBegun):
                accepted = {}
            elif isinstance(event, Accepted):
                accepted[event.case] = event.version
        labels = self.state.labels
        return sum(case in labels and labels[case].version == version for case, version in accepted.items())

    def begin_training(self, minutes: float) -> TrainingBegun:
        """Begin to train in the background on all that is labelled, from the present model; `conclude` ends it.

        It learns also from images that wait, by what the model has found in them, as far as `rank` has asked it. A
        training that was cut off goes on instead, unless it had not begun to learn and its cases are no longer there.

        Args:
            minutes: To train for.

        Raises:
            DatasetError: If there is nothing to train on, or no time.
            OSError: If it cannot be written; no training has begun then.
        """
        return self._trainings.begin(minutes)

    def images_teach(self) -> bool:
        """Tell whether a training is worth its time before anything is accepted, by the images that wait alone.

        So it is while few cases are labelled, if the model was trained here, has looked at all of these images and has
        found something in at least as many, and no training has learned from any yet. A model from elsewhere is not
        replaced before there are cases that judge.
        """
        return not self.unranked() and self._trainings.images_teach()

    def conclude(self) -> TrainingEnded | None:
        """Use the model of a training that has ended, if it is not worse than the one before; None where none has."""
        return self._trainings.conclude()

    def train(self, minutes: float) -> TrainingEnded:
        """Train on all that is labelled, wait for the end, and use the model if it is not worse; see `begin_training`.

        Raises:
            DatasetError: If there is nothing to train on.
        """
        self.begin_training(minutes)
        self.learning.wait()
        ended = self.conclude()
        assert ended is not None
        return ended

    def rank(self, wait: bool = True) -> None:
        """Find out of which images the model is the least sure, in the background unless that is waited for.

        Raises:
            CheckpointError: If there is no model.
        """
        model = self.state.model
        if model is None:
            raise CheckpointError(f"{self.name}: no model yet, so nothing is known of the images")
        waiting = self.images_waiting()
        if waiting:
            self.learning.begin_ranking(model, waiting)
        if wait:
            self.learning.wait()

    def unranked(self) -> bool:
        """Tell whether there are images about which the present model was never asked."""
        model = self.state.model
        if model is None:
            return False
        waiting = self.images_waiting()
        return not {*waiting} <= {*self.learning.tried(model, waiting), *self.learning.expected_dice(model, waiting)}

    def _trained(self, folders: Any) -> str | None:
        """Find the model that was trained on the dataset, if there is one."""
        try:
            return str(find_model(folders.results, self.name))
        except CheckpointError:
            return None


def _is_session(labels: object) -> "TypeGuard[PromptSession | SliceSession]":
    return hasattr(labels, "prompt_counts")


def _is_there(model: Path) -> bool:
    return model.is_file() or (model / DATASET_JSON).is_file()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no name in this environment, such as a container's
        return ""
