"""Mirroring in training that swaps the labels of classes which become each other."""

from typing import Any

from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from sam3dnet.planning.sides import MirroredSides


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


def with_sides(transforms: ComposeTransforms, sides: MirroredSides) -> ComposeTransforms:
    """Take nnU-Net's transforms, with ours in the place of its mirroring."""
    return ComposeTransforms(
        [
            MirrorWithSides(one.allowed_axes, sides) if type(one) is MirrorTransform else one
            for one in transforms.transforms
        ]
    )
