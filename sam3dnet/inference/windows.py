"""Sliding windows over a preprocessed image: where they lie, what networks say in them, and where there is only air."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sam3dnet.devices import autocast_to
from sam3dnet.inference.on_disk import let_go, room_for
from sam3dnet.planning.sides import MirroredSides

SIGMA_SHARE = 1 / 8  # of the window, nnU-Net's
LARGEST_WEIGHT = 10.0  # nnU-Net's: small weights stay above what half precision can hold
BYTES_AT_A_TIME = 1 << 27
SAME_SHARE = 1e-5  # of the range of intensities: what resampling rounds a constant by stays below it
SURE_LOGIT = 5.0  # of background; against any class twice as much

Network = Callable[[Tensor], Tensor] | nn.Module
Corners = Sequence[tuple[int, int]]


class Air:
    """Tells where an image is empty.

    That is where every channel has one value throughout: the lowest of the image, as air after a CT was clipped, or
    exactly 0, which nnU-Net writes outside of the mask that it normalises a channel by.

    Args:
        image_CZYX: Preprocessed, without padding.
    """

    def __init__(self, image_CZYX: Tensor):
        lowest_C, highest_C = image_CZYX.flatten(1).aminmax(dim=1)
        self._air_C = lowest_C + SAME_SHARE * (highest_C - lowest_C)

    def fills(self, part_CZYX: Tensor) -> bool:
        """Tell whether a part of the image, of any size, is empty."""
        low_C, high_C = part_CZYX.flatten(1).aminmax(dim=1)
        is_outside_C = (low_C == 0) & (high_C == 0)
        return bool(((high_C <= self._air_C) | is_outside_C).all())


def background_logits(labels: Any) -> Tensor:
    """Return logits (K,) that decide on background.

    Args:
        labels: nnU-Net's LabelManager; where it has regions, none of them is there.
    """
    logits_K = torch.full((labels.num_segmentation_heads,), -SURE_LOGIT)
    if not labels.has_regions:
        logits_K[0] = SURE_LOGIT
    return logits_K


def window_starts(image_shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> list[list[int]]:
    """Return where windows start along each axis, as nnU-Net places them.

    Args:
        image_shape: (Z, Y, X), nowhere smaller than the patch.
        patch_size: (Z, Y, X).
        step_size: Largest step as a share of the patch, above 0 and at most 1.
    """
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    starts = compute_steps_for_sliding_window(tuple(image_shape), tuple(patch_size), step_size)
    return [list(dict.fromkeys(axis)) for axis in starts]  # of a thin patch nnU-Net gives some twice


def importance(patch_size: Sequence[int], device: torch.device) -> Tensor:
    """Return nnU-Net's Gaussian weights of a window, (Z, Y, X), float32, nowhere zero."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    weights = compute_gaussian(
        tuple(patch_size), sigma_scale=SIGMA_SHARE, value_scaling_factor=LARGEST_WEIGHT, device=device
    )
    return weights.float()


