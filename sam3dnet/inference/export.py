"""From logits to a label map on the image's own grid, in a file that appears whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3dnet.inference.cases import Case, is_damaged
from sam3dnet.inference.nifti_header import NIFTI_ENDINGS, copy_geometry
from sam3dnet.preprocessing.checks_case import read_grid

TEMPORARY_FOLDER = ".sam3d_unfinished"


def label_map(
    logits_KZYX: Tensor, properties: Mapping[str, Any], plans: Any, configuration: Any, labels: Any
) -> np.ndarray:
    """Resample logits to the image's grid and decide on a label for each voxel.

    The plan's resampling function is called for one channel at a time, so that only one is ever held at the image's
    resolution.

    Args:
        logits_KZYX: Logits on the preprocessed grid.
        properties: What nnU-Net's preprocessor says about the case: spacing, shapes and the box of the crop.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        labels: nnU-Net's LabelManager.

    Returns:
        Labels on the grid of the image as its reader gave it, in the smallest unsigned type that holds all labels.
    """
    rest = (properties, plans, configuration)
    channels = (resample_to_image(logits_KZYX[k : k + 1], *rest) for k in range(len(logits_KZYX)))
    return put_into_image(decide(channels, labels), properties, plans)


def put_into_image(labels_ZYX: np.ndarray, properties: Mapping[str, Any], plans: Any) -> np.ndarray:
    """Put labels back into the box that the image was cropped to, and swap the axes back."""
    full = np.zeros(properties["shape_before_cropping"], dtype=labels_ZYX.dtype)
    full[tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])] = labels_ZYX
    return np.ascontiguousarray(full.transpose(plans.transpose_backward))


def resample_to_image(logits_1ZYX: Tensor, properties: Mapping[str, Any], plans: Any, configuration: Any) -> Tensor:
    """Resample one channel of logits to the cropped image's grid by the plan's function, (Z, Y, X)."""
    spacing_mm = [properties["spacing"][axis] for axis in plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    resampled = configuration.resampling_fn_probabilities(logits_1ZYX, shape, configuration.spacing, spacing_mm)
    return torch.as_tensor(resampled)[0]


def decide(channels: Iterable[Tensor], labels: Any) -> np.ndarray:
    """Decide on a label for each voxel by nnU-Net's rules: argmax, or regions in their order above 0.5.

    Args:
        channels: Logits of each class or region in turn, (Z, Y, X).
        labels: nnU-Net's LabelManager.

    Returns:
        (Z, Y, X), in the smallest unsigned type that holds all labels.
    """
    dtype = smallest_type(labels)
    of_torch = torch.uint8 if dtype == np.uint8 else torch.int32
    decided = _decide_by_region if labels.has_regions else _decide_by_argmax
    return decided(iter(channels), labels, of_torch).cpu().numpy().astype(dtype, copy=False)


def _decide_by_argmax(channels: Iterator[Tensor], _labels: Any, dtype: torch.dtype) -> Tensor:
    best = next(channels)
    result = torch.zeros(best.shape, dtype=dtype, device=best.device)
    for label, logits in enumerate(channels, start=1):
        result[logits > best] = label
        best = torch.maximum(best, logits)
    return result


def _decide_by_region(channels: Iterator[Tensor], labels: Any, dtype: torch.dtype) -> Tensor:
    result = torch.zeros(0)
    for number, (label, logits) in enumerate(zip(labels.regions_class_order, channels, strict=True)):
        if number == 0:
            result = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
        result[labels.apply_inference_nonlin(logits) > 0.5] = label
    return result


def smallest_type(labels: Any) -> np.dtype:
    """Return the smallest unsigned integer type that holds all labels of nnU-Net's LabelManager."""
    values = [*labels.all_labels, *(labels.regions_class_order or ())]
    return np.min_scalar_type(int(max(values)))


def write_label_map(
    label_map_ZYX: np.ndarray, path: Path, image: Path, properties: Mapping[str, Any], reader_writer: Any
) -> None:
    """Write a label map with the image's geometry, under a temporary name first.

    Args:
        label_map_ZYX: Labels on the image's grid.
        path: Final name.
        image: The image's file; of a NIfTI image the header's geometry is taken over bit for bit.
        properties: Geometry, as the reader gave it.
        reader_writer: nnU-Net's reader and writer of the plan.

    Raises:
        OSError, RuntimeError: If writing fails; nothing is left under the final name then.
    """
    temporary = path.parent / TEMPORARY_FOLDER
    temporary.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary) as name:
        _write(label_map_ZYX, Path(name) / path.name, image, properties, reader_writer)
        _require_whole(Path(name) / path.name)
        written = sorted(Path(name).iterdir(), key=lambda file: file.name == path.name)
        for file in written:  # the label map last: it says that the case is finished
            os.replace(file, path.parent / file.name)


def _write(
    label_map_ZYX: np.ndarray, path: Path, image: Path, properties: Mapping[str, Any], reader_writer: Any
) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if type(reader_writer) is not SimpleITKIO or not path.name.endswith(NIFTI_ENDINGS):
        reader_writer.write_seg(label_map_ZYX, str(path), properties)
        return
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as name:
        uncompressed = Path(name) / "labels.nii"
        reader_writer.write_seg(label_map_ZYX, str(uncompressed), properties)
        _require_whole(uncompressed)
        copy_geometry(image, uncompressed, path)


def _require_whole(path: Path) -> None:
    """Raise what ITK's writer of NIfTI does not: on a full disk it ends in silence and leaves half a file."""
    if is_damaged(path):
        raise OSError(errno.ENOSPC, "could not be written whole; is the disk full?", str(path))


def is_finished(output: Path, case: Case) -> bool:
    """Tell whether the output is whole, has the shape of the image, and is not older than the image."""
    if not output.is_file() or is_damaged(output):
        return False
    if any(file.stat().st_mtime_ns > output.stat().st_mtime_ns for file in case.files):
        return False
    (written, _), (image, _) = read_grid(case.name, output), read_grid(case.name, case.files[0])
    return written is not None and image is not None and written.shape == image.shape


def as_tensor(image_CZYX: np.ndarray) -> Tensor:
    """Return the image as a contiguous float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image_CZYX, dtype=np.float32))
