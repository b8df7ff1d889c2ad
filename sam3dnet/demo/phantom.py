"""A made-up CT dataset in nnU-Net's raw format: thick slices, two organs, a small tumour, and lookalikes.

Coordinates are in millimetres from the centre of the volume, axes (Z, Y, X), intensities in Hounsfield units.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]

LABELS = {"background": 0, "liver": 1, "kidney": 2, "tumour": 3}
SPACING_MM = (5.0, 2.5, 2.5)
FILE_ENDING = ".nii.gz"

_SOFT_TISSUE_HU, _FAT_HU, _AIR_HU, _BONE_HU = 40.0, -100.0, -1000.0, 400.0
_LIVER_HU, _KIDNEY_HU, _TUMOUR_HU, _CYST_HU = 115.0, 165.0, 65.0, 5.0
_NOISE_HU, _CONTRAST_HU, _SHADING_HU = 14.0, 8.0, 6.0


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with axes along the volume's."""

    centre_mm: FloatArray
    radii_mm: FloatArray


def write_phantom_dataset(folder: Path, num_training: int = 18, num_test: int = 4, seed: int = 0) -> Path:
    """Write training and test cases; the same seed gives the same voxels.

    Args:
        folder: Dataset folder to make; test labels go to its labelsTs.
        num_training: Cases with labels.
        num_test: Cases kept back.
        seed: Of all random numbers.

    Returns:
        The folder.
    """
    for index in range(num_training + num_test):
        part = "Tr" if index < num_training else "Ts"
        image, labels = make_case(np.random.default_rng((seed, index)))
        _write(image, folder / f"images{part}" / f"phantom_{index:02d}_0000{FILE_ENDING}")
        _write(labels, folder / f"labels{part}" / f"phantom_{index:02d}{FILE_ENDING}")
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": num_training,
        "file_ending": FILE_ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return folder


def make_case(rng: np.random.Generator) -> tuple[npt.NDArray[np.int16], LabelArray]:
    """Make one image in Hounsfield units and its labels, both (Z, Y, X)."""
    shape = tuple(int(n) for n in rng.integers((16, 45, 50), (21, 52, 57)))
    grid_mm = _grid_mm(shape)
    shift_mm = rng.uniform(-6, 6, 3).astype(np.float32)
    liver = _jittered(rng, centre_mm=np.add(shift_mm, (0, -8, -24)), radii_mm=(34, 28, 25))
    kidney = _jittered(rng, centre_mm=np.add(shift_mm, (4, 16, 28)), radii_mm=(28, 14, 13))
    tumour = _inside(rng, liver, radius_mm=rng.uniform(9, 14))
    cyst = _inside(rng, liver, radius_mm=rng.uniform(5, 8))

    image, labels = _body(rng, grid_mm, shift_mm), np.zeros(shape, np.uint8)
    for name, shape_mm, mean_hu in (("liver", liver, _LIVER_HU), ("kidney", kidney, _KIDNEY_HU)):
        mask = _blob(rng, grid_mm, shape_mm)
        image[mask] = mean_hu + rng.normal(0, _CONTRAST_HU)
        labels[mask] = LABELS[name]
    image[_blob(rng, grid_mm, cyst) & (labels == LABELS["liver"])] = _CYST_HU
    mask = _blob(rng, grid_mm, tumour) & (labels != LABELS["kidney"])
    image[mask] = _TUMOUR_HU + rng.normal(0, _CONTRAST_HU)
    labels[mask] = LABELS["tumour"]
    return _blur_and_add_noise(rng, image).astype(np.int16), labels


def _grid_mm(shape: tuple[int, ...]) -> FloatArray:
    """Coordinates of all voxels, (3, Z, Y, X)."""
    axes = [(np.arange(n) - (n - 1) / 2) * spacing for n, spacing in zip(shape, SPACING_MM, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _body(rng: np.random.Generator, grid_mm: FloatArray, shift_mm: FloatArray) -> FloatArray:
    """Air, a layer of fat, soft tissue, the spine, and unlabelled loops as bright as the organs; (Z, Y, X)."""
    image = np.full(grid_mm.shape[1:], _AIR_HU, np.float32)
    endless = 1e6
    for outer_mm, value_hu in ((54.0, _FAT_HU), (47.0, _SOFT_TISSUE_HU)):
        radii_mm = np.array((endless, outer_mm, outer_mm * 1.12), np.float32)
        image[_distance(grid_mm, Ellipsoid(shift_mm * (0, 0.3, 0.3), radii_mm)) < 1] = value_hu
    for _ in range(3):
        centre_mm = shift_mm + rng.uniform((-35, -25, 5), (35, -5, 30))
        loop = _jittered(rng, centre_mm, radii_mm=(8, 7, 7))
        image[_blob(rng, grid_mm, loop)] = rng.uniform(_TUMOUR_HU, _KIDNEY_HU)
    spine = Ellipsoid(shift_mm + np.array((0, 32, 0), np.float32), np.array((endless, 9, 10), np.float32))
    image[_distance(grid_mm, spine) < 1] = _BONE_HU
    return image


def _jittered(rng: np.random.Generator, centre_mm: npt.ArrayLike, radii_mm: npt.ArrayLike) -> Ellipsoid:
    centre = np.asarray(centre_mm, np.float32) + rng.normal(0, 2.5, 3).astype(np.float32)
    return Ellipsoid(centre, np.asarray(radii_mm, np.float32) * rng.uniform(0.85, 1.15, 3).astype(np.float32))


def _inside(rng: np.random.Generator, outer: Ellipsoid, radius_mm: float) -> Ellipsoid:
    """Place a ball at random, its centre well inside an ellipsoid."""
    direction = rng.normal(size=3)
    direction *= rng.uniform(0.2, 0.65) / np.linalg.norm(direction)
    return Ellipsoid(
        (outer.centre_mm + direction * outer.radii_mm).astype(np.float32), np.full(3, radius_mm, np.float32)
    )


def _distance(grid_mm: FloatArray, ellipsoid: Ellipsoid) -> FloatArray:
    """Distance from the centre in units of the radius, (Z, Y, X)."""
    centre, radii = ellipsoid.centre_mm[:, None, None, None], ellipsoid.radii_mm[:, None, None, None]
    return np.sqrt((((grid_mm - centre) / radii) ** 2).sum(0))


def _blob(rng: np.random.Generator, grid_mm: FloatArray, ellipsoid: Ellipsoid) -> npt.NDArray[np.bool_]:
    """The ellipsoid with a smoothly dented surface."""
    return _distance(grid_mm, ellipsoid) < 1 + 0.1 * _smooth_field(rng, grid_mm.shape[1:], sigma_mm=10.0)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], sigma_mm: float) -> FloatArray:
    """Smooth random values of mean 0 and standard deviation 1."""
    sigma = [sigma_mm / spacing for spacing in SPACING_MM]
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def _blur_and_add_noise(rng: np.random.Generator, image: FloatArray) -> FloatArray:
    blurred = ndimage.gaussian_filter(image, (0.3, 0.5, 0.5))
    shading = _SHADING_HU * _smooth_field(rng, image.shape, sigma_mm=25.0)
    grain = _NOISE_HU * _smooth_field(rng, image.shape, sigma_mm=1.5)
    return np.asarray(blurred + shading + grain)


def _write(array: npt.NDArray[np.generic], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    sitk.WriteImage(image, str(path), useCompression=True)
