"""The prompts of a run over many cases: read once, stated in the run's settings, and answered case by case."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import PromptError
from sam3dnet.inference.companions import Companion, LabelMaps
from sam3dnet.inference.images import Preprocessed
from sam3dnet.inference.models import LoadedModel
from sam3dnet.interactive.case import PromptedCase, promptable_networks
from sam3dnet.interactive.classes import PromptClass, prompt_classes
from sam3dnet.preprocessing.geometry import case_geometry
from sam3dnet.prompts.files import read_prompts
from sam3dnet.prompts.placing import PlacedPrompts, place_case
from sam3dnet.prompts.stated import FilePrompts, StatedPrompts


@dataclass(frozen=True)
class RunPrompts:
    """What files say about the cases of a run.

    Attributes:
        stated: By case and class.
        classes: Of the model.
        instance: Whether of the cases with prompts all becomes background that these do not name.
    """

    stated: FilePrompts
    classes: Mapping[str, PromptClass]
    instance: bool = False

    @classmethod
    def read(cls, path: Path | str, instance: bool, case_names: Collection[str], labels: Any) -> "RunPrompts":
        """Read a file of prompts, or a folder with some.

        Args:
            path: See `read_prompts`.
            instance: Whether all becomes background that is not named.
            case_names: All cases of the run.
            labels: nnU-Net's LabelManager of the model.

        Raises:
            PromptError: If a file is malformed, or a case or a class is unknown.
        """
        classes = prompt_classes(labels)
        return cls(read_prompts(path, case_names, classes), classes, instance)

    def speak_of(self, name: str) -> bool:
        """Tell whether there are prompts for a case."""
        return bool(self.stated.of_case(name))

    def statements(self) -> dict[str, Any]:
        """Give the prompts of all cases as JSON holds them, so that two runs can be compared."""
        whole = {"whole case": True} if self.instance else {}
        return {
            name: {class_name: [_statement(one) | whole for one in stated] for class_name, stated in by_class.items()}
            for name, by_class in self.stated.cases.items()
        }

    def answered_by(self, model: LoadedModel, step_size: float, mirror: bool) -> "PromptedSegmentation":
        """Have a model answer them.

        Raises:
            PromptError: If it does not answer prompts.
        """
        return PromptedSegmentation(self, model, step_size, mirror)

    def place(self, name: str, case: Preprocessed, model: LoadedModel) -> dict[int, PlacedPrompts]:
        """Bring the prompts of a case to its preprocessed image.

        Args:
            name: Of the case.
            case: The preprocessed image, and what nnU-Net's preprocessor says about it.
            model: The model.

        Returns:
            The prompts by channel of the logits; none where no prompt is stated.

        Raises:
            PromptError: If a prompt does not fit the image.
        """
        image, properties = case
        geometry = case_geometry(properties, model.plans.transpose_forward, image.shape[1:])
        placed = place_case(self.stated.of_case(name), geometry, model.reader, properties)
        return {self.classes[name].index: one for name, one in placed.items()}


class PromptedSegmentation:
    """Segments the cases of a run under their prompts.

    Args:
        prompts: Of all cases.
        model: Answers them.
        step_size: Step between windows as a share of the window.
        mirror: Whether the automatic segmentation is averaged over mirrored windows.
    """

    def __init__(self, prompts: RunPrompts, model: LoadedModel, step_size: float, mirror: bool):
        self._prompts, self._model = prompts, model
        self._networks = promptable_networks(model)
        self._options: dict[str, Any] = {"step_size": step_size, "mirror": mirror, "instance": prompts.instance}

    def label_maps(
        self,
        name: str,
        case: Preprocessed,
        on_progress: Callable[[float], None],
        companion: Companion | None = None,
    ) -> LabelMaps:
        """Segment a case.

        Args:
            name: Of the case.
            case: The preprocessed image, and what nnU-Net's preprocessor says about it.
            on_progress: Called with the share that is done.
            companion: Gets the corrected logits on the image's grid; None where only labels are wanted.

        Returns:
            Labels on the grid of the image as its reader gave it, and the same before what post-processing or
            `--instance` takes out.

        Raises:
            PromptError: If a prompt does not fit the image.
        """
        placed = self._prompts.place(name, case, self._model)
        options = self._options | {"on_progress": on_progress}
        prompted = PromptedCase(self._model, self._networks, case, **options)
        label_maps = prompted.label_maps([placed])
        if companion is not None:
            prompted.give_logits(companion.put)
        return label_maps


def prompt_reader(
    path: Path | str | None, instance: bool = False
) -> Callable[[Collection[str], Any], RunPrompts] | None:
    """Give what reads a run's prompts once its cases and the model's labels are known; None without prompts.

    Args:
        path: File of prompts, or folder with some; what they do not speak of is segmented automatically.
        instance: Whether of images with prompts only the objects are kept that these name.

    Raises:
        PromptError: If there are no prompts to say what to keep.
    """
    if path is None:
        if instance:
            raise PromptError("--instance keeps only what prompts name, but there are none; add --prompts FILE")
        return None
    whole_path = Path(path).absolute()
    return lambda case_names, labels: RunPrompts.read(whole_path, instance, case_names, labels)


def _statement(stated: StatedPrompts) -> dict[str, Any]:
    """Give what one file states; what older runs could not state is there only where it is stated."""
    mask, scribbles = stated.mask_file, [[one.positive, *map(list, one.at)] for one in stated.scribbles]
    new = ({"instance": True} if stated.instance else {}) | ({"scribbles": scribbles} if scribbles else {})
    return new | {
        "space": stated.space,
        "points": [[*point.at, point.positive] for point in stated.points],
        "boxes": [[list(corner) for corner in corners] for corners in stated.boxes],
        "mask": None if mask is None else [str(mask), mask.stat().st_size, mask.stat().st_mtime_ns],
    }
