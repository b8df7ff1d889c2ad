"""What post-processing takes out of the automatic label map, and what of it stays since prompts name it.

It is found once, in the automatic label map. A prompt can bring objects back, and what it adds or cuts off is never
taken for a small component: so positive clicks take nothing away, and negative ones add nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3dnet.inference.postprocessing import Postprocessing
from sam3dnet.interactive.objects import Classes, Found, Said, find_named, names_something


@dataclass(frozen=True, eq=False)
class TakenOut:
    """Voxels that post-processing makes background.

    Attributes:
        voxels_n: Their numbers in the label map, counted in C order.
        labels_n: Their labels before.
        classes: Of which something may be said.
    """

    voxels_n: npt.NDArray[np.intp]
    labels_n: np.ndarray
    classes: Classes

    @classmethod
    def by(
        cls, postprocessing: Postprocessing, automatic_ZYX: np.ndarray, spacing_mm: Sequence[float], classes: Classes
    ) -> "TakenOut":
        """Find what a post-processing takes out of the automatic label map."""
        left_ZYX = postprocessing.applied_to(automatic_ZYX, spacing_mm)
        voxels_n = np.flatnonzero(left_ZYX != automatic_ZYX)
        return cls(voxels_n, automatic_ZYX.flat[voxels_n], classes)

    def without(self, labels_ZYX: np.ndarray, said: Said) -> np.ndarray:
        """Take it out of a label map, where this says what the automatic one says, but for objects that are named.

        Args:
            labels_ZYX: Is left as it is.
            said: All prompts of each class, in voxels of the label map.
        """
        gone_n = self.voxels_n[labels_ZYX.flat[self.voxels_n] == self.labels_n]
        for number, prompts in said.items():
            if gone_n.size and names_something(prompts):
                found = find_named(labels_ZYX, prompts, self.classes[number])
                gone_n = gone_n if found is None else gone_n[~_in_objects(found, gone_n, labels_ZYX.shape)]
        if not gone_n.size:
            return labels_ZYX
        result = labels_ZYX.copy()
        result.flat[gone_n] = 0
        return result


def _in_objects(found: Found, voxels_n: npt.NDArray[np.intp], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Tell which voxels of an image of this shape lie in the objects that are named."""
    at_zyxn = np.stack(np.unravel_index(voxels_n, shape))
    low, high = (np.array([getattr(part, end) for part in found.box])[:, None] for end in ("start", "stop"))
    in_box_n = ((at_zyxn >= low) & (at_zyxn < high)).all(0)
    named_n = np.zeros(len(voxels_n), bool)
    named_n[in_box_n] = found.named_zyx[tuple((at_zyxn - low)[:, in_box_n])]
    return named_n
