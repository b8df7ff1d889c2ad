"""How a target of nnU-Net says which voxels are of which class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.prompts.depth import Mask


@dataclass(frozen=True)
class Classes:
    """How a target says which voxels are of which class.

    Attributes:
        indices: Channels of the logits that can be asked for.
        regions: Whether the target has a channel a region; else one channel with labels.
        ignore_label: Label of voxels that say nothing; with regions they are the target's last channel. None: none.
        spacing_mm: (z, y, x).
        token_stride: Voxels a token covers along (z, y, x).
    """

    indices: tuple[int, ...]
    regions: bool
    ignore_label: int | None
    spacing_mm: tuple[float, ...]
    token_stride: tuple[int, ...]

    def truth(self, target_Czyx: npt.NDArray, class_index: int) -> Mask:
        """Return where the class is in one image's target."""
        return np.asarray(target_Czyx[class_index] > 0 if self.regions else target_Czyx[0] == class_index)

    def valid(self, target_Czyx: npt.NDArray) -> Mask:
        """Return where one image's target is not to be ignored."""
        if self.ignore_label is None:
            return np.ones(target_Czyx.shape[1:], bool)
        return np.asarray(target_Czyx[-1] == 0 if self.regions else target_Czyx[0] != self.ignore_label)


def make_classes(label_manager: Any, spacing_mm: Sequence[float], token_stride: Sequence[int]) -> Classes:
    """Read from nnU-Net's label manager which channels of the logits can be asked for."""
    regions = bool(label_manager.has_regions)
    heads = int(label_manager.num_segmentation_heads)
    return Classes(
        indices=tuple(range(heads) if regions else range(1, heads)),
        regions=regions,
        ignore_label=label_manager.ignore_label,
        spacing_mm=tuple(float(value) for value in spacing_mm),
        token_stride=tuple(int(value) for value in token_stride),
    )
