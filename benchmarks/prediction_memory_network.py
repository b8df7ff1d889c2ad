"""The network of prediction_memory.py, in a module of its own, where nnU-Net finds it by its name."""

from torch import Tensor, nn


class Pointwise(nn.Module):
    """One convolution of a single voxel, with nnU-Net's signature."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False):
        super().__init__()
        self.convolution = nn.Conv3d(input_channels, num_classes, 1)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return logits (B, K, z, y, x)."""
        return self.convolution(x_BCzyx)
