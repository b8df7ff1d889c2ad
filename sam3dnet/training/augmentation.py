"""Where training augments otherwise than nnU-Net: mirroring that swaps the sides, and patches of few planes."""

from collections.abc import Callable
from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from sam3dnet.planning.sides import MirroredSides

SHORTEST_BLURRED = 4  # voxels; nnU-Net's blur pads by up to three, reflected, which ends in an error on fewer


class MirrorWithSides(MirrorTransform):
    """Mirrors as nnU-Net's transform, and swaps labels where it mirrors from left to right.

    Args:
        allowed_axes: Spatial axes (0 to 2), each mirrored half of the time.
        sides: Which labels become which.
    """

    def __init__(self, allowed_axes: tuple[int, ...], sides: MirroredSides) -> None:
        super().__init__(allowed_axes)
        self.sides = sides

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        mirrored = super()._apply_to_segmentation(segmentation, **params)
        if self.sides.axis not in params["axes"]:
            return mirrored
        swapped = mirrored.clone()
        for value, other in self.sides.values.items():
            swapped[mirrored == value] = other
        return swapped


class BlurOfLongAxes(GaussianBlurTransform):
    """Blurs as nnU-Net's transform, along axes that have room for its kernel."""

    def _benchmark_wrapper(self, img: Tensor, sigma: float, dim_to_blur: int) -> Tensor:
        if img.shape[dim_to_blur + 1] < SHORTEST_BLURRED:
            return img
        blurred: Tensor = super()._benchmark_wrapper(img, sigma, dim_to_blur)
        return blurred


def with_sides(transforms: ComposeTransforms, sides: MirroredSides) -> ComposeTransforms:
    """Take nnU-Net's transforms, with ours in the place of its mirroring."""
    return _with(transforms, MirrorTransform, lambda one: MirrorWithSides(one.allowed_axes, sides))


def with_short_axes(transforms: ComposeTransforms) -> ComposeTransforms:
    """Take nnU-Net's transforms, with ours in the place of its blur."""
    return _with(transforms, GaussianBlurTransform, _blur_of_long_axes)


def _blur_of_long_axes(one: GaussianBlurTransform) -> GaussianBlurTransform:
    return BlurOfLongAxes(
        one.blur_sigma, one.synchronize_channels, one.synchronize_axes, one.p_per_channel, one.benchmark
    )


def _with(
    transforms: ComposeTransforms, kind: type[BasicTransform], make: Callable[[Any], BasicTransform]
) -> ComposeTransforms:
    def of(one: BasicTransform) -> BasicTransform:
        if isinstance(one, RandomTransform):
            return RandomTransform(of(one.transform), one.apply_probability)
        return make(one) if type(one) is kind else one

    return ComposeTransforms([of(one) for one in transforms.transforms])
