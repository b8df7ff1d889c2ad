"""The network of prediction_memory.py, in a module of its own, where nnU-Net finds it by its name."""

from torch import Tensor, nn

from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import PromptBatch


class Pointwise(nn.Module):
    """One convolution of a single voxel, with nnU-Net's signature; prompts add nothing to what it says."""

    answers_prompts = True

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False):
        super().__init__()
        self.convolution = nn.Conv3d(input_channels, num_classes, 1)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """Return logits (B, K, z, y, x)."""
        return self.convolution(x_BCzyx)

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return what prompts are answered from: next to nothing."""
        return ImageFeatures(x_BCzyx[..., :1, :1, :1], (), (self(x_BCzyx),))

    def prompted(self, _features: ImageFeatures, _batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Return what prompts add to the margin."""
        return 0 * margin_Qzyx

    def reach(self, _class_index: int) -> tuple[float, float, float]:
        """Return how far answers reach, in voxels."""
        return 10.0, 10.0, 10.0
