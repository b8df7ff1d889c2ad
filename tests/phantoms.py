"""Tiny datasets in nnU-Net's raw format, sound unless a test breaks them afterwards."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

LABELS = {"background": 0, "organ": 1, "lesion": 2}
SHAPE = (12, 20, 18)
SPACING_MM = (3.0, 0.7, 1.1)
ORIGIN_MM = (-11.0, 23.0, 5.0)
_AIR_HU, _BODY_HU, _ORGAN_HU, _LESION_HU, _NOISE_HU = -1000, 40, 130, 70, 8


def make_raw_dataset(
    folder: Path,
    *,
    num_cases: int = 6,
    num_test: int = 0,
    channel_names: Sequence[str] = ("CT",),
    labels: Mapping[str, int | Sequence[int]] = LABELS,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    file_ending: str = ".nii.gz",
    seed: int = 0,
    **more_keys: Any,
) -> Path:
    """Write a dataset; the same arguments give the same voxels.

    Args:
        folder: Dataset folder to make.
        num_cases: Training cases, case_0, case_1, ...; their shapes differ by a voxel or two.
        num_test: Cases without labels in imagesTs, named test_0, ...
        channel_names: One channel each; every channel sees the same anatomy with its own contrast.
        labels: As in dataset.json; organ is 1, lesion 2, and a label "ignore" fills the last slice.
        shape: (Z, Y, X) of the first case.
        spacing_mm: (Z, Y, X).
        file_ending: .nii.gz, .nii, .nrrd or .mha.
        seed: Of all random numbers.
        **more_keys: Further keys of dataset.json, such as regions_class_order.

    Returns:
        The folder.
    """
    for part in ("imagesTr", "labelsTr", *(["imagesTs"] if num_test else [])):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(num_cases + num_test):
        rng = np.random.default_rng((seed, index))
        case_shape = (shape[0] + index % 3, shape[1] - index % 2, shape[2])
        label_map = make_labels(rng, case_shape)
        name, part = (f"case_{index}", "Tr") if index < num_cases else (f"test_{index - num_cases}", "Ts")
        for channel in range(len(channel_names)):
            image = make_image(rng, label_map, contrast=1.0 - 0.3 * channel)
            write_volume(image, folder / f"images{part}" / f"{name}_{channel:04d}{file_ending}", spacing_mm)
        if "ignore" in labels:
            label_map[-1] = labels["ignore"]
        if part == "Tr":
            write_volume(label_map, folder / "labelsTr" / f"{name}{file_ending}", spacing_mm)
    description = {
        "channel_names": {str(index): name for index, name in enumerate(channel_names)},
        "labels": dict(labels),
        "numTraining": num_cases,
        "file_ending": file_ending,
        **more_keys,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return folder


def make_labels(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw an organ (1) with a lesion (2) inside; (Z, Y, X), uint8."""
    centre = np.array(shape) * rng.uniform(0.42, 0.55, 3)
    organ = _ellipsoid(shape, centre, np.array(shape) * (0.33, 0.28, 0.3) * rng.uniform(0.9, 1.1, 3))
    lesion = _ellipsoid(shape, centre + np.array((0.5, -1.0, 1.0)), np.array((1.7, 2.6, 2.2)))
    return np.where(lesion & organ, 2, organ).astype(np.uint8)


def make_image(rng: np.random.Generator, labels: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """Draw an image in Hounsfield units with air outside of the body; (Z, Y, X), int16."""
    shape = labels.shape
    body = _ellipsoid(shape, np.array(shape) * 0.5, np.array(shape) * (2.0, 0.47, 0.47))
    image = np.where(body, _BODY_HU, _AIR_HU).astype(np.float32)
    image[labels > 0] = _BODY_HU + contrast * (_ORGAN_HU - _BODY_HU)
    image[labels == 2] = _BODY_HU + contrast * (_LESION_HU - _BODY_HU)
    smooth = ndimage.gaussian_filter(image, (0.3, 0.5, 0.5))
    return (smooth + rng.normal(0, _NOISE_HU, shape)).round().astype(np.int16)


def write_volume(
    array: np.ndarray,
    path: Path,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    origin_mm: tuple[float, float, float] = ORIGIN_MM,
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> None:
    """Write an array (Z, Y, X); spacing in its axis order, origin and direction (row by row) in ITK's (x, y, z)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin(origin_mm)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=path.suffix != ".nii")


def _ellipsoid(shape: Sequence[int], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return np.asarray((((grid - centre) / radii) ** 2).sum(-1) < 1)
