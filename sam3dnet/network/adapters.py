"""Small trained modules that carry a frozen 2D encoder to three dimensions, each from its own paper.

All take tokens (B, D, H, W, E) and their width E with a bottleneck, and end in zeros, so pretrained features are left
whole at birth.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.layers import DepthwiseConv3d
from sam3dnet.network.target_device import without_autocast

LORA_RANK = 4
Activation = Callable[[Tensor], Tensor]


def zero_linear(channels_in: int, channels_out: int, bias: bool = True) -> nn.Linear:
    """Make a linear layer of zeros, the last one of every adapter."""
    layer = nn.Linear(channels_in, channels_out, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ConvAdapter(nn.Module):
    """Bottleneck with a depth-wise 3D convolution on a residual branch; the identity at birth.

    The kernel tells the papers apart: 3x3x3 is the spatial adapter of 3DSAM-adapter (Gong et al. 2024), whose official
    code puts a ReLU on the residual branch and starts at random; 3x1x1 is ST-Adapter (Pan et al. 2022); 1x3x3 is
    Pro-tuning's prompt block (Nie et al. 2022).

    Args:
        width: Token width E.
        bottleneck: Width of the branch.
        kernel: Tokens (depth, height, width) that the convolution covers, odd numbers.
        before: Activation before the convolution; None for none.
        after: Activation after the convolution.
        bias: Whether the convolution has one.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        before: Activation | None = F.relu,
        after: Activation = F.relu,
        bias: bool = True,
    ):
        super().__init__()
        self.before, self.after = before, after
        self.down = nn.Linear(width, bottleneck)
        self.conv = DepthwiseConv3d(bottleneck, kernel, bias)
        self.up = zero_linear(bottleneck, width)

    def forward(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return tokens of the same shape (B, D, H, W, E)."""
        return tokens_BDHWE + self.branch(tokens_BDHWE)

    def branch(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return what is added to the tokens."""
        hidden = self.down(tokens_BDHWE)
        hidden = hidden if self.before is None else self.before(hidden)
        hidden = self.after(self.conv(hidden.permute(0, 4, 1, 2, 3))).permute(0, 2, 3, 4, 1)
        return self.up(hidden)


class BottleneckAdapter(nn.Module):
    """Bottleneck on a residual branch, token by token; the identity at birth.

    Source: the adapter of Houlsby et al. (2019), there after the attention and after the MLP of each block.

    Args:
        width: Token width E.
        bottleneck: Width of the branch.
    """

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = zero_linear(bottleneck, width)

    def forward(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return tokens of the same shape (B, D, H, W, E)."""
        return tokens_BDHWE + self.up(F.gelu(self.down(tokens_BDHWE)))


class MultiScaleAdapter(nn.Module):
    """Bottleneck with depth-wise convolutions of several sizes and a Fourier branch; the identity at birth.

    Source: the Med-Adapter of Med-Tuning (Shen et al. 2023): local features at several scales within and across slices,
    and a global branch by fast Fourier transform. Kernel sizes and the pointwise mixing of the spectrum are ours; the
    interaction between the adapters of different stages is left out.

    Args:
        width: Token width E.
        bottleneck: Width of the branch.
    """

    KERNELS = ((1, 3, 3), (1, 5, 5), (3, 1, 1))

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.convs = nn.ModuleList(DepthwiseConv3d(bottleneck, kernel) for kernel in self.KERNELS)
        self.spectrum = nn.Conv3d(2 * bottleneck, 2 * bottleneck, 1, groups=bottleneck)
        self.up = zero_linear(bottleneck, width)

    def forward(self, tokens_BDHWE: Tensor) -> Tensor:
        """Return tokens of the same shape (B, D, H, W, E)."""
        hidden = F.gelu(self.down(tokens_BDHWE)).permute(0, 4, 1, 2, 3)
        mixed = self._global(hidden) + sum(conv(hidden) for conv in self.convs)
        return tokens_BDHWE + self.up(F.gelu(mixed).permute(0, 2, 3, 4, 1))

    def _global(self, hidden_BCDHW: Tensor) -> Tensor:
        """Mix real and imaginary part of every frequency, in float32: there is no Fourier transform in bf16."""
        with without_autocast(hidden_BCDHW):
            spectrum = torch.fft.rfftn(hidden_BCDHW.float(), dim=(2, 3, 4), norm="ortho")
            parts = torch.stack((spectrum.real, spectrum.imag), 2).flatten(1, 2)
            real, imaginary = self.spectrum(parts).unflatten(1, (-1, 2)).unbind(2)
            mixed = torch.complex(real.contiguous(), imaginary.contiguous())
            return torch.fft.irfftn(mixed, s=hidden_BCDHW.shape[2:], dim=(2, 3, 4), norm="ortho")


class LowRankUpdate(nn.Module):
    """A matrix of low rank beside the attention's query and value projection; zero at birth.

    Source: LoRA (Hu et al. 2021), which adapts queries and values.

    Args:
        width: Token width E.
        rank: Rank of each update.
    """

    def __init__(self, width: int, rank: int = LORA_RANK):
        super().__init__()
        self.down_query = nn.Linear(width, rank, bias=False)
        self.down_value = nn.Linear(width, rank, bias=False)
        self.up_query = zero_linear(rank, width, bias=False)
        self.up_value = zero_linear(rank, width, bias=False)

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        """Return what is added to the queries, keys and values of tokens (B, N, E): (B, N, 3 * E)."""
        query = self.up_query(self.down_query(tokens_BNE))
        value = self.up_value(self.down_value(tokens_BNE))
        return torch.cat((query, torch.zeros_like(query), value), -1)
