"""What all protocols of a server share: one model, one thread for the network, room for features, the clients."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import torch

from sam3dnet.annotation.first_model import FirstModel
from sam3dnet.errors import CheckpointError, PromptError, did_you_mean
from sam3dnet.inference.economy import release_cached
from sam3dnet.inference.images import Case
from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.interactive.feature_cache import FeaturePool
from sam3dnet.model import Model
from sam3dnet.serving.leases import GoneError, Lease, Leases
from sam3dnet.serving.recognition import ImageFolder
from sam3dnet.serving.segment import Found, Segment, orientation_of
from sam3dnet.serving.worker import NetworkWorker

logger = logging.getLogger(__name__)

RESERVED = frozenset(  # what addresses of the page and of ITK-SNAP begin with
    {"viewer", "v2", "upload_raw", "end_session", "reset_interactions"}
    | {f"process_{kind}_interaction" for kind in ("point", "scribble", "lasso")}
)
NO_MEMORY = "the server has not enough memory for this; end other sessions or crop the image"
SILENT_S = 50.0  # and some seconds until that is noticed: a viewer that vanished is forgotten within a minute


class Images(Protocol):
    """The images that viewers show."""

    def cases(self) -> list[Case]:
        """List the images that are there now, by name."""

    def recognise(self, image_CZYX: npt.NDArray[Any]) -> Found | None:
        """Find the image of which a viewer's array is a channel; None if there is none."""


class Hall:
    """A model and those who use it.

    Args:
        model: Answers prompts.
        leases: The clients.
        worker: Its thread has loaded the model; None for a new one. OpenMP keeps threads for each thread that
            computed, and slows all of them down where these are more than there are cores.
        images: Folder whose images viewers show; None to take arrays as they come.
        may_be_empty: Whether there may be none in it, since images are elsewhere, too.
        instance: Whether masks hold only the objects that prompts name.
        largest_bytes: Of an image or mask in memory.
        feature_bytes: What the features of all sessions may take together.

    Attributes:
        class_names: By their name in addresses.
        images: Those of the folder; None if there is none.
        instance: As given.
        title: Of the model, for viewers.
        worker: The thread of the network.

    Raises:
        PromptError: If the model does not answer prompts.
        DatasetError: If there is no such folder, or it has no image as the model wants it.
    """

    def __init__(
        self,
        model: Model | FirstModel,
        leases: Leases,
        *,
        worker: NetworkWorker | None = None,
        images: Path | None = None,
        may_be_empty: bool = False,
        instance: bool = False,
        largest_bytes: int = 4 << 30,
        feature_bytes: int = 4 << 30,
    ):
        _require_answers(model)
        self.model, self.leases = model, leases
        self.largest_bytes = largest_bytes
        self.worker = worker or NetworkWorker()
        self.images: Images | None = None
        if images is not None:
            self.images = ImageFolder(images, model.loaded.reader, model.loaded.dataset_json, may_be_empty)
        self.class_names = slugs(model.class_names)
        dataset = model.loaded.plans.plans.get("dataset_name", "")
        self.title = f"{dataset or 'own model'} (sam3dnet)"
        self.instance = instance
        self._pool = FeaturePool(feature_bytes)
        self._orientation = orientation_of(model.loaded.plans.plans, model.loaded.reader.reorients)

    def use(self, model: Model | FirstModel) -> None:
        """Have another model of the same classes and channels answer those who come from now on.

        Raises:
            CheckpointError: If it has other classes.
            PromptError: If it does not answer prompts.
        """
        _require_answers(model)
        theirs, own = (prompt_classes(one.loaded.labels) for one in (model, self.model))
        if dict(theirs) != dict(own):
            said = [", ".join(f"{name} ({one.label})" for name, one in classes.items()) for classes in (theirs, own)]
            raise CheckpointError(
                f"the new model has the classes {said[0]}, the server began with {said[1]}; start it anew with it"
            )
        self.model = model

    def claim(self, class_name: str | None, beats: bool = True) -> Lease:
        """Begin to serve a client.

        Args:
            class_name: As in addresses or as the model has it; None for the first.
            beats: Whether the client says from time to time that it is still there.

        Raises:
            PromptError: If there is no such class.
            FullError: If there are as many clients as are allowed.
        """
        name = self.find_class(class_name)
        recognise = None if self.images is None else self.images.recognise
        session = self.new_session()
        segment = Segment(session, name, self._orientation, recognise)
        return self.leases.claim(segment, f'class "{name}"', SILENT_S if beats else None)

    def new_session(self) -> Any:
        """Make a session of one more client."""
        return self.model.session(instance=self.instance, cache_bytes=self._pool)

    def release_cached(self) -> None:
        """Give what torch keeps for later back to the model's device, for what comes after memory was exhausted."""
        release_cached(torch.device(self.model.loaded.device))

    def find_class(self, name: str | None) -> str:
        """Give the model's name of a class.

        Raises:
            PromptError: If there is none.
        """
        if name is None:
            return next(iter(self.class_names.values()))
        found = self.class_names.get(slug(name))
        if found is None:
            known = ", ".join(f"/{one}" for one in self.class_names)
            raise PromptError(
                f"there is no class /{slug(name)}{did_you_mean(slug(name), list(self.class_names))}; "
                f"the server's address ends in one of {known}"
            )
        return found

    def reporter(self, lease: Lease) -> Callable[[float], None]:
        """Make what a segmentation calls with the share that is done: it lets short things go first, and tells the log
        of every quarter. It raises GoneError where the client is no longer served, since nobody waits for the rest.
        """
        told = 0

        def report(share: float) -> None:
            nonlocal told
            self.worker.breathe()
            self.leases.find(lease.token)
            quarter = int(4 * share)
            if told < quarter < 4:
                told = quarter
                logger.info("%s: %d %% of the image is segmented", lease.name, 25 * quarter)

        return report

    async def set_image(
        self, lease: Lease, image_CZYX: npt.NDArray[Any], spacing: list[float] | None, axes: str | None = None
    ) -> None:
        """Give a client's image to the network, and tell the log how far it is; see `Segment.set_image`."""
        begun = time.monotonic()
        report = self.reporter(lease)
        take = segment_of(lease).set_image
        await self.worker.run(f"{lease.name}: image", take, image_CZYX, spacing, axes, report, is_long=True)
        self.worker.in_spare_time(segment_of(lease), Segment.look_ahead)
        shape = "x".join(str(size) for size in image_CZYX.shape)
        logger.info("%s: image of %s segmented in %.1f s", lease.name, shape, time.monotonic() - begun)


def _require_answers(model: Model | FirstModel) -> None:
    """See that a model answers prompts; its networks say if it does not."""
    if not model.networks:
        raise PromptError("the model has no network that answers prompts; train one with prompts")


def segment_of(lease: Lease) -> Segment:
    """Give what a viewer segments.

    Raises:
        GoneError: If the client is no viewer but the page in the browser.
    """
    if not isinstance(lease.work, Segment):
        raise GoneError("this session is of the page in the browser; connect again in the viewer")
    return lease.work


def slug(name: str) -> str:
    """Write a name as it can stand in an address."""
    return re.sub(r"[^\w.-]+", "_", name.strip()).strip("_").lower() or "class"


def slugs(names: tuple[str, ...]) -> dict[str, str]:
    """Give names by what they are in addresses, each of its own and none that is reserved."""
    found: dict[str, str] = {}
    for name in names:
        short, number = slug(name), 2
        while short in found or short in RESERVED:
            short, number = f"{slug(name)}_{number}", number + 1
        found[short] = name
    return found
