"""Parameter groups and the optimiser."""

from torch import nn
from torch.optim import AdamW, Optimizer

LEARNING_RATE_NEW = 3e-3  # layers that start at random; 1e-3 was slower on Dataset501 at every equal step
LEARNING_RATE_ADAPTER = 4e-4  # trained parts inside a pretrained encoder; 3DSAM-adapter's value
WEIGHT_DECAY = 1e-2
GRADIENT_CLIP = 12.0  # norm; nnU-Net's, and 3DSAM-adapter's for automatic segmentation
EPS = 1e-6  # 1e-8 underflows in half precision (MaskSAM reports NaN)


def build_optimizer(network: nn.Module, pretrained: bool) -> Optimizer:
    """Make AdamW with groups for new layers and for the tuned parts of a pretrained encoder.

    Each comes with and without weight decay: norms, biases and position tables are not decayed.

    Args:
        network: The network; parameters that need no gradient are left out.
        pretrained: Whether the image encoder holds SAM's weights.

    Returns:
        The optimiser; each group holds its base learning rate under "base_lr".
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = LEARNING_RATE_ADAPTER if pretrained and name.startswith("image_encoder.") else LEARNING_RATE_NEW
        decay = 0.0 if parameter.ndim < 2 or "pos" in name.rsplit(".", 1)[-1] else WEIGHT_DECAY
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups.values() for parameter in group)
    return AdamW(settings, eps=EPS, betas=(0.9, 0.99), fused=fused)


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to factor times its base."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(network: nn.Module) -> None:
    """Scale all gradients down to a norm of at most GRADIENT_CLIP.

    Where it is less, a CPU does not write them anew; a card is not waited for to know.
    """
    norm = nn.utils.get_total_norm([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    if norm.device.type != "cpu" or not norm <= GRADIENT_CLIP:  # NaN, too, is for the clipping to deal with
        nn.utils.clip_grads_with_norm_(network.parameters(), GRADIENT_CLIP, norm)
