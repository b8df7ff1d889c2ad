"""The resampled patch kernel equals upsampling followed by SAM's convolution."""

import pytest
import torch
from torch.nn import functional

from sam3dnet.network.patch_embedding import PatchEmbed3D, resampling_matrix


def chain(embed: PatchEmbed3D, x_BCzyx: torch.Tensor) -> torch.Tensor:
    """The published way: mix to three channels, upsample, SAM's kernel a slice, then the depth kernel."""
    mixed = torch.einsum("mc,bczyx->bmzyx", embed.channel_mix, x_BCzyx)
    factors = [16 // stride for stride in embed.token_stride]
    up = functional.interpolate(mixed, scale_factor=factors, mode="trilinear", align_corners=False)
    depth = up.shape[2]
    slices = functional.conv2d(up.transpose(1, 2).flatten(0, 1), embed.proj.weight, stride=16)
    stacked = slices.unflatten(0, (-1, depth)).transpose(1, 2)
    kernel = embed.depth_kernel_OK[:, None, :, None, None]
    tokens = functional.conv3d(stacked, kernel, stride=(16, 1, 1), groups=stacked.shape[1])
    return tokens + embed.proj.bias[:, None, None, None]


@pytest.mark.parametrize("stride", [(1, 2, 4), (2, 4, 8), (8, 16, 4), (16, 8, 1), (4, 4, 4)])
@pytest.mark.parametrize("channels", [1, 4])
def test_equals_upsampling_and_convolving(stride, channels):
    torch.manual_seed(0)
    embed = PatchEmbed3D(channels, 5, stride).double()
    torch.nn.init.normal_(embed.depth_kernel_OK)
    torch.nn.init.normal_(embed.channel_mix)
    image = torch.randn(2, channels, 2 * stride[0], 3 * stride[1], 2 * stride[2], dtype=torch.float64)
    for name, step in zip("zyx", stride, strict=True):
        setattr(embed, f"resample_{name}", resampling_matrix(step).double())
    assert torch.allclose(embed(image), chain(embed, image), atol=1e-7)


def test_a_constant_image_keeps_its_value():
    for stride in (1, 2, 4, 8, 16):
        assert torch.allclose(resampling_matrix(stride).sum(1), torch.ones(16))


def test_kernel_shapes():
    assert PatchEmbed3D(2, 7, (2, 4, 16)).fused_kernel().shape == (7, 2, 4, 6, 16)
    assert torch.equal(resampling_matrix(16), torch.eye(16))


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match="expected one of 1, 2, 4, 8, 16"):
        resampling_matrix(3)


def test_sizes_that_are_no_multiple_repeat_the_last_voxel():
    embed = PatchEmbed3D(1, 5, (2, 4, 8))
    image = torch.randn(1, 1, 3, 5, 9)
    padded = functional.pad(image, (0, 7, 0, 3, 0, 1), mode="replicate")
    assert torch.allclose(embed(image), embed(padded), atol=1e-6)
