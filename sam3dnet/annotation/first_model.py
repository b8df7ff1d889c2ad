"""What stands in for a model where there is none yet: a network for pictures, asked slice by slice."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.interactive.slice_session import SliceSession
from sam3dnet.interactive.slices import PictureNetwork
from sam3dnet.preprocessing.reading import DatasetReader


@dataclass(frozen=True, eq=False)
class _Loaded:
    """What servers ask of a model that was loaded."""

    reader: DatasetReader
    dataset_json: dict[str, Any]
    labels: LabelManager
    plans: Any
    device: torch.device


class FirstModel:
    """Proposes nothing, and answers boxes and clicks; see `SliceSession`.

    Args:
        network: Sees the slices.
        reader: Of the dataset.
        dataset_name: Of the dataset, for users.
        dataset_json: Of the dataset.

    Attributes:
        class_names: Of the classes or regions, without background.
        loaded: As of a Model.
        networks: As of a Model.
    """

    def __init__(
        self, network: PictureNetwork, reader: DatasetReader, dataset_name: str, dataset_json: Mapping[str, Any]
    ):
        labels = LabelManager(dict(dataset_json["labels"]), dataset_json.get("regions_class_order"))
        plans = SimpleNamespace(plans={"dataset_name": f"{dataset_name}, first masks by {network.name}"})
        self.loaded = _Loaded(reader, dict(dataset_json), labels, plans, torch.device("cpu"))
        self.networks = [network]
        self.class_names = tuple(prompt_classes(labels))

    def session(self, **_options: Any) -> SliceSession:
        """Begin to answer prompts on one image after the other; options of a Model's are left out."""
        return SliceSession(self.networks[0], self.loaded.reader, self.loaded.dataset_json)
