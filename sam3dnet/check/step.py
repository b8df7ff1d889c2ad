"""A training step, ours or nnU-Net's, on a made-up batch that is on the device already."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from sam3dnet.check.batch import CLASSES, make_batch, make_loss, output_shapes
from sam3dnet.check.measuring import Variant, working_bytes
from sam3dnet.check.networks import Shape, make_nnunet
from sam3dnet.devices import autocast_on, half_type
from sam3dnet.network.segmentation import locate_network
from sam3dnet.planning.memory import storage_bytes
from sam3dnet.planning.methods import DEFAULT_METHOD, METHODS
from sam3dnet.training.drawing import draw_questions
from sam3dnet.training.optimizer import build_optimizer, clip_gradients
from sam3dnet.training.prompting import TrainingPrompter
from sam3dnet.training.target_classes import Classes
from sam3dnet.training.trainer import PROMPT_LOSS_WEIGHT

CORRECTIONS = 1  # the mean of training
FOREGROUND = tuple(range(1, CLASSES))


class TrainingStep:
    """A training step as the trainers take it.

    Args:
        network: With deep supervision, on its device.
        optimizer: Of its parameters.
        crop: Voxels (z, y, x) of an image.
        batch: Images in it.
        token_stride: Of a network that answers prompts; None for one that is not asked.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        crop: Shape,
        batch: int,
        token_stride: tuple[int, ...] | None = None,
    ):
        self.network = network.train()
        self.optimizer = optimizer
        self.device = next(network.parameters()).device
        shapes = output_shapes(network, crop)
        made = make_batch(crop, batch, shapes)
        there = made.to(self.device)
        self.image_BCzyx, self.targets = there.image_BCzyx, there.targets
        self.loss = make_loss(len(shapes))
        self.classes = None if token_stride is None else Classes(FOREGROUND, False, None, (1.0, 1.0, 1.0), token_stride)
        self.target_BCzyx = made.targets[0]  # on the CPU, where the loaders draw what is asked about it
        rng = np.random.default_rng(0)
        self.questions = [] if self.classes is None else draw_questions(self.target_BCzyx, self.classes, rng)
        self.scaler = torch.amp.GradScaler("cuda", enabled=half_type(self.device) is torch.float16)

    def run(self, asked: bool = True) -> None:
        """Take a step; no gradient is left.

        Args:
            asked: Whether a network that answers prompts is asked; training does so every second time.
        """
        with autocast_on(self.device):
            loss = self._asked_loss(self.classes) if asked and self.classes else self._loss()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.network)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self) -> Tensor:
        loss: Tensor = self.loss(self.network(self.image_BCzyx), self.targets)
        return loss

    def _asked_loss(self, classes: Classes) -> Tensor:
        prompter = TrainingPrompter(self.questions, self.target_BCzyx, classes, CORRECTIONS, np.random.default_rng(0))
        logits, answer = self.network(self.image_BCzyx, prompter)
        loss: Tensor = self.loss(logits, self.targets) + PROMPT_LOSS_WEIGHT * answer.loss()
        return loss

    def held(self) -> list[Tensor]:
        """Return what is there before and after a step, targets left out as the planner leaves them out."""
        states = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return [self.image_BCzyx, *self.network.parameters(), *self.network.buffers(), *states]

    def peak_bytes(self) -> int:
        """Measure a step after the first, when the optimiser has its state."""
        self.run()
        working = working_bytes(Variant(self.run, lambda: [*self.held(), *self.targets]), self.device)
        return working + storage_bytes(self.held())


def own_step(
    arch_kwargs: dict[str, Any],
    batch: int,
    device: torch.device,
    network_class: str = METHODS[DEFAULT_METHOD].network_class,
) -> TrainingStep:
    """Make a step of our trainer.

    Args:
        arch_kwargs: Arguments of the network, as in a plan.
        batch: Images in it.
        device: Where it runs.
        network_class: Where the network's class is, as in a plan.
    """
    network = locate_network(network_class)(1, CLASSES, True, **arch_kwargs).to(device)
    optimizer = build_optimizer(network, arch_kwargs["pretrained"])
    stride = tuple(arch_kwargs["token_stride"]) if arch_kwargs.get("prompts") else None
    z, y, x = arch_kwargs["patch_size"]
    return TrainingStep(network, optimizer, (z, y, x), batch, stride)


def nnunet_step(
    crop: Shape, batch: int, device: torch.device, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> TrainingStep:
    """Make a step of nnU-Net's trainer, with its plain U-Net; not compiled."""
    network = make_nnunet(CLASSES, crop, residual=False, spacing_mm=spacing_mm).to(device)
    optimizer = SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    return TrainingStep(network, optimizer, crop, batch)
