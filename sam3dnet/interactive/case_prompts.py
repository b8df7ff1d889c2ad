"""The prompts of a run over many cases: read once, placed in each case, and stated in the settings of the run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.inference.images import Preprocessed
from sam3dnet.inference.models import LoadedModel
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
    def read(cls, path: Path | str, case_names: Collection[str], labels: Any, instance: bool = False) -> "RunPrompts":
        """Read a file of prompts, or a folder with some.

        Args:
            path: See `read_prompts`.
            case_names: All cases of the run.
            labels: nnU-Net's LabelManager of the model.
            instance: Whether all becomes background that is not named.

        Raises:
            PromptError: If a file is malformed, or a case or a class is unknown.
        """
        classes = prompt_classes(labels)
        return cls(read_prompts(path, case_names, classes), classes, instance)

    def statements(self) -> dict[str, Any]:
        """Give the prompts of all cases as JSON holds them, so that two runs can be compared."""
        whole = {"whole case": True} if self.instance else {}
        return {
            name: {class_name: [_statement(one) | whole for one in stated] for class_name, stated in by_class.items()}
            for name, by_class in self.stated.cases.items()
        }

    def place(self, name: str, case: Preprocessed, model: LoadedModel, reader_writer: Any) -> dict[int, PlacedPrompts]:
        """Bring the prompts of a case to its preprocessed image.

        Args:
            name: Of the case.
            case: The preprocessed image, and what nnU-Net's preprocessor says about it.
            model: The model.
            reader_writer: nnU-Net's reader of the image.

        Returns:
            The prompts by channel of the logits; none where no prompt is stated.

        Raises:
            PromptError: If a prompt does not fit the image.
        """
        image, properties = case
        geometry = case_geometry(properties, model.plans.transpose_forward, image.shape[1:])
        placed = place_case(self.stated.of_case(name), geometry, reader_writer, properties)
        return {self.classes[name].index: one for name, one in placed.items()}


def _statement(stated: StatedPrompts) -> dict[str, Any]:
    """Give what one file states; what older runs could not state is there only where it is stated."""
    mask = stated.mask_file
    return ({"instance": True} if stated.instance else {}) | {
        "space": stated.space,
        "points": [[*point.at, point.positive] for point in stated.points],
        "boxes": [[list(corner) for corner in corners] for corners in stated.boxes],
        "mask": None if mask is None else [str(mask), mask.stat().st_size, mask.stat().st_mtime_ns],
    }
