"""The segmentation of a preprocessed image without prompts: the mean over windows, mirrored versions and folds."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sam3dnet.errors import Sam3dError
from sam3dnet.inference.air import background_logits
from sam3dnet.inference.label_slabs import start_label_map
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.windows import predict_slabs


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
    ) -> np.ndarray:
        """Segment.

        Args:
            image_CZYX: Preprocessed.
            properties: What nnU-Net's preprocessor says about it.
            on_progress: Called with the share that is done.
            keep: Gets the logits (K, Z, Y, X), from `room_for_logits`; None where only labels are wanted.

        Returns:
            Labels on the grid of the image as its reader gave it.

        Raises:
            Sam3dError: If the network's output is not finite.
        """
        model = self._model
        device = next(model.network.parameters()).device
        labels = start_label_map(image_CZYX.shape[1:], properties, model.plans, model.configuration, model.labels)
        slabs = predict_slabs(
            [partial(_network_with, model, weights) for weights in model.weights],
            image_CZYX,
            model.configuration.patch_size,
            model.labels.num_segmentation_heads,
            step_size=self._step_size,
            mirror_axes=self._mirror_axes,
            batch_size=1 if device.type == "cpu" else model.configuration.batch_size,
            background_K=background_logits(model.labels),
            device=device,
            on_progress=on_progress,
        )
        done = 0
        for logits in slabs:
            if not torch.isfinite(logits).all():
                raise Sam3dError("the network's output is not finite; look at the image's intensities, or train again")
            labels.add(logits)
            if keep is not None:
                keep[:, done : done + logits.shape[1]] = logits
                done += logits.shape[1]
        return labels.finish()

    def room_for_logits(self, image_CZYX: Tensor) -> Tensor:
        """Make an empty tensor for the logits of an image, in half precision on the CPU."""
        return torch.empty((self._model.labels.num_segmentation_heads, *image_CZYX.shape[1:]), dtype=torch.half)


def _network_with(model: LoadedModel, weights: dict[str, Tensor]) -> nn.Module:
    if len(model.weights) > 1:
        model.network.load_state_dict(weights)
    return model.network
