"""The networks that are measured beside each other at an equal crop, and a training step of any of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from materialised_attention import materialise
from torch import Tensor, nn

from sam3dnet.check.measuring import Variant
from sam3dnet.check.networks import Shape, make_nnunet, own_arguments
from sam3dnet.devices import autocast_on
from sam3dnet.network.peers import make_primus, make_swin_unetr
from sam3dnet.network.published.adapter3dsam import Adapter3DSAM
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.planning.memory import segmentation_loss
from sam3dnet.training.optimizer import build_optimizer

MODES = ("forward", "step")


def make_sam3d(classes: int, patch: Shape, *, stride: int, **options: Any) -> nn.Module:
    """Make our default network; random weights where SAM's would be, frozen all the same."""
    return SAM3D(1, classes, True, **own_arguments(patch, stride, **options))


def make_adapter3dsam(classes: int, patch: Shape, *, fidelity: str, checkpointing: bool = False) -> nn.Module:
    """Make 3DSAM-adapter with tokens of 4 voxels; as published it upsamples and has its bias in memory."""
    arguments = own_arguments(patch, 4) | {"fidelity": fidelity, "checkpointing": checkpointing}
    network = Adapter3DSAM(1, classes, True, **arguments)
    return materialise(network) if fidelity == "as-published" else network


def make_peer(classes: int, patch: Shape, *, make: Callable[[int, int, Shape], nn.Module]) -> nn.Module:
    """Make a network of another package."""
    return make(1, classes, patch)


NETWORKS: dict[str, Callable[[int, Shape], nn.Module]] = {
    "3dsam-adapter, as published": partial(make_adapter3dsam, fidelity="as-published"),
    "3dsam-adapter, corrected": partial(make_adapter3dsam, fidelity="corrected"),
    "3dsam-adapter, corrected, recomputed": partial(make_adapter3dsam, fidelity="corrected", checkpointing=True),
    "sam3d, tokens of 4": partial(make_sam3d, stride=4),
    "sam3d, tokens of 8": partial(make_sam3d, stride=8),
    "sam3d small, from scratch": partial(make_sam3d, stride=8, encoder="small", pretrained=False),
    "nnU-Net PlainConvUNet": partial(make_nnunet, residual=False),
    "nnU-Net ResEnc-M": partial(make_nnunet, residual=True),
    "Primus-S": partial(make_peer, make=make_primus),
    "Swin-UNETR": partial(make_peer, make=make_swin_unetr),
}


def make_variant(network: nn.Module, image_BCzyx: Tensor, mode: str, encoder_only: bool = False) -> Variant:
    """Make a variant of a network on its device: a forward pass as in prediction, or a whole training step.

    Args:
        network: Trained whole, or what of it needs a gradient.
        image_BCzyx: The batch.
        mode: "forward" or "step".
        encoder_only: Run the image encoder alone; its step has the mean of all levels as loss.
    """
    pretrained = bool(getattr(network, "pretrained", False))
    optimizer = build_optimizer(network, pretrained)
    part = network.image_encoder if encoder_only else network

    def forward() -> Any:
        with autocast_on(image_BCzyx.device):
            return part(image_BCzyx)

    def run() -> None:
        if mode == "forward":
            with torch.no_grad():
                forward()
            return
        outputs = forward()
        loss = sum(level.float().mean() for level in outputs) if encoder_only else segmentation_loss(outputs)
        del outputs
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def held() -> list[Tensor]:
        states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        return [image_BCzyx, *network.parameters(), *network.buffers(), *states]

    return Variant(run, held)
