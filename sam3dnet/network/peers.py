"""Networks of others under nnU-Net's signature, so that a plan can name them; none is written anew here.

Axes in names: B batch, C channels, K logits, z y x voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.errors import PlanError
from sam3dnet.network.layers import cropped, interpolate, triple
from sam3dnet.network.published.resolutions import resolution_shapes

Shape = tuple[int, int, int]
SWIN_UNETR_FEATURES = 48  # 62.19 million parameters, as in the literature's tables
SEGRESNET_FILTERS = 16
CAUTIOUS_MULTIPLE = 32  # for networks of which nothing is known: five halvings
PRIMUS_S = {"embed_dim": 396, "eva_depth": 12, "eva_numheads": 6}  # as nnU-Net's trainer of that name


@dataclass(frozen=True)
class Peer:
    """A network of another package.

    Attributes:
        make: (image channels, logits, shape of the input (z, y, x)) -> the network.
        multiple: Input sizes must be multiples of it.
        smallest_grid: Input must hold at least so many blocks of that multiple.
    """

    make: Callable[[int, int, Shape], nn.Module]
    multiple: int
    smallest_grid: int = 1


def make_swin_unetr(input_channels: int, num_classes: int, _shape: Shape) -> nn.Module:
    """Make MONAI's Swin-UNETR."""
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=input_channels, out_channels=num_classes, feature_size=SWIN_UNETR_FEATURES)


def make_unetr(input_channels: int, num_classes: int, shape: Shape) -> nn.Module:
    """Make MONAI's UNETR."""
    from monai.networks.nets import UNETR

    return UNETR(in_channels=input_channels, out_channels=num_classes, img_size=shape)


def make_segresnet(input_channels: int, num_classes: int, _shape: Shape) -> nn.Module:
    """Make MONAI's SegResNet."""
    from monai.networks.nets import SegResNet

    return SegResNet(init_filters=SEGRESNET_FILTERS, in_channels=input_channels, out_channels=num_classes)


def make_primus(input_channels: int, num_classes: int, shape: Shape) -> nn.Module:
    """Make nnU-Net's Primus-S, tokens of 8 voxels."""
    from dynamic_network_architectures.architectures.primus import Primus

    return Primus(
        input_channels,
        patch_embed_size=(8, 8, 8),
        num_classes=num_classes,
        input_shape=shape,
        drop_path_rate=0.2,
        scale_attn_inner=True,
        init_values=0.1,
        **PRIMUS_S,
    )


PEERS = {
    "swin-unetr": Peer(make_swin_unetr, 32, smallest_grid=2),  # its instance norm needs two voxels at the bottom
    "unetr": Peer(make_unetr, 16),
    "segresnet": Peer(make_segresnet, 8),
    "primus": Peer(make_primus, 8),
}


def find_peer(name: str) -> Peer:
    """Give a peer by its name, or the network that "package.module:Class" means.

    Raises:
        PlanError: If there is neither.
    """
    if name in PEERS:
        return PEERS[name]
    module, _, attribute = name.partition(":")
    try:
        network_class = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PlanError(
            f"network {name!r} cannot be found ({error}); expected one of {', '.join(PEERS)}, or package.module:Class "
            "of an installed package, which takes (input_channels, num_classes)"
        ) from error
    return Peer(lambda channels, classes, _shape: network_class(channels, classes), CAUTIOUS_MULTIPLE, 2)


class PeerNetwork(nn.Module):
    """Another package's network: any size in, and as many outputs as nnU-Net's loss wants.

    With deep supervision its only output is repeated at the coarser resolutions; plans leave these out of the loss.

    Args:
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        deep_supervision: Whether to return a list, finest first.
        network: Name of a peer, or package.module:Class.
        patch_size: Voxels (z, y, x) of a training patch.
        token_stride: The input is padded to multiples of it, as far as the network does not want larger ones.
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first.
        encoder: "none"; all plans have it.
        pretrained: False; all plans have it.

    Raises:
        PlanError: If there is no such network.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        network: str,
        patch_size: Sequence[int],
        token_stride: Sequence[int],
        strides: Sequence[Sequence[int]],
        encoder: str = "none",
        pretrained: bool = False,
    ):
        super().__init__()
        self.peer = find_peer(network)
        self.strides = [triple(stride) for stride in strides]
        self.multiple = triple([max(stride, self.peer.multiple) for stride in token_stride])
        self.network = self.peer.make(input_channels, num_classes, self._padded_shape(triple(patch_size)))
        self.decoder = DeepSupervisionSwitch(deep_supervision)

    def _padded_shape(self, shape: Shape) -> Shape:
        grid = [-(-size // multiple) for size, multiple in zip(shape, self.multiple, strict=True)]
        if grid[0] * grid[1] * grid[2] < self.peer.smallest_grid:
            grid[2] = self.peer.smallest_grid
        return triple([number * multiple for number, multiple in zip(grid, self.multiple, strict=True)])

    def forward(self, x_BCzyx: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, K, z, y, x), or with deep supervision a list, finest first."""
        depth, height, width = x_BCzyx.shape[2:]
        larger = self._padded_shape((depth, height, width))
        padded = F.pad(x_BCzyx, (0, larger[2] - width, 0, larger[1] - height, 0, larger[0] - depth))
        logits = cropped(self.network(padded), (depth, height, width))
        if not self.decoder.deep_supervision:
            return logits
        shapes = resolution_shapes(x_BCzyx.shape[2:], self.strides)[1:]
        return [logits, *(interpolate(logits, shape) for shape in shapes)]


class DeepSupervisionSwitch(nn.Module):
    """Where nnU-Net turns deep supervision on and off.

    Args:
        deep_supervision: Whether it is on.
    """

    def __init__(self, deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
