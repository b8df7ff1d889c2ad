"""A trained model from Python: found, loaded once, and asked about as many images as one likes."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sam3dnet.devices import choose_device
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.cascade import load_stages, make_input
from sam3dnet.inference.images import ImageSource
from sam3dnet.inference.model_folders import OUR_PLANS
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.postprocessing import read_postprocessing
from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.interactive.feature_cache import DEFAULT_BYTES, FeaturePool
from sam3dnet.portable.sources import model_folder

if TYPE_CHECKING:
    from sam3dnet.interactive.session import PromptSession

PLANS_FILE = "plans.json"


class Model:
    """Segments images by itself; `session` gives one that answers prompts too.

    Args:
        loaded: The network with the weights of its folds.
        step_size: Step between windows as a share of the window.
        mirror: Whether to average over mirrored windows, along the axes that were mirrored in training.

    Attributes:
        class_names: Of the classes or regions, without background.
        labels: Value of each class in label maps; of a region the one that it is drawn with.
        input: Reads and preprocesses images.
    """

    def __init__(self, loaded: LoadedModel, *, step_size: float = 0.5, mirror: bool = True):
        self.loaded = loaded
        self.options: dict[str, Any] = {"step_size": step_size, "mirror": mirror}
        self.labels = {name: one.label for name, one in prompt_classes(loaded.labels).items()}
        self.class_names = tuple(self.labels)
        self.input = make_input(loaded, **self.options)
        self._automatic = AutomaticSegmentation(loaded, **self.options)

    def segment(self, image: ImageSource, spacing_mm: Sequence[float] | None = None) -> np.ndarray:
        """Segment an image as `sam3d_predict` does, with the post-processing that was chosen for the model.

        Args:
            image: A file, of which further channels lie beside the first (CASE_0000, CASE_0001, ...); the files of all
                channels; or an array (Z, Y, X) or (C, Z, Y, X).
            spacing_mm: (Z, Y, X) of an array; a file says its own.

        Returns:
            The label map on the grid of the array, or of the file as nnU-Net's reader gives it: (Z, Y, X).

        Raises:
            DatasetError: If the image is damaged or not as the model wants it, or an array comes without its spacing.
        """
        preprocessed = self.input.take(image, spacing_mm)
        labels_ZYX = self._automatic.label_map(*preprocessed)
        return self.loaded.postprocessing.applied_to(labels_ZYX, preprocessed[1]["spacing"])

    @cached_property
    def networks(self) -> list[Any]:
        """The networks that answer prompts, one a fold; all sessions of the model share them.

        Raises:
            PromptError: If the model does not answer prompts.
        """
        from sam3dnet.interactive.case import promptable_networks

        return promptable_networks(self.loaded)

    def session(self, *, instance: bool = False, cache_bytes: int | FeaturePool = DEFAULT_BYTES) -> "PromptSession":
        """Begin to answer prompts on one image after the other.

        Args:
            instance: Whether masks hold only the objects that prompts name.
            cache_bytes: See PromptSession.

        Raises:
            PromptError: If the model does not answer prompts.
        """
        from sam3dnet.interactive.session import PromptSession

        return PromptSession(self, instance=instance, cache_bytes=cache_bytes)


def load_model(
    source: Path | str | int | None = None,
    folds: Sequence[int | str] | None = None,
    device: torch.device | str | None = None,
    *,
    checkpoint: str | None = None,
    step_size: float = 0.5,
    mirror: bool = True,
    postprocessing: bool = True,
    root: Path | str | None = None,
    configuration: str = "3d_fullres",
    plans: str = OUR_PLANS,
) -> Model:
    """Load a trained model, of a cascade's second stage with the first, which is predicted on the way.

    Args:
        source: A model folder of nnUNet_results, a zip file from nnUNetv2_export_model_to_zip, or a dataset by number
            or name, such as 501; None for the only trained model.
        folds: Folds whose logits are averaged; None for all trained ones.
        device: Device or its name; None for the best there is.
        checkpoint: Of each fold, such as "best" or the name of a file; None for the final one, else the best, else the
            latest.
        step_size: Step between windows as a share of the window.
        mirror: Whether to average over mirrored windows: several times as slow, slightly more accurate.
        postprocessing: Whether to do what validation or `sam3d_find_best` chose for the model; for sessions too, where
            objects that a prompt names stay.
        root: For a dataset: folder that holds nnUNet_results, in place of the variable of this name.
        configuration: For a dataset or a zip file: the configuration of the plan.
        plans: For a dataset or a zip file: the name of the plan.

    Raises:
        CheckpointError, PlanError: If there is no such model, or it cannot be loaded.
        Sam3dError: If there is no such device.
    """
    chosen = device if isinstance(device, torch.device) else choose_device(device)
    with model_folder(source, root, configuration, plans) as folder:
        loaded = _load(folder, folds, checkpoint, chosen, postprocessing)
    return Model(loaded, step_size=step_size, mirror=mirror)


def _load(
    folder: Path,
    folds: Sequence[int | str] | None,
    checkpoint: str | None,
    device: torch.device | str,
    postprocessing: bool,
) -> LoadedModel:
    loaded = load_stages(folder, folds, checkpoint, device)
    if postprocessing:
        loaded.postprocessing = read_postprocessing(folder, loaded.dataset_json, loaded.fold_folders)
    return loaded
