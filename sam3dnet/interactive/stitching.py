"""Corrections of some windows become one correction without seams, which fades towards what no window looked at.

Windows that touch are stitched in the box around them, each group of them by itself, so that prompts far apart cost no
more than their windows. Coordinates are voxels (z, y, x) of the padded image, as in `window_grid`.
"""

import numpy as np
import torch

from sam3dnet.inference.windows import importance
from sam3dnet.interactive.correction import Correction, Floats
from sam3dnet.interactive.window_grid import WindowGrid
from sam3dnet.interactive.window_group import WindowGroup
from sam3dnet.preprocessing.geometry import Mask, Voxel
from sam3dnet.prompts.types import ClassPrompts


class Stitching:
    """Weighted mean of the corrections of the windows looked at so far.

    A window weighs most in its middle (`windows.importance`) and next to nothing at its faces.

    Args:
        grid: Of the windows.
    """

    def __init__(self, grid: WindowGrid):
        self._grid = grid
        self._importance = importance(grid.patch_size, torch.device("cpu")).numpy()
        self._groups: list[WindowGroup] = []

    def __len__(self) -> int:
        return sum(len(group.indices) for group in self._groups)

    def add(self, index: Voxel, correction_zyx: Floats, lead_zyx: Floats) -> None:
        """Take the correction of a window.

        Args:
            index: Of the window; each comes once.
            correction_zyx: What is added to the logit of the class.
            lead_zyx: Logit of the class minus the highest other before that; the class is where it is above 0.
        """
        touching = [group for group in self._groups if group.touches(index)] or [WindowGroup(self._grid)]
        self._groups = [group for group in self._groups if group not in touching] + touching[:1]
        for other in touching[1:]:
            touching[0].join(other)
        touching[0].add(index, correction_zyx, self._importance * self._ramp(index), lead_zyx)

    def mask_in(self, index: Voxel, lead_zyx: Floats) -> Mask:
        """Give the mask so far in a window that was not looked at: corrected where another window was."""
        mask = lead_zyx > 0
        for group in self._groups:
            group.correct(mask, self._grid.corner(index))
        return mask

    def next_windows(self) -> list[Voxel]:
        """List the windows into which a changed mask grows: it was changed where the correction begins to fade."""
        known = {index for group in self._groups for index in group.indices}
        return sorted({other for group in self._groups for other in group.windows_beyond(known)})

    def mask_around(self, voxel: Voxel) -> tuple[Voxel, Mask]:
        """Give the mask in the box around the windows that touch the one at a voxel, and the first voxel of the box."""
        for group in self._groups:
            if any(self._grid.holds(index, voxel) for index in group.indices):
                return group.mask()
        raise ValueError(f"no window was looked at around {voxel}; add one first")

    def result(self, named: ClassPrompts | None = None) -> Correction:
        """Give the correction, fading to 0 towards what was not looked at.

        Args:
            named: What names the objects that may change, see `within_named_objects`; None: all may.
        """
        return Correction(tuple(group.result(named) for group in self._groups))

    def _ramp(self, index: Voxel) -> Floats:
        """Return what makes a window's weight fall at those faces that are not the border of the image."""
        along = []
        for axis, (number, size, reach) in enumerate(zip(index, self._grid.patch_size, self._grid.edge, strict=True)):
            from_face = (np.arange(size, dtype=np.float32) + 0.5) / reach
            ramp = np.ones(size, np.float32)
            if number > 0:
                ramp = np.minimum(ramp, from_face)
            if number + 1 < len(self._grid.starts[axis]):
                ramp = np.minimum(ramp, from_face[::-1])
            along.append(ramp)
        return np.asarray(along[0][:, None, None] * along[1][:, None] * along[2])
