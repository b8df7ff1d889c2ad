"""The networks, images and prompts that a device's values are compared on."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3dnet.check.batch import CLASSES, Batch, make_batch, make_loss, output_shapes
from sam3dnet.check.networks import Shape, own_arguments
from sam3dnet.check.setting import Setting
from sam3dnet.devices import autocast_to
from sam3dnet.network.prompt_decoder import ImageFeatures, class_margin
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.segmentation import SegmentationNetwork
from sam3dnet.prompts.types import Box, ClassPrompts, Point
from sam3dnet.training.prompting import PromptAnswer
from sam3dnet.training.trainer import PROMPT_LOSS_WEIGHT

CROP: Shape = (16, 24, 20)
IMAGES = 2
STIR = 0.02  # standard deviation of what is added to every weight
LOSS_SCALE = {torch.float16: 1024.0}  # small gradients would underflow
# (name, token stride, encoder, frozen as with SAM's weights)
EXAMPLES = (("small, trained whole", 8, "small", False), ("small, frozen", 4, "small", True))
QUICK_EXAMPLES = (("tiny, frozen", 4, "tiny", True),)


@dataclass(frozen=True)
class Values:
    """What a forward and backward pass gave, on the CPU in float32.

    Attributes:
        levels: Features of the image encoder, on the grid of tokens; empty where it was not listened to.
        outputs: Logits of every resolution, and last the answers to prompts.
        loss: Of all outputs.
        gradients: By parameter.
    """

    levels: list[Tensor]
    outputs: list[Tensor]
    loss: float
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Example:
    """A network with everything in it at work, and a batch for it; both on the CPU."""

    name: str
    network: SAM3D
    batch: Batch

    def values(
        self, device: torch.device, dtype: torch.dtype | None = None, prepare: Callable[[SAM3D], None] | None = None
    ) -> Values:
        """Run forward and backward.

        Args:
            device: Where.
            dtype: Type of matrix products and convolutions; None for float32.
            prepare: Is given the network on the device, and may change it; the encoder is not listened to then.
        """
        network = copied_to(self.network, device)
        batch = self.batch.to(device)
        scale = 1.0 if dtype is None else LOSS_SCALE.get(dtype, 1.0)
        levels: list[Tensor] = []
        if prepare is None:
            network.image_encoder.register_forward_hook(lambda module, inputs, made: levels.extend(made))
        else:
            prepare(network)
        with autocast_to(dtype, device):
            logits, answer = network(batch.image_BCzyx, FixedPrompts(batch.targets[0]))
            loss = make_loss(len(logits)).to(device)(logits, batch.targets) + PROMPT_LOSS_WEIGHT * answer.loss()
        (loss * scale).backward()
        tuned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        gradients = {name: gradient_of(parameter) / scale for name, parameter in tuned.items()}
        outputs = (*logits, answer.margin_Qzyx)
        return Values(plain(levels), plain(outputs), float(loss.detach()), gradients)


def gradient_of(parameter: Tensor) -> Tensor:
    """Give a gradient in float32 on the CPU, zeros where there is none: some only where nothing is compiled."""
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().float().cpu()


def plain(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Give tensors without their graph, in float32 on the CPU."""
    return [tensor.detach().float().cpu() for tensor in tensors]


def make_examples(setting: Setting) -> list[Example]:
    """Make the examples of a setting; the same ones every time."""
    chosen = QUICK_EXAMPLES if setting.quick else EXAMPLES
    return [make_example(name, own_arguments(CROP, stride, size, frozen)) for name, stride, size, frozen in chosen]


def make_example(name: str, arch_kwargs: dict[str, Any]) -> Example:
    """Make an example of a network that answers prompts, from its arguments without them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SAM3D(1, CLASSES, True, **arch_kwargs, prompts=True).train()
        with torch.no_grad():
            for parameter in network.parameters():  # adapters are zero at birth, and would hide what lies before them
                parameter.add_(STIR * torch.randn_like(parameter))
    return Example(name, network, make_batch(CROP, IMAGES, output_shapes(network, CROP)))


def copied_to(network: SAM3D, device: torch.device) -> SAM3D:
    """Give a copy of a network with the same weights on a device, without gradients."""
    return deepcopy(network).to(device)


class FixedPrompts:
    """Asks always the same, whatever the logits are: clicks about one image, a box and a mask about the other.

    Args:
        target_BCzyx: Labels at full resolution, where the network is.
    """

    def __init__(self, target_BCzyx: Tensor):
        self._target_BCzyx = target_BCzyx

    def __call__(self, network: SegmentationNetwork, features: ImageFeatures) -> PromptAnswer:
        """Ask, and return the answer, which has a gradient."""
        logits_BKzyx = features.logits[0].detach()
        batch = PromptBatch.of(_queries(), logits_BKzyx.shape[2:]).to(logits_BKzyx.device)
        margin = class_margin(logits_BKzyx[list(batch.samples)].float(), batch.class_Q, regions=False)
        truth_Qzyx = self._target_BCzyx[list(batch.samples), 0] == batch.class_Q[:, None, None, None]
        answer = margin + network.prompted(features, batch, margin)
        return PromptAnswer(answer, truth_Qzyx, torch.ones_like(truth_Qzyx), batch.class_Q)


def _queries() -> list[Query]:
    mask_zyx = np.zeros(CROP, bool)
    mask_zyx[4:9, 5:15, 3:12] = True
    clicks = (Point((5.0, 10.25, 6.0)), Point((12.0, 2.0, 17.0), positive=False))
    box = Box((2.0, 4.0, 2.0), (10.0, 15.0, 11.0))
    return [Query(0, 1, ClassPrompts(clicks)), Query(1, 2, ClassPrompts(boxes=(box,), mask=mask_zyx))]


def relative_error(values: Tensor, reference: Tensor) -> float:
    """Give the root mean square of the error as a share of the reference's standard deviation."""
    return float((values - reference).norm() / (reference - reference.mean()).norm())


def largest_error(values: Iterable[Tensor], references: Iterable[Tensor]) -> float:
    """Give the largest relative error of several tensors; NaN where one is."""
    return float(np.max([relative_error(*pair) for pair in zip(values, references, strict=True)]))
