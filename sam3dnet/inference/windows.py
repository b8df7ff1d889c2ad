"""Sliding windows: where they lie, how they are weighted, and how their logits become one volume.

Positions and weights are nnU-Net's. The running sums cover only the planes that a window can still reach, so that the
memory on the device grows with the image's slices, not with the image; finished planes leave it at once.

Axes in names: B windows of a batch, K classes or regions, C channels, Z Y X voxels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations, product

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

SIGMA_SHARE = 1 / 8  # of the window, nnU-Net's
LARGEST_WEIGHT = 10.0  # nnU-Net's: small weights stay above what half precision can hold

Network = Callable[[Tensor], Tensor] | nn.Module


def window_starts(image_shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> list[list[int]]:
    """Return where windows start along each axis, as nnU-Net places them.

    Args:
        image_shape: (Z, Y, X), nowhere smaller than the patch.
        patch_size: (Z, Y, X).
        step_size: Largest step as a share of the patch, above 0 and at most 1.
    """
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    return compute_steps_for_sliding_window(tuple(image_shape), tuple(patch_size), step_size)


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


def predict_mirrored(network: Network, windows_BCZYX: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Return the mean of the logits over all mirrored versions of the windows, (B, K, Z, Y, X), float32."""
    flips = mirror_combinations(mirror_axes)
    total: Tensor | None = None
    for axes in flips:
        logits = network(windows_BCZYX.flip(axes) if axes else windows_BCZYX)
        logits = logits[0] if isinstance(logits, list | tuple) else logits  # the finest of deep supervision
        logits = (logits.flip(axes) if axes else logits).float()
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(flips)


@torch.inference_mode()
def predict_volume(
    network: Network,
    image_CZYX: Tensor,
    patch_size: Sequence[int],
    num_heads: int,
    *,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    on_progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Predict the logits of a whole preprocessed image by overlapping, weighted windows.

    Args:
        network: From (B, C, Z, Y, X) to logits of the same spatial size; in evaluation mode, on `device`.
        image_CZYX: The preprocessed image, any size.
        patch_size: Size of a window (Z, Y, X).
        num_heads: Number of logits a voxel.
        step_size: Step between windows as a share of the window.
        mirror_axes: Spatial axes (0 to 2) over whose mirrored versions the mean is taken; none: no mirroring.
        batch_size: Windows that go through the network together.
        device: Where the network is; on a CUDA card it runs under autocast, as in training.
        on_progress: Called with the share that is done.

    Returns:
        Logits (num_heads, Z, Y, X) in half precision on the CPU, of the image's size.
    """
    device = torch.device(device)
    padded, inside = pad_to_patch(image_CZYX, patch_size)
    starts_z, starts_y, starts_x = window_starts(padded.shape[1:], patch_size, step_size)
    slab = _Slab(num_heads, padded.shape[1:], patch_size, device)
    logits = torch.empty((num_heads, *padded.shape[1:]), dtype=torch.half)
    in_plane = list(product(starts_y, starts_x))
    with autocast_on(device):
        for number, z in enumerate(starts_z):
            for corners in _batches(in_plane, batch_size):
                windows = torch.stack([_window(padded, (z, *corner), patch_size) for corner in corners])
                slab.add(predict_mirrored(network, windows.to(device), mirror_axes), corners)
                if on_progress is not None:
                    share_of_plane = (in_plane.index(corners[-1]) + 1) / len(in_plane)
                    on_progress((number + share_of_plane) / len(starts_z))
            following = starts_z[number + 1] if number + 1 < len(starts_z) else z + patch_size[0]
            logits[:, z:following] = slab.release(following - z)
    return logits[(slice(None), *inside)] if logits.shape[1:] != image_CZYX.shape[1:] else logits


class _Slab:
    """Weighted sums over as many planes as a window has; `release` hands out the finished ones and moves on."""

    def __init__(self, num_heads: int, image_shape: Sequence[int], patch_size: Sequence[int], device: torch.device):
        depth, self._height, self._width = patch_size
        self._weights = importance(patch_size, device)
        self._sum_KZYX = torch.zeros((num_heads, depth, *image_shape[1:]), device=device)
        self._weight_ZYX = torch.zeros((depth, *image_shape[1:]), device=device)

    def add(self, logits_BKZYX: Tensor, corners_yx: Sequence[tuple[int, int]]) -> None:
        """Add the windows whose corners lie at these (y, x) of the slab."""
        for logits_KZYX, (y, x) in zip(logits_BKZYX, corners_yx, strict=True):
            rows, columns = slice(y, y + self._height), slice(x, x + self._width)
            self._sum_KZYX[:, :, rows, columns] += logits_KZYX * self._weights
            self._weight_ZYX[:, rows, columns] += self._weights

    def release(self, planes: int) -> Tensor:
        """Return the mean logits (K, planes, Y, X) of the first planes and make room for as many new ones."""
        finished = self._sum_KZYX[:, :planes] / self._weight_ZYX[:planes]
        for sums, axis in ((self._sum_KZYX, 1), (self._weight_ZYX, 0)):
            kept = sums.shape[axis] - planes
            sums.narrow(axis, 0, kept).copy_(sums.narrow(axis, planes, kept).clone())
            sums.narrow(axis, kept, planes).zero_()
        return finished.half().cpu()


def _window(image_CZYX: Tensor, corner: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    z, y, x = (slice(start, start + size) for start, size in zip(corner, patch_size, strict=True))
    return image_CZYX[:, z, y, x]


def _batches(corners: Sequence[tuple[int, int]], batch_size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(corners), batch_size):
        yield corners[start : start + batch_size]


def autocast_on(device: torch.device) -> AbstractContextManager:
    """Compute on a card in bf16, as training does: what bf16 trained may overflow fp16, whose largest number is 65504.

    Cards that only emulate bf16 take fp16, on which nnU-Net always predicts.
    """
    if device.type != "cuda":
        return nullcontext()
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", torch.bfloat16 if has_bf16 else torch.float16)
