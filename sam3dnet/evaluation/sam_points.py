"""The literature's baseline "SAM-B, k points a slice": the official 2D SAM, clicked on every slice from the truth.

It is told in which slices an object is and where, unlike every automatic method; its figures belong to prompted ones.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.reading import DatasetReader

SLICE_PERCENTILES = (0.5, 99.5)  # of a volume's grey values, that become black and white

logger = logging.getLogger(__name__)


def load_sam(checkpoint: Path, encoder: str = "vit_b", device: str = "cpu") -> Any:
    """Load the official 2D SAM and give its predictor.

    Args:
        checkpoint: File with the weights.
        encoder: "vit_b", "vit_l" or "vit_h".
        device: Where to run it.

    Raises:
        CheckpointError: If the file is missing, or not a checkpoint of this SAM.
    """
    from segment_anything import SamPredictor, sam_model_registry

    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} does not exist; expected the official SAM checkpoint of {encoder}")
    try:
        sam = sam_model_registry[encoder](checkpoint=str(checkpoint))
    except Exception as error:  # torch raises whatever its unpickler met
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{checkpoint}: not a SAM checkpoint of {encoder} ({reason}); download it again, or name its encoder"
        ) from error
    return SamPredictor(sam.to(device).eval())


def segment_with_points(
    image_ZYX: npt.NDArray,
    truth_ZYX: npt.NDArray[np.integer],
    classes: Mapping[str, tuple[int, ...]],
    predictor: Any,
    *,
    points: int = 1,
    seed: int = 0,
) -> npt.NDArray[np.uint8]:
    """Segment every slice that holds a class, with clicks drawn from the class in that slice.

    Args:
        image_ZYX: Grey values; slices are taken along the first axis.
        truth_ZYX: Label map.
        classes: Label values of each class by name; for a region, several. Where predictions overlap the later counts.
        predictor: A `SamPredictor`.
        points: Clicks a slice, fewer where the class has fewer voxels.
        seed: Of the clicks; the same seed gives the same clicks.

    Returns:
        Label map (Z, Y, X) that holds the first label value of each class.
    """
    grey_ZYX = as_grey(image_ZYX)
    result_ZYX = np.zeros(truth_ZYX.shape, np.uint8)
    rng = np.random.default_rng(seed)
    for index, truth_YX in enumerate(truth_ZYX):
        masks = {values[0]: np.isin(truth_YX, values) for values in classes.values()}
        present = {value: mask for value, mask in masks.items() if mask.any()}
        if not present:
            continue
        predictor.set_image(np.repeat(grey_ZYX[index, ..., None], 3, -1))
        for value, mask_YX in present.items():
            clicks_P2 = draw_clicks(mask_YX, points, rng)
            found, _, _ = predictor.predict(clicks_P2, np.ones(len(clicks_P2), np.int64), multimask_output=False)
            result_ZYX[index][found[0]] = value
    return result_ZYX


def as_grey(image_ZYX: npt.NDArray) -> npt.NDArray[np.uint8]:
    """Map a volume's grey values to 0 to 255, the outermost ones clipped."""
    low, high = np.percentile(image_ZYX, SLICE_PERCENTILES)
    scaled = (image_ZYX - low) / max(float(high - low), 1e-8)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def draw_clicks(mask_YX: npt.NDArray[np.bool_], points: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw different voxels of a mask: (P, 2) in SAM's order, x before y."""
    inside_N2 = np.argwhere(mask_YX)
    chosen = rng.choice(len(inside_N2), min(points, len(inside_N2)), replace=False)
    return inside_N2[chosen][:, ::-1].copy()


def write_point_predictions(
    cases: Mapping[str, tuple[list[Path], Path]],
    output: Path,
    classes: Mapping[str, tuple[int, ...]],
    predictor: Any,
    *,
    reader: DatasetReader,
    file_ending: str,
    points: int = 1,
    seed: int = 0,
) -> list[Path]:
    """Segment cases with clicks and write label maps on each image's grid; those that are there are left as they are.

    Args:
        cases: Name -> (image files, one a channel; label file). SAM sees the first channel.
        output: Folder for the label maps.
        classes: Label values of each class by name.
        predictor: A `SamPredictor`.
        reader: Of the dataset.
        file_ending: Of the label maps, such as ".nii.gz".
        points: Clicks a slice.
        seed: Of the clicks; every case has its own, whatever order it comes in.

    Returns:
        The files.
    """
    from sam3dnet.inference.writing import write_label_map

    output.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (images, label) in cases.items():
        file = output / f"{name}{file_ending}"
        files.append(file)
        if file.is_file():
            continue
        image_CZYX, properties = reader.read_images(images)
        truth_CZYX, _ = reader.read_seg(label)
        own_seed = seed + sum(name.encode())
        found = segment_with_points(
            image_CZYX[0], truth_CZYX[0].astype(np.int64), classes, predictor, points=points, seed=own_seed
        )
        write_label_map(found, file, images[0], properties, reader)
        logger.info("%s: %d points a slice", name, points)
    return files
