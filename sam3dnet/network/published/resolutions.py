"""The resolutions between tokens and voxels: their shapes, and volumes brought to them.

Axes in names: B batch, C channels, z y x voxels of a level.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sam3dnet.network.layers import cropped, interpolate, repeat_outer


def resolution_shapes(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Give the shape of every resolution above the tokens, finest first.

    Args:
        shape: Of the image (z, y, x).
        strides: Factor of each resolution relative to the finer one, (1, 1, 1) first, the tokens last.
    """
    shapes = [list(shape)]
    for stride in strides[1:-1]:
        shapes.append([-(-size // step) for size, step in zip(shapes[-1], stride, strict=True)])
    return shapes


def pad_to_multiple(x_BCzyx: Tensor, multiple: Sequence[int]) -> Tensor:
    """Repeat the last voxels of each axis until its size is a multiple of a number (z, y, x)."""
    pads = [(0, -size % step) for size, step in zip(x_BCzyx.shape[2:], multiple, strict=True)]
    return repeat_outer(x_BCzyx, pads)


def pool_image(image_BCzyx: Tensor, strides: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Average an image over the voxels of every resolution above the tokens; finest first, the image itself."""
    images = [image_BCzyx]
    for stride in strides[1:-1]:
        images.append(F.avg_pool3d(pad_to_multiple(images[-1], stride), stride))
    return images


def enlarged(x_BCzyx: Tensor, factor: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Interpolate linearly by a factor (z, y, x), then leave out what lies beyond a shape."""
    if any(step > 1 for step in factor):
        x_BCzyx = interpolate(x_BCzyx, [size * step for size, step in zip(x_BCzyx.shape[2:], factor, strict=True)])
    return cropped(x_BCzyx, shape)
