"""From corrected logits to labels on the image's grid: only the boxes with corrections are decided anew.

Axes in names: K classes or regions, Z Y X voxels; boxes are of the transposed and cropped image, as the logits are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3dnet.inference.deciding import decide
from sam3dnet.inference.resampling import axis_modes, neighbours, resample_to_image
from sam3dnet.inference.windows import in_parts
from sam3dnet.interactive.classes import PromptClass, prompt_classes
from sam3dnet.interactive.correction import Correction, Slices
from sam3dnet.preprocessing.geometry import Voxel

BLOCK = 32  # voxels of the image along each axis, in which the logits of all clicks are made at once

Corrections = Mapping[int, Correction]
TakeLogits = Callable[[int, Slices, Tensor], None]  # of a channel, in a box


@dataclass(frozen=True)
class Click:
    """What a user said about one voxel of the image, which the label map obeys.

    Attributes:
        class_index: Channel of the logits.
        voxel: (z, y, x) of the array that the reader gave.
        positive: Whether the class is there.
    """

    class_index: int
    voxel: Voxel
    positive: bool


class PromptedExport:
    """Makes label maps of one case from its automatic label map, its logits and their corrections.

    The rules are those of the automatic label map (`label_slabs`, `decide`).

    Args:
        logits_KZYX: Automatic logits on the preprocessed grid.
        automatic_ZYX: Their label map, on the image's grid.
        properties: What nnU-Net's preprocessor says about the case.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        labels: nnU-Net's LabelManager.
    """

    def __init__(
        self,
        logits_KZYX: Tensor,
        automatic_ZYX: np.ndarray,
        properties: Mapping[str, Any],
        plans: Any,
        configuration: Any,
        labels: Any,
    ):
        self._logits = logits_KZYX
        self._automatic = automatic_ZYX
        self._properties, self._plans, self._configuration, self._labels = properties, plans, configuration, labels
        self._classes = {one.index: one for one in prompt_classes(labels).values()}
        self._crop = [(int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"]]
        self._taps = self._find_taps()

    def label_map(self, corrections: Corrections, clicks: Sequence[Click] = ()) -> np.ndarray:
        """Decide on the labels.

        Args:
            corrections: By channel of the logits.
            clicks: In their order; each is obeyed, and of two on one voxel the later counts.

        Returns:
            On the image's grid, as `export.label_map`.
        """
        result = self._automatic.copy()
        transposed = result.transpose(self._plans.transpose_forward)
        cropped = transposed[tuple(slice(start, stop) for start, stop in self._crop)]
        for box in {self._reach(one.box) for correction in corrections.values() for one in correction.boxes}:
            if all(start < stop for start, stop in box):
                part = _slices(box)
                cropped[part] = decide(self._channels(part, corrections), self._labels)
        said: dict[Voxel, list[Click]] = {}
        for click in clicks:
            said.setdefault(click.voxel, []).append(click)
        asked = [voxel for voxel, on_it in said.items() if self._labels.has_regions or _said_to_be(on_it)[0] is None]
        logits_of = dict(zip(asked, self._logits_at(asked, corrections), strict=True))
        for voxel, on_it in said.items():
            logits = partial(logits_of.__getitem__, voxel)
            transposed[tuple(voxel[axis] for axis in self._plans.transpose_forward)] = obeying_label(
                logits, on_it, self._classes, self._labels.has_regions
            )
        return result

    def give_logits(self, corrections: Corrections, take: TakeLogits) -> None:
        """Give the corrected logits of every channel at every voxel of the transposed and cropped image, in parts.

        Args:
            corrections: By channel of the logits.
            take: Called with the channel, a box and the logits in it.
        """
        depth, height, width = (stop - start for start, stop in self._crop)
        whole = self._taps is None  # then the plan's function resamples all at once
        for planes in [slice(0, depth)] if whole else in_parts(depth, height * width):
            box = (planes, slice(0, height), slice(0, width))
            for channel, logits_ZYX in enumerate(self._channels(box, corrections)):
                take(channel, box, logits_ZYX)

    def _find_taps(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None:
        """Find between which voxels of the logits each voxel of the image lies; None where that is not all."""
        shape = tuple(self._logits.shape[1:])
        target = [stop - start for start, stop in self._crop]
        spacing_mm = [self._properties["spacing"][axis] for axis in self._plans.transpose_forward]
        modes = axis_modes(self._configuration.resampling_fn_probabilities, self._configuration.spacing, spacing_mm)
        if list(shape) == target:
            modes = ("linear",) * 3
        if modes is None:
            return None
        return [neighbours(size, new, mode) for size, new, mode in zip(shape, target, modes, strict=True)]

    def _reach(self, box: Slices) -> tuple[tuple[int, int], ...]:
        """Give the first voxel of the image, and one beyond the last, along each axis, that depend on a box."""
        if self._taps is None:
            return tuple((0, stop - start) for start, stop in self._crop)
        reach = []
        for part, (below, above, _) in zip(box, self._taps, strict=True):
            reach.append((int(np.searchsorted(above, part.start)), int(np.searchsorted(below, part.stop))))
        return tuple(reach)

    def _channels(self, box: Slices, corrections: Corrections) -> Iterator[Tensor]:
        """Yield the corrected logits of each channel in a box of the image."""
        if self._taps is None:
            for channel in range(len(self._logits)):
                whole = self._corrected(channel, (slice(None),) * 3, corrections)
                resampled = resample_to_image(whole[None], self._properties, self._plans, self._configuration)
                yield resampled[box]
            return
        taps = [
            (below[part], above[part], share[part]) for part, (below, above, share) in zip(box, self._taps, strict=True)
        ]
        z, y, x = (slice(int(below[0]), int(above[-1]) + 1) for below, above, _ in taps)
        for channel in range(len(self._logits)):
            values_ZYX = self._corrected(channel, (z, y, x), corrections)
            for axis, (first, (below, above, share)) in enumerate(zip((z.start, y.start, x.start), taps, strict=True)):
                values_ZYX = _between(values_ZYX, axis, below - first, above - first, share)
            yield values_ZYX

    def _corrected(self, channel: int, box: Slices, corrections: Corrections) -> Tensor:
        """Return a channel of the logits in a box of them, with its correction, float32."""
        values_ZYX = self._logits[channel][box].float()
        if channel not in corrections:
            return values_ZYX
        z, y, x = (part.indices(size)[0] for part, size in zip(box, self._logits.shape[1:], strict=True))
        return values_ZYX + torch.from_numpy(corrections[channel].values_in((z, y, x), values_ZYX.shape))

    def _logits_at(self, voxels: Sequence[Voxel], corrections: Corrections) -> np.ndarray:
        """Give the corrected logits at N voxels of the image, (N, K): those close together are made at once."""
        starts, stops = np.transpose(self._crop)
        places = np.asarray(voxels, int).reshape(-1, 3)[:, list(self._plans.transpose_forward)] - starts
        # the crop leaves out what is background for sure
        result_NK = np.full((len(places), len(self._logits)), -np.inf)
        result_NK[:, 0] = -np.inf if self._labels.has_regions else 0
        inside = np.flatnonzero(np.all((places >= 0) & (places < stops - starts), axis=1))
        for members in self._close_together(places[inside]):
            rows = inside[members]
            low, high = places[rows].min(0), places[rows].max(0) + 1
            box = _slices(tuple(zip(low.tolist(), high.tolist(), strict=True)))
            at = tuple(torch.from_numpy(places[rows] - low).T)
            for channel, values_ZYX in enumerate(self._channels(box, corrections)):
                result_NK[rows, channel] = values_ZYX[at].cpu().numpy()
        return result_NK

    def _close_together(self, places: np.ndarray) -> list[np.ndarray]:
        """Give which of N voxels of the crop lie in one block of it, block by block."""
        side = BLOCK if self._taps is not None else max(stop - start for start, stop in self._crop)
        _, block_of, counts = np.unique(places // side, axis=0, return_inverse=True, return_counts=True)
        return np.split(np.argsort(block_of.ravel(), kind="stable"), np.cumsum(counts)[:-1]) if len(places) else []


def obeying_label(
    logits: Callable[[], np.ndarray], clicks: Sequence[Click], classes: Mapping[int, PromptClass], has_regions: bool
) -> int:
    """Decide on the label of a clicked voxel.

    Args:
        logits: Gives its logits (K,), where they matter.
        clicks: On this voxel, in their order; the later counts.
        classes: By channel.
        has_regions: Whether the channels are regions that may overlap; else classes, of which the highest is taken.

    Returns:
        A label of the class after a positive click, none of its labels after a negative one.
    """
    if has_regions:
        return _obeying_region(logits(), clicks, classes)
    chosen, out = _said_to_be(clicks)
    if chosen is not None:
        return classes[chosen].label
    logits_K = logits()
    allowed = [number for number in range(len(logits_K)) if number not in out]
    best = max(allowed, key=lambda number: logits_K[number])
    return classes[best].label if best in classes else 0


def _said_to_be(clicks: Sequence[Click]) -> tuple[int | None, set[int]]:
    """Give the class that a voxel is said to be, None if that is not said, and those that it is said not to be."""
    chosen: int | None = None
    out: set[int] = set()
    for click in clicks:
        if click.positive:
            chosen = click.class_index
            out.discard(chosen)
        else:
            chosen = None if chosen == click.class_index else chosen
            out.add(click.class_index)
    return chosen, out


def _obeying_region(logits_K: np.ndarray, clicks: Sequence[Click], classes: Mapping[int, PromptClass]) -> int:
    """Draw the regions in their order, as nnU-Net does, after turning on and off what the clicks say."""
    is_on = [bool(value > 0) for value in logits_K]
    for click in clicks:
        clicked = classes[click.class_index]
        for number, other in classes.items():
            is_member = other.label in clicked.members
            # what is drawn later covers the clicked region
            if (not click.positive and is_member) or (click.positive and number > clicked.index and not is_member):
                is_on[number] = False
        is_on[clicked.index] = click.positive
    drawn = [classes[number].label for number in sorted(classes) if is_on[number]]
    return drawn[-1] if drawn else 0


def _between(values_ZYX: Tensor, axis: int, below: np.ndarray, above: np.ndarray, share: np.ndarray) -> Tensor:
    """Interpolate along one axis."""
    if len(below) == values_ZYX.shape[axis] and not share.any() and (below == np.arange(len(below))).all():
        return values_ZYX
    lower_ZYX = values_ZYX.index_select(axis, torch.from_numpy(below))
    if not share.any():
        return lower_ZYX
    weight = torch.from_numpy(share.astype(np.float32)).view([-1 if other == axis else 1 for other in range(3)])
    return lower_ZYX.lerp_(values_ZYX.index_select(axis, torch.from_numpy(above)), weight)


def _slices(box: tuple[tuple[int, int], ...]) -> Slices:
    z, y, x = (slice(start, stop) for start, stop in box)
    return z, y, x
