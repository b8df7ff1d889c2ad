"""Post-processing of label maps: all but the largest component is taken out of what cross-validation chose.

`sam3d_find_best` decides by nnU-Net's function and stores the decision as JSON beside the model: nnU-Net's own file is
a pickle, which could run code.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StrictInt

from sam3dnet.errors import PlanError
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked

logger = logging.getLogger(__name__)

FILE = "sam3d_postprocessing.json"
REMEDY = "run sam3d_find_best again, or predict with --no-postprocessing"

Step = Annotated[tuple[Annotated[StrictInt, Field(ge=1)], ...], Field(min_length=1)]


class _File(Part):
    format: Literal["sam3dnet-postprocessing/1"]
    keep_largest: tuple[Step, ...]
    labels: dict[str, Any]


@dataclass(frozen=True)
class Postprocessing:
    """What is done with a label map.

    Attributes:
        keep_largest: One step after the other: labels of whose union only the largest component stays.
    """

    keep_largest: tuple[tuple[int, ...], ...] = ()

    def applied_to(self, labels_ZYX: np.ndarray) -> np.ndarray:
        """Give what is left of a label map, by nnU-Net's function; what is taken out becomes background."""
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation,
        )

        for labels in self.keep_largest:
            labels_ZYX = remove_all_but_largest_component_from_segmentation(labels_ZYX, labels)
        return labels_ZYX

    def in_words(self, dataset_json: Mapping[str, Any]) -> str:
        """Say what is done, by the names of the classes; "" for nothing."""
        named = [_name_of(labels, dataset_json["labels"]) for labels in self.keep_largest]
        return f"keeps the largest component of {', then of '.join(named)}" if named else ""


NO_POSTPROCESSING = Postprocessing()


def read_postprocessing(model_folder: Path, dataset_json: Mapping[str, Any]) -> Postprocessing:
    """Read what was decided for a model; nothing where nothing was.

    Raises:
        PlanError: If the file is damaged, or of other classes than the model has.
    """
    file = model_folder / FILE
    if not file.is_file():
        return NO_POSTPROCESSING
    content = checked(_File, read_json(file, PlanError, REMEDY), file, PlanError, REMEDY)
    if content.labels != dataset_json["labels"]:
        raise PlanError(f"{file}: decided for the classes {content.labels}, the model has other ones; {REMEDY}")
    return Postprocessing(content.keep_largest)


def write_postprocessing(
    model_folder: Path, decided: Postprocessing, dataset_json: Mapping[str, Any], why: Mapping[str, Any]
) -> None:
    """Store what was decided for a model.

    Args:
        model_folder: The model.
        decided: Also if it is nothing: what was there before counts no longer.
        dataset_json: Of the model.
        why: Folds and scores, for readers.
    """
    labels = dataset_json["labels"]
    steps = [list(step) for step in decided.keep_largest]
    content = {"format": "sam3dnet-postprocessing/1", "keep_largest": steps, "labels": labels}
    write_json(model_folder / FILE, content | dict(why))


def forget_postprocessing(model_folder: Path) -> None:
    """Remove what was decided for a model that is trained on, and say so."""
    file = model_folder / FILE
    if file.is_file():
        file.unlink()
        logger.warning(
            "Warning: %s is removed: it was chosen for what the model was before; run sam3d_find_best again", file
        )


def _name_of(labels: Sequence[int], names: Mapping[str, Any]) -> str:
    members = {
        name: set(value) if isinstance(value, list | tuple) else {value}
        for name, value in names.items()
        if name != "ignore"
    }
    exactly = [name for name, values in members.items() if values == set(labels)]
    if exactly:
        return exactly[0]
    singles = [name for name, values in members.items() if len(values) == 1 and values <= set(labels)]
    return f"all that is {' or '.join(singles)}" if len(singles) == len(set(labels)) else "the whole foreground"
