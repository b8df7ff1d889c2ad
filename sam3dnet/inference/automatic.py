"""The segmentation of a preprocessed image without prompts: the mean over windows, mirrored versions and folds."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3dnet.errors import Sam3dError
from sam3dnet.inference.companions import Companion
from sam3dnet.inference.economy import Demand, Setting
from sam3dnet.inference.label_slabs import start_label_map
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.on_disk import let_go, room_for
from sam3dnet.inference.windows import background_logits, predict_slabs

BYTES_A_LOGIT = 4  # of a running sum
LARGEST_HALF = torch.finfo(torch.half).max


class AutomaticSegmentation:
    """Segments images with one model; windows of air are background without asking it.

    Args:
        model: With the weights of one or more folds, whose logits are averaged.
        step_size: Step between windows as a share of the window.
        mirror: Whether to average over mirrored windows, along the axes that were mirrored in training.
    """

    def __init__(self, model: LoadedModel, *, step_size: float = 0.5, mirror: bool = True):
        self._model = model
        self._step_size = step_size
        self._mirror_axes = model.mirror_axes if mirror else ()

    @torch.inference_mode()
    def label_map(
        self,
        image_CZYX: Tensor,
        properties: Mapping[str, Any],
        on_progress: Callable[[float], None] | None = None,
        keep: Tensor | None = None,
        companion: Companion | None = None,
    ) -> np.ndarray:
        """Segment; where the device's memory is exhausted anew, with less of it, see `Economy`.

        Args:
            image_CZYX: Preprocessed.
            properties: What nnU-Net's preprocessor says about it.
            on_progress: Called with the share that is done.
            keep: Gets the logits (K, Z, Y, X), from `room_for_logits`; None where only labels are wanted.
            companion: Gets the logits on the image's grid; None where only labels are wanted.

        Returns:
            Labels on the grid of the image as its reader gave it.

        Raises:
            Sam3dError: If the network's output is not finite.
        """
        work = partial(self._label_map, image_CZYX, properties, on_progress, keep, companion)
        return self._model.economy.attempt(self._demand(image_CZYX), work)

    def _demand(self, image_CZYX: Tensor) -> Demand:
        model = self._model
        device = model.device
        depth, height, width = model.configuration.patch_size
        planes = max(height, image_CZYX.shape[2]) * max(width, image_CZYX.shape[3])
        bytes_a_voxel = BYTES_A_LOGIT * model.labels.num_segmentation_heads
        return Demand(
            device,
            batch_size=1 if device.type == "cpu" else model.configuration.batch_size,
            sum_bytes=bytes_a_voxel * depth * planes,
            window_bytes=bytes_a_voxel * depth * height * width,
        )

    def _label_map(
        self,
        image_CZYX: Tensor,
        properties: Mapping[str, Any],
        on_progress: Callable[[float], None] | None,
        keep: Tensor | None,
        companion: Companion | None,
        setting: Setting,
    ) -> np.ndarray:
        model = self._model
        plan = (model.plans, model.configuration, model.labels)
        labels = start_label_map(image_CZYX.shape[1:], properties, *plan, companion)
        done = 0
        for logits in self._slabs(image_CZYX, on_progress, setting):
            if not torch.isfinite(logits).all():
                raise Sam3dError("the network's output is not finite; look at the image's intensities, or train again")
            labels.add(logits)
            if keep is not None:
                keep[:, done : done + logits.shape[1]] = logits.clamp(-LARGEST_HALF, LARGEST_HALF)
                done += logits.shape[1]
                let_go(keep)
        return labels.finish()

    def _slabs(
        self, image_CZYX: Tensor, on_progress: Callable[[float], None] | None, setting: Setting
    ) -> Iterator[Tensor]:
        model = self._model
        return predict_slabs(
            [partial(model.network_of, fold) for fold in range(len(model.weights))],
            image_CZYX,
            model.configuration.patch_size,
            model.labels.num_segmentation_heads,
            step_size=self._step_size,
            mirror_axes=self._mirror_axes,
            sides=model.sides,
            batch_size=setting.batch_size,
            background_K=background_logits(model.labels),
            device=model.device,
            precision=model.precision,
            sums_device=setting.sums_device,
            on_progress=on_progress,
        )

    def room_for_logits(self, image_CZYX: Tensor) -> Tensor:
        """Make a tensor for the logits of an image, in half precision on the CPU; a large one is on disk."""
        shape = (self._model.labels.num_segmentation_heads, *image_CZYX.shape[1:])
        return room_for(shape, torch.half, "logits")
