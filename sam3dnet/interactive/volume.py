"""Answers to prompts in a whole preprocessed image: what they add to the automatic logits of a class.

An answer depends on the prompts alone, not on earlier answers or on the order of the prompts. Clicks and boxes that say
what the automatic mask says change nothing by themselves. An answer begins in the windows at the other prompts and goes
on into neighbouring windows for as long as it changes the mask up to the edge of what was looked at. Where these are
positive clicks alone it takes nothing away, after negative ones alone it adds nothing; answers to clicks reach as far
as the network has proved that they may, see `sam3dnet.network.reach`.

Axes in names: C channels, K classes or regions, Q = 1 query, Z Y X voxels of the image, z y x of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sam3dnet.devices import autocast_to
from sam3dnet.inference.windows import pad_to_patch
from sam3dnet.interactive.correction import NO_CORRECTION, CorrectedBox, Correction, Floats, Slices
from sam3dnet.interactive.feature_cache import FeatureCache
from sam3dnet.interactive.objects import box_agrees, looked_at
from sam3dnet.interactive.stitching import Stitching
from sam3dnet.interactive.window_grid import WindowGrid, first_windows, prompts_in_window
from sam3dnet.network.prompt_decoder import ImageFeatures, class_margin
from sam3dnet.network.prompt_encoder import LARGEST_MARGIN, PromptBatch, Query
from sam3dnet.network.reach import restrained
from sam3dnet.network.target_device import product_type
from sam3dnet.preprocessing.geometry import Mask, Voxel, nearest_voxel
from sam3dnet.prompts.components import FACES, connected
from sam3dnet.prompts.sampling import deeper_voxel, innermost_voxel
from sam3dnet.prompts.strokes import heard
from sam3dnet.prompts.types import Box, ClassPrompts, Coordinates, Point, Scribble

OBEYED_LOGIT = 1.0  # by which a clicked voxel is, or is not, of the class at least
BUMP_WIDTH = 3.0  # standard deviation of what follows a click that the networks did not obey, in the smallest spacing
LEAST_WIDTH = 1.0
WIDTH_BETWEEN = 0.5  # most of it between two clicks that say the opposite, as a share of their distance
BUMP_REACH = 3  # where it ends, in standard deviations
SAME_PLACE = 3  # voxels from a negative click within which the program clicks nothing positive
FLAT_MM = 1e6  # along an axis along which there is no outside
NOTHING = 0.2  # of a box: what fills less of it is not its object


class Promptable(Protocol):
    """A network that answers prompts, see `SegmentationNetwork`."""

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Return what prompts are answered from."""

    def prompted(self, features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        """Return what the prompts add to the margin."""

    def reach(self, class_index: int) -> Sequence[float]:
        """Return how far answers about a class reach around clicks, along (z, y, x) in voxels."""


@dataclass(frozen=True, eq=False)
class _Automatic:
    """What is known of a class in a window without prompts.

    Attributes:
        margin_Qzyx: Logit of the class against all others, on the device of the network.
        lead_zyx: Logit of the class minus the highest other; the class is where it is above 0.
    """

    margin_Qzyx: Tensor
    lead_zyx: Floats

    def nbytes(self) -> int:
        return int(self.margin_Qzyx.nbytes + self.lead_zyx.nbytes)


class PromptedVolume:
    """A preprocessed image whose automatic segmentation prompts correct.

    Args:
        networks: One for each fold, whose corrections are averaged; in evaluation mode, on `device`.
        image_CZYX: The preprocessed image.
        logits_KZYX: Its automatic logits, on the CPU.
        patch_size: Of a window (z, y, x).
        regions: Whether the channels of the logits are regions; else they are classes.
        spacing_mm: Of the preprocessed image (z, y, x).
        step_size: Step between windows as a share of the window.
        device: Where the networks are.
        precision: Type that their matrix products are computed in; None: as they come.
        cache: Keeps the features of windows.
    """

    def __init__(
        self,
        networks: Sequence[Promptable],
        image_CZYX: Tensor,
        logits_KZYX: Tensor,
        patch_size: Sequence[int],
        *,
        regions: bool,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        step_size: float = 0.5,
        device: torch.device | str = "cpu",
        precision: torch.dtype | None = None,
        cache: FeatureCache | None = None,
    ):
        self._networks = networks
        self._device = torch.device(device)
        self._precision = precision
        self._regions = regions
        self._spacing_mm = tuple(spacing_mm)
        self._image, self._inside = pad_to_patch(image_CZYX, patch_size)
        self._logits = self._padded(logits_KZYX)
        self._grid = WindowGrid.over(self._image.shape[1:], patch_size, step_size)
        self._cache = FeatureCache() if cache is None else cache

    @torch.inference_mode()
    def correction(self, class_index: int, prompts: ClassPrompts) -> Correction:
        """Answer the prompts of one class.

        Args:
            class_index: Channel of the logits.
            prompts: In voxels (z, y, x) of the preprocessed image.

        Returns:
            What is added to the logits of the class; nothing where the prompts ask for no change.
        """
        prompts = replace(prompts, scribbles=tuple(map(heard, prompts.scribbles)))
        points = one_click_a_voxel(prompts.clicks, self._logits_shape)
        strokes, prompts = prompts.scribbles, replace(prompts, points=points, scribbles=())
        complaint = replace(
            prompts,
            points=self._disputed(class_index, prompts.points),
            boxes=tuple(box for box in prompts.boxes if not self._agrees(class_index, box)),
        )
        if not complaint:
            return NO_CORRECTION
        padded, named = self._place_in_padded(prompts), self._place_in_padded(complaint)
        windows = first_windows(self._grid, named)
        clicked = () if named.boxes or named.mask is not None else named.points
        in_boxes, stitching = self._clicks_in_boxes(class_index, padded, named.boxes)
        padded = replace(padded, points=(*padded.points, *in_boxes))
        if stitching is None or padded.points or padded.mask is not None:
            stitching = self._stitched(class_index, padded, windows, clicked)
        middle = self._middle(named.points, stitching) if _is_one_stroke(complaint, strokes) else None
        if middle is not None:
            padded = replace(padded, points=(*padded.points, middle))
            clicked = (*clicked, middle)
            stitching = self._stitched(class_index, padded, windows, clicked)
        correction = Correction(tuple(map(self._cut_to_image, stitching.result(named).boxes)))
        self._obey(class_index, prompts.points, correction)
        return correction

    @torch.inference_mode()
    def look_ahead(self) -> bool:
        """Compute the features of one more window that prompts may ask about, the middle of the image first.

        Returns:
            Whether there may be more: False once all are known, or there is no room.
        """
        for index in self._grid.from_the_middle():
            missing = [fold for fold in range(len(self._networks)) if not self._cache.holds((fold, index))]
            if missing:
                fold = missing[0]
                found = self._cache.get((fold, index), partial(self._features, self._networks[fold], index))
                return self._cache.has_room(2 * found.nbytes())
        return False

    def _disputed(self, class_index: int, points: Sequence[Point]) -> tuple[Point, ...]:
        """Give the clicks that say something else than the automatic mask."""
        leads = [self._lead_at(class_index, nearest_voxel(point.at, self._logits_shape)) for point in points]
        return tuple(point for point, lead in zip(points, leads, strict=True) if (lead > 0) != point.positive)

    def _agrees(self, class_index: int, box: Box) -> bool:
        """Tell whether a box says what the automatic mask says."""
        seen = looked_at(box, self._logits_shape)
        inside = zip(seen, self._inside, strict=True)
        padded = tuple(slice(part.start + whole.start, part.stop + whole.start) for part, whole in inside)
        lead_zyx = self._lead(self._logits[(slice(None), *padded)].float(), class_index).numpy()
        return box_agrees(lead_zyx > 0, seen, box)

    def _stitched(
        self, class_index: int, prompts: ClassPrompts, windows: Sequence[Voxel], clicked: Sequence[Point]
    ) -> Stitching:
        """Ask the networks in some windows, then in further ones for as long as the mask changes at their edge.

        Args:
            class_index: Channel of the logits.
            prompts: In voxels of the padded image.
            windows: To begin with.
            clicked: The disputed ones, where clicks alone are disputed.
        """
        stitching, waiting = Stitching(self._grid), list(windows)
        while waiting:
            so_far = stitching if len(stitching) else None
            answers = [self._answer(index, class_index, prompts, so_far, clicked) for index in waiting]
            for index, (values, lead) in zip(waiting, answers, strict=True):
                stitching.add(index, values, lead)
            waiting = stitching.next_windows()
        return stitching

    def _middle(self, points: Sequence[Point], stitching: Stitching) -> Point | None:
        """Find the middle of what a single click or stroke gave, so that it matters less where in it that was.

        On Dataset502 (12 cases) it raises the tumour's Dice after a click at the centre from 0.715 to 0.733, after one
        near the margin from 0.660 to 0.714.

        Args:
            points: The click, or those of the stroke, in voxels of the padded image.
            stitching: What they gave.

        Returns:
            A click there; None where that is in the middle.
        """
        places = np.array([point.at for point in points])
        central = places[np.square(places - places.mean(0)).sum(1).argmin()]
        clicked = nearest_voxel(central, self._image.shape[1:])
        low, mask_zyx = stitching.mask_around(clicked)
        inside = _relative(clicked, low)
        if not mask_zyx[inside]:
            return None
        parts, _ = connected(mask_zyx, FACES)
        deeper = deeper_voxel(parts == parts[inside], inside, self._spacing_mm)
        if deeper is None:
            return None
        z, y, x = (position + first for position, first in zip(deeper, low, strict=True))
        return Point((z, y, x))

    def _clicks_in_boxes(
        self, class_index: int, prompts: ClassPrompts, boxes: Sequence[Box]
    ) -> tuple[Sequence[Point], Stitching | None]:
        """Click in each box: in its middle; where what it gave has a hole there, in the middle of that.

        On Dataset502 (12 cases, four models) it raises the tumour's Dice after a box around the object from 0.648 to
        0.682, after one around its largest slice from 0.593 to 0.633.

        Args:
            class_index: Channel of the logits.
            prompts: All, in voxels of the padded image; a negative click close by keeps a place from being clicked, and
                a positive one in a box that gave something takes its place.
            boxes: Those of them that ask for a change.

        Returns:
            The clicks, and what all boxes gave; None where there are none.
        """
        if not boxes:
            return (), None
        shape, clicks = self._image.shape[1:], []
        alone = ClassPrompts(boxes=prompts.boxes)
        stitching = self._stitched(class_index, alone, first_windows(self._grid, ClassPrompts(boxes=tuple(boxes))), ())
        voxel_of = {point: nearest_voxel(point.at, shape) for point in prompts.points}
        negative = [voxel for point, voxel in voxel_of.items() if not point.positive]
        for box in boxes:
            place = nearest_voxel(np.add(box.low, box.high) / 2, shape)
            low, mask_zyx = stitching.mask_around(place)
            voxels, seen = _voxels_of(box, shape), looked_at(box, shape)
            inside_zyx = _cut(mask_zyx, low, voxels)
            if inside_zyx.mean() >= NOTHING or box_agrees(_cut(mask_zyx, low, seen), seen, box):
                if any(point.positive and _holds(voxels, voxel) for point, voxel in voxel_of.items()):
                    continue
                if not mask_zyx[_relative(place, low)]:
                    place = _innermost(inside_zyx, voxels, self._spacing_mm)
            if all(np.abs(np.subtract(at, place)).max() > SAME_PLACE for at in negative):
                clicks.append(Point(place))
        return clicks, stitching

    def _answer(
        self,
        index: Voxel,
        class_index: int,
        prompts: ClassPrompts,
        so_far: Stitching | None,
        clicked: Sequence[Point],
    ) -> tuple[Floats, Floats]:
        """Ask the networks about one window.

        Args:
            index: Of the window.
            class_index: Channel of the logits.
            prompts: In voxels of the padded image.
            so_far: What the windows before said, which this one continues; None where the prompts begin.
            clicked: As for `_stitched`.

        Returns:
            The correction, and by how much the class leads all others before it.
        """
        automatic = self._cache.get(("automatic", class_index, index), partial(self._automatic, index, class_index))
        inside = prompts_in_window(prompts, self._grid.corner(index), self._grid.patch_size)
        if so_far is not None:
            lead = automatic.lead_zyx
            inside = self._continued(inside, so_far.mask_in(index, lead), lead > 0)
        said = [_seen_from(self._grid.corner(index), point) for point in clicked]
        batch = PromptBatch.of([Query(0, class_index, inside)], self._grid.patch_size).to(self._device)
        total: Tensor | None = None
        with autocast_to(self._precision, self._device):
            for fold, network in enumerate(self._networks):
                features = self._cache.get((fold, index), partial(self._features, network, index))
                correction = network.prompted(features, batch, automatic.margin_Qzyx)[0].float()
                if said:
                    correction = restrained(correction, said, network.reach(class_index))
                total = correction if total is None else total + correction
        assert total is not None
        return (total / len(self._networks)).cpu().numpy(), automatic.lead_zyx

    def _automatic(self, index: Voxel, class_index: int) -> _Automatic:
        logits_Kzyx = self._logits[(slice(None), *self._grid.box(index))].to(self._device).float()
        class_Q = torch.tensor([class_index], device=self._device)
        margin_Qzyx = class_margin(logits_Kzyx[None], class_Q, self._regions)
        return _Automatic(margin_Qzyx, self._lead(logits_Kzyx, class_index).cpu().numpy())

    def _continued(self, inside: ClassPrompts, so_far_zyx: Mask, automatic_zyx: Mask) -> ClassPrompts:
        """Tell a window what the windows before it changed: by a click where they did, and by their mask.

        The mask alone would not do: half of a false object that was removed looks like half of a true one that is
        unfinished.
        """
        added, removed = so_far_zyx & ~automatic_zyx, automatic_zyx & ~so_far_zyx
        clicks = [
            Point(innermost_voxel(changed, self._spacing_mm), positive)
            for changed, positive in ((added, True), (removed, False))
            if changed.any()
        ]
        mask = so_far_zyx if added.any() else inside.mask
        return ClassPrompts((*clicks, *inside.points), inside.boxes, mask)

    def _features(self, network: Promptable, index: Voxel) -> ImageFeatures:
        """Compute what prompts are answered from, in half precision on a card: it is kept."""
        window_Czyx = self._image[(slice(None), *self._grid.box(index))].to(self._device)
        features = replace(network.features(window_Czyx[None]), logits=())
        return features.to(self._device, product_type(window_Czyx))

    def _lead(self, logits_Kzyx: Tensor, class_index: int) -> Tensor:
        """Return by how much a class leads; it is there where that is above 0."""
        if self._regions:
            return logits_Kzyx[class_index]
        others = [logits_zyx for number, logits_zyx in enumerate(logits_Kzyx) if number != class_index]
        highest = others[0]
        for logits_zyx in others[1:]:
            highest = torch.maximum(highest, logits_zyx)
        return logits_Kzyx[class_index] - highest

    def _obey(self, class_index: int, points: Sequence[Point], correction: Correction) -> None:
        """Change the correction until clicked voxels are, or are not, of the class; what is close by follows.

        Nobody looked at clicks that agree and lie apart from all that are disputed: they are left as they are.
        """
        by_voxel = {nearest_voxel(point.at, self._logits_shape): point.positive for point in points}
        clicked = {voxel: positive for voxel, positive in by_voxel.items() if correction.looked_at(voxel)}
        for voxel, positive in clicked.items():
            missing = self._missing(class_index, voxel, positive, correction)
            if missing:
                opposite = [other for other, said in clicked.items() if said != positive]
                self._add_bump(correction.around(voxel), voxel, missing, self._width_of_bump(voxel, opposite))
        for voxel, positive in clicked.items():  # bumps close by may have undone it
            missing = self._missing(class_index, voxel, positive, correction)
            if missing:
                around = correction.around(voxel)
                around.values_zyx[around.place(voxel)] += missing

    def _missing(self, class_index: int, voxel: Voxel, positive: bool, correction: Correction) -> float:
        """Return what the logit of a clicked voxel lacks, below 0 after a negative click; 0 where it obeys."""
        lead = self._lead_at(class_index, voxel) + correction.at(voxel)
        return max(OBEYED_LOGIT - lead, 0.0) if positive else min(-OBEYED_LOGIT - lead, 0.0)

    def _lead_at(self, class_index: int, voxel: Voxel) -> float:
        """Return by how much a class leads at a voxel of the image without padding."""
        z, y, x = (position + part.start for position, part in zip(voxel, self._inside, strict=True))
        return float(self._lead(self._logits[:, z, y, x].float(), class_index))

    def _width_of_bump(self, voxel: Voxel, opposite: Sequence[Voxel]) -> float:
        """Say how wide a surrounding follows a click, in the smallest spacing; the opposite ends before its click."""
        if not opposite:
            return BUMP_WIDTH
        away = np.subtract(opposite, voxel) * self._spacing_mm / min(self._spacing_mm)
        return float(np.clip(WIDTH_BETWEEN * np.linalg.norm(away, axis=1).min(), LEAST_WIDTH, BUMP_WIDTH))

    def _add_bump(self, around: CorrectedBox, voxel: Voxel, height: float, width: float) -> None:
        """Add a Gaussian around a voxel, where the networks did not listen to its click.

        After ten clicks, with a width of 1, 2 and 3 voxels: Dice 0.865, 0.886, 0.893 (tumours of Dataset502, 6 cases);
        0.805, 0.828, 0.848 (Dataset501, 6 of the hardest cases, after 5 minutes on five cases); 0.907, 0.904, 0.905
        (Dataset122) and 0.922, 0.923, 0.924 (Dataset123), after 20 minutes. Between clicks that say the opposite a
        narrower one: Dataset501's 0.860 in place of 0.857 with the reach of 1.2 tokens, and 0.32 in place of 0.23 by a
        model that knows nothing of the classes.
        """
        bump = np.full((1, 1, 1), height, np.float32)
        box = []
        sides = zip(voxel, around.low, around.values_zyx.shape, self._spacing_mm, strict=True)
        for axis, (position, low, size, spacing_mm) in enumerate(sides):
            reach = round(BUMP_REACH * width * min(self._spacing_mm) / spacing_mm)
            places = np.arange(max(low, position - reach), min(low + size, position + reach + 1))
            away = (places - position) * spacing_mm / (width * min(self._spacing_mm))
            along = np.exp(-0.5 * away**2).astype(np.float32)
            bump = bump * along.reshape([-1 if other == axis else 1 for other in range(3)])
            box.append(slice(places[0] - low, places[-1] + 1 - low))
        around.values_zyx[tuple(box)] += bump

    @property
    def _logits_shape(self) -> Voxel:
        """Shape of the image without padding."""
        z, y, x = (part.stop - part.start for part in self._inside)
        return z, y, x

    def _padded(self, logits_KZYX: Tensor) -> Tensor:
        """Pad as the image is, with logits that say background."""
        widths = []
        for part, size in zip(reversed(self._inside), reversed(self._image.shape), strict=False):
            widths += [part.start, size - part.stop]
        if not any(widths):
            return logits_KZYX
        padded = pad(logits_KZYX, widths, value=-LARGEST_MARGIN)
        if not self._regions:
            padded[0] = pad(logits_KZYX[0], widths, value=LARGEST_MARGIN)
        return padded

    def _place_in_padded(self, prompts: ClassPrompts) -> ClassPrompts:
        before = [part.start for part in self._inside]
        shape = self._image.shape[1:]
        if tuple(shape) == self._logits_shape:
            return prompts

        def move(at: Coordinates) -> Coordinates:
            z, y, x = (value + first for value, first in zip(at, before, strict=True))
            return z, y, x

        mask = None
        if prompts.mask is not None:
            mask = np.zeros(tuple(shape), bool)
            mask[self._inside] = prompts.mask
        return ClassPrompts(
            tuple(Point(move(point.at), point.positive) for point in prompts.points),
            tuple(Box(move(box.low), move(box.high)) for box in prompts.boxes),
            mask,
        )

    def _cut_to_image(self, corrected: CorrectedBox) -> CorrectedBox:
        low, kept = [], []
        for first, stop, part in zip(corrected.low, corrected.high, self._inside, strict=True):
            start = max(first, part.start)
            low.append(start - part.start)
            kept.append(slice(start - first, min(stop, part.stop) - first))
        z, y, x = low
        return CorrectedBox((z, y, x), corrected.values_zyx[tuple(kept)])


def _is_one_stroke(complaint: ClassPrompts, strokes: Sequence[Scribble]) -> bool:
    """Tell whether no more is asked for than by a single positive click, or by clicks of a single positive stroke."""
    if complaint.boxes or complaint.mask is not None or not all(point.positive for point in complaint.points):
        return False
    return len(complaint.points) == 1 or any({*complaint.points} <= {*stroke.points} for stroke in strokes)


def _seen_from(corner: Voxel, point: Point) -> Point:
    z, y, x = (value - first for value, first in zip(point.at, corner, strict=True))
    return Point((z, y, x), point.positive)


def _relative(voxel: Voxel, low: Voxel) -> Voxel:
    z, y, x = (position - first for position, first in zip(voxel, low, strict=True))
    return z, y, x


def one_click_a_voxel(points: Sequence[Point], shape: Sequence[int]) -> tuple[Point, ...]:
    """Give the clicks in the order of their voxels; of two on one voxel the later counts.

    Args:
        points: In voxels (z, y, x) of an image, in the order in which they were made.
        shape: Of the image.
    """
    last = {nearest_voxel(point.at, shape): point for point in points}
    return tuple(last[voxel] for voxel in sorted(last))


def _voxels_of(box: Box, shape: Sequence[int]) -> Slices:
    first, last = (nearest_voxel(corner, shape) for corner in (box.low, box.high))
    z, y, x = (slice(start, stop + 1) for start, stop in zip(first, last, strict=True))
    return z, y, x


def _holds(part: Slices, voxel: Voxel) -> bool:
    return all(side.start <= at < side.stop for at, side in zip(voxel, part, strict=True))


def _innermost(mask_zyx: Mask, part: Slices, spacing_mm: Sequence[float]) -> Voxel:
    """Give the innermost voxel of a mask in a part of the image; in one slice, of what that shows."""
    deep_mm = [mm if size > 1 else FLAT_MM for mm, size in zip(spacing_mm, mask_zyx.shape, strict=True)]
    z, y, x = (at + side.start for at, side in zip(innermost_voxel(mask_zyx, deep_mm), part, strict=True))
    return z, y, x


def _cut(mask_zyx: Mask, low: Voxel, part: Slices) -> Mask:
    """Cut a part of the image out of a mask that begins at a voxel of it; nothing is where the mask does not reach."""
    cut_zyx = np.zeros([side.stop - side.start for side in part], bool)
    ours, theirs = [], []
    for side, first, size in zip(part, low, mask_zyx.shape, strict=True):
        start, stop = max(side.start, first), min(side.stop, first + size)
        ours.append(slice(start - first, max(start, stop) - first))
        theirs.append(slice(start - side.start, max(start, stop) - side.start))
    cut_zyx[tuple(theirs)] = mask_zyx[tuple(ours)]
    return cut_zyx
