"""Small trained modules that carry a frozen 2D encoder to three dimensions."""

import torch.nn.functional as F
from torch import Tensor, nn


class SpatialAdapter(nn.Module):
    """Bottleneck with a depth-wise 3D convolution on a residual branch; the identity at birth.

    Source: the spatial adapter of 3DSAM-adapter (Gong et al. 2024), whose official code puts a ReLU on the residual
    branch and starts at random; here the last layer starts at zero, so pretrained features are left whole.

    Args:
        width: Token width E.
        bottleneck: Width of the branch.
    """

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return tokens of the same shape (B, D, H, W, E)."""
        hidden = F.relu(self.down(tokens_BDHWE)).permute(0, 4, 1, 2, 3)
        hidden = F.relu(self.conv(hidden)).permute(0, 2, 3, 4, 1)
        return tokens_BDHWE + self.up(hidden)