def pad_to_patch(image_CZYX: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, tuple[slice, slice, slice]]:
    """Pad with zeros, evenly on both sides, where the image is smaller than the patch.

    Returns:
        The padded image, and the slices of its three spatial axes that hold the image.
    """
    missing = [max(0, want - have) for want, have in zip(patch_size, image_CZYX.shape[1:], strict=True)]
    before = [n // 2 for n in missing]
    inside = tuple(slice(b, b + n) for b, n in zip(before, image_CZYX.shape[1:], strict=True))
    if not any(missing):
        return image_CZYX, (inside[0], inside[1], inside[2])
    widths = [w for b, n in zip(reversed(before), reversed(missing), strict=True) for w in (b, n - b)]
    return pad(image_CZYX, widths), (inside[0], inside[1], inside[2])


def mirror_combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every set of the spatial axes (0 to 2), the empty one first, as axes of a (B, C, Z, Y, X) tensor."""
    return [
        tuple(axis + 2 for axis in chosen)
        for count in range(len(axes) + 1)
        for chosen in combinations(sorted(axes), count)
    ]


def predict_mirrored(
    network: Network, windows_BCZYX: Tensor, mirror_axes: Sequence[int], sides: MirroredSides | None = None
) -> Tensor:
    """Return the mean of the logits over all mirrored versions of the windows, (B, K, Z, Y, X), float32."""
    flips = mirror_combinations(mirror_axes)
    total: Tensor | None = None
    for axes in flips:
        swapped = sides if sides is not None and sides.axis + 2 in axes else None
        flipped = windows_BCZYX.flip(axes) if axes else windows_BCZYX
        logits = network(flipped[:, list(swapped.input_channels)] if swapped and swapped.input_channels else flipped)
        logits = logits[0] if isinstance(logits, list | tuple) else logits  # the finest of deep supervision
        logits = (logits.flip(axes) if axes else logits).float()
        if swapped is not None:
            logits = logits[:, list(swapped.channels)]
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(flips) if len(flips) > 1 else total


@torch.inference_mode()
def predict_slabs(
    networks: Sequence[Callable[[], Network]],
    image_CZYX: Tensor,
    patch_size: Sequence[int],
    num_heads: int,
    *,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    sides: MirroredSides | None = None,
    batch_size: int = 1,
    background_K: Tensor | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    sums_device: torch.device | str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Tensor]:
    """Predict the logits of a whole preprocessed image by overlapping, weighted windows, and hand them out in slabs.

    No more of the logits is ever held than a window reaches along z, whatever the size of the image; where that is much
    for the CPU's memory, it is on disk.

    Args:
        networks: One for each fold, whose logits are averaged. Each call gives a network from (B, C, Z, Y, X) to logits
            of the same spatial size, in evaluation mode, on `device`; it is used until the next one is called for.
        image_CZYX: The preprocessed image, any size.
        patch_size: Size of a window (Z, Y, X).
        num_heads: Number of logits a voxel.
        step_size: Step between windows as a share of the window.
        mirror_axes: Spatial axes (0 to 2) over whose mirrored versions the mean is taken; none: no mirroring.
        sides: Which channels are those of mirror images.
        batch_size: Windows that go through the network together.
        background_K: Logits of windows that hold nothing but air, which skip the networks; None: all go through them.
        device: Where the networks are.
        precision: Type that their matrix products are computed in; None: as they come.
        sums_device: Where the running sums of the logits are; None for `device`.
        on_progress: Called with the share that is done.

    Yields:
        Logits (num_heads, planes, Y, X), float32, on `sums_device`; all planes in their order, each of them once.
    """
    device = torch.device(device)
    windows = _Windows(image_CZYX, patch_size, skip_air=background_K is not None)
    inside_z, *inside_yx = windows.inside
    starts_z, starts_y, starts_x = window_starts(windows.shape, patch_size, step_size)
    sums_device = torch.device(sums_device or device)
    slab = _Slab(num_heads, windows.shape, patch_size, sums_device)
    in_plane = list(product(starts_y, starts_x))
    done, total = 0, len(starts_z) * len(networks) * len(in_plane)
    for z, following in pairwise((*starts_z, starts_z[-1] + patch_size[0])):
        occupied, empty = windows.split(z, in_plane)
        if background_K is not None:
            constant_K111 = background_K.to(sums_device)[:, None, None, None]
            slab.add(constant_K111.expand(len(empty), -1, *patch_size), empty, times=len(networks))
        done += len(networks) * len(empty)
        with autocast_to(precision, device):
            for take in networks if occupied else ():
                network = take()
                for corners in _batches(occupied, batch_size):
                    slab.add(
                        predict_mirrored(network, windows.stack(z, corners).to(device), mirror_axes, sides), corners
                    )
                    done += len(corners)
                    if on_progress is not None:
                        on_progress(done / total)
        for first, logits in slab.release(following - z):
            planes = slice(max(0, inside_z.start - z - first), max(0, inside_z.stop - z - first))
            if (finished := logits[(slice(None), planes, *inside_yx)]).shape[1]:
                yield finished


class _Windows:
    """The windows of an image, which is padded where it is smaller than they are.

    Attributes:
        inside: Slices that hold the image in the padded one.
    """

    def __init__(self, image_CZYX: Tensor, patch_size: Sequence[int], *, skip_air: bool):
        self._padded, self.inside = pad_to_patch(image_CZYX, patch_size)
        self._patch_size = patch_size
        self._air = Air(image_CZYX) if skip_air else None

    @property
    def shape(self) -> Sequence[int]:
        """Of the padded image, (Z, Y, X)."""
        return self._padded.shape[1:]

    def stack(self, z: int, corners_yx: Corners) -> Tensor:
        """Cut windows out, (B, C, Z, Y, X)."""
        return torch.stack([self._padded[(slice(None), *self._box((z, *corner)))] for corner in corners_yx])

    def split(self, z: int, corners_yx: Corners) -> tuple[Corners, Corners]:
        """Tell the windows that hold something from those that hold nothing but air."""
        if self._air is None:
            return corners_yx, []
        is_empty = [self._air.fills(self._without_padding((z, *corner))) for corner in corners_yx]
        occupied = [corner for corner, empty in zip(corners_yx, is_empty, strict=True) if not empty]
        return occupied, [corner for corner, empty in zip(corners_yx, is_empty, strict=True) if empty]

    def _without_padding(self, corner: Sequence[int]) -> Tensor:
        boxes = zip(self._box(corner), self.inside, strict=True)
        cut = (slice(max(box.start, kept.start), min(box.stop, kept.stop)) for box, kept in boxes)
        return self._padded[(slice(None), *cut)]

    def _box(self, corner: Sequence[int]) -> tuple[slice, ...]:
        return tuple(slice(start, start + size) for start, size in zip(corner, self._patch_size, strict=True))


class _Slab:
    """Weighted sums over as many planes as a window has; `release` hands out the finished ones and moves on.

    The planes form a ring, so that nothing is moved. On the CPU sums that are large lie on disk.
    """

    def __init__(self, num_heads: int, image_shape: Sequence[int], patch_size: Sequence[int], device: torch.device):
        self._depth, self._height, self._width = patch_size
        self._first = 0
        self._weights = importance(patch_size, device)
        shape = (self._depth, *image_shape[1:])
        self._weight_ZYX = torch.zeros(shape, device=device)
        if device.type == "cpu":
            self._sum_KZYX = room_for((num_heads, *shape), torch.float32, "sums of logits")
        else:
            self._sum_KZYX = torch.zeros((num_heads, *shape), device=device)

    def add(self, logits_BKZYX: Tensor, corners_yx: Corners, times: int = 1) -> None:
        """Add windows, on any device, whose corners lie at these (y, x) of the slab, as if they came so many times."""
        weights = times * self._weights
        weights_there = weights.to(logits_BKZYX.device)
        for logits_KZYX, (y, x) in zip(logits_BKZYX, corners_yx, strict=True):
            rows, columns = slice(y, y + self._height), slice(x, x + self._width)
            for ours, planes in self._stretches(self._depth):
                self._weight_ZYX[ours, rows, columns] += weights[planes]
                for few in in_parts(len(logits_KZYX), self._sum_KZYX[0, ours].numel()):
                    weighted = logits_KZYX[few, planes] * weights_there[planes]
                    self._sum_KZYX[few, ours, rows, columns] += weighted.to(weights.device)
                    let_go(self._sum_KZYX)

    def release(self, planes: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the mean logits (K, n, Y, X) of the first planes, a few at a time, and make room for as many new ones.

        Each comes with the number of its first plane in the slab.
        """
        for ours, finished in self._stretches(planes):
            for few in in_parts(ours.stop - ours.start, self._sum_KZYX[:, 0].numel()):
                place = slice(ours.start + few.start, ours.start + few.stop)
                yield finished.start + few.start, self._sum_KZYX[:, place] / self._weight_ZYX[place]
                self._sum_KZYX[:, place] = 0
                self._weight_ZYX[place] = 0
                let_go(self._sum_KZYX)
        self._first = (self._first + planes) % self._depth

    def _stretches(self, planes: int) -> Iterator[tuple[slice, slice]]:
        """Yield where in the ring so many planes from the first one are, each with the numbers of these planes."""
        before_end = min(planes, self._depth - self._first)
        yield slice(self._first, self._first + before_end), slice(0, before_end)
        if planes > before_end:
            yield slice(0, planes - before_end), slice(before_end, planes)


def in_parts(count: int, values_each: int) -> Iterator[slice]:
    """Cut a range of things, of so many values each, so that a few float32 copies of each part take little memory."""
    step = max(1, BYTES_AT_A_TIME // (4 * values_each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _batches(corners: Corners, batch_size: int) -> Iterator[Corners]:
    for start in range(0, len(corners), batch_size):
        yield corners[start : start + batch_size]
