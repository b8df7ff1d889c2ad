"""Check what is in an image and in a label, voxel by voxel."""

import hashlib
from collections.abc import Collection

import numpy as np

from sam3dnet.preprocessing.checks_description import NON_FINITE
from sam3dnet.preprocessing.problems import Problem, error, shorten

EMPTY_LABEL = "empty label"
# Up to this range counting is faster than sorting.
_MAX_COUNTED_RANGE = 1 << 20
_EXPORT_AGAIN = "expected an image with contrast; export it again, or leave the case out"


def check_image(case: str, file: str, image: np.ndarray, bytes_were_finite: bool) -> list[Problem]:
    """Check that an image holds finite numbers, and more than one.

    Args:
        case: Name of the case.
        file: Of the image, for messages.
        image: (Z, Y, X), any type.
        bytes_were_finite: False if NaN was found in the file already, which its reader then turned into zeros.
    """
    finite = np.isfinite(_as_read(image))
    num_non_finite = int(image.size - np.count_nonzero(finite))
    problems = []
    if bytes_were_finite and num_non_finite:
        message = (
            f"{file}: {num_non_finite} voxels are NaN or infinite in float32; expected finite numbers; replace "
            "them by a value that makes sense there, such as the lowest of the image"
        )
        problems.append(error(case, NON_FINITE, message))
    values = image[finite] if num_non_finite else image
    if values.size == 0:
        return problems
    low, high = values.min(), values.max()
    if low == high == 0:
        problems.append(error(case, "all-zero image", f"{file}: all voxels are 0; {_EXPORT_AGAIN}"))
    elif low == high:
        problems.append(error(case, "constant image", f"{file}: all voxels are {low}; {_EXPORT_AGAIN}"))
    return problems


def _as_read(image: np.ndarray) -> np.ndarray:
    """Give the image in the type in which networks see it, float32, where that may lose numbers."""
    if image.dtype.kind != "f" or image.dtype.itemsize <= np.dtype(np.float32).itemsize:
        return image
    with np.errstate(over="ignore"):
        return image.astype(np.float32)


def count_label_values(label: np.ndarray) -> tuple[dict[int, int], list[float]]:
    """Count the voxels of each whole value, and list the values that are not whole.

    Args:
        label: (Z, Y, X), any type; NaN counts for not whole.
    """
    if np.issubdtype(label.dtype, np.floating):
        values, counts = np.unique(label, return_counts=True)
        whole = np.isfinite(values) & (values == np.rint(values))
        found = {int(value): int(count) for value, count in zip(values[whole], counts[whole], strict=True)}
        return found, [float(value) for value in values[~whole]]
    low, high = int(label.min()), int(label.max())
    if high - low < _MAX_COUNTED_RANGE:
        counts = np.bincount(np.subtract(label, low, dtype=np.int64).ravel())
        return {low + int(i): int(counts[i]) for i in np.flatnonzero(counts)}, []
    values, counts = np.unique(label, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}, []


def check_label_values(
    case: str,
    file: str,
    counts: dict[int, int],
    fractions: list[float],
    allowed: Collection[int] | None,
    ignore: int | None,
) -> list[Problem]:
    """Check the values of a label against those of dataset.json.

    Args:
        case: Name of the case.
        file: Of the label, for messages.
        counts: Voxels of each whole value.
        fractions: Values that are not whole.
        allowed: Values that dataset.json declares, with the ignore label; None if it could not be understood.
        ignore: Value of the ignore label.
    """
    problems = []
    if fractions:
        values = shorten([f"{value:.6g}" for value in fractions])
        message = (
            f"{file}: {len(fractions)} values are not whole numbers: {values}; expected label values; a label must be "
            "resampled with nearest neighbours"
        )
        problems.append(error(case, "non-integer label", message))
    unexpected = sorted(set(counts) - set(counts if allowed is None else allowed))
    if 255 in unexpected and set(counts) <= {0, 255}:
        message = (
            f"{file}: has the values 0 and 255, an image's black and white; expected {_listed(allowed)}; divide by 255"
        )
        problems.append(error(case, "label 0/255", message))
    elif unexpected:
        message = (
            f"{file}: has the values {shorten([str(value) for value in unexpected])}, which dataset.json does not "
            f"declare; expected {_listed(allowed)}; add them to labels, or correct the file"
        )
        problems.append(error(case, "undeclared label value", message))
    if not fractions and not set(counts) - {0, ignore}:
        message = (
            f"{file}: has no labelled voxel, all are background; expected an object; draw it, or leave the case out, "
            'or, if cases without an object are meant, add "sam3d_accept": ["empty label"] to dataset.json'
        )
        problems.append(error(case, EMPTY_LABEL, message))
    return problems


def digest_voxels(image: np.ndarray) -> str:
    """Hash an image's voxels, whatever its file is called and however it is compressed."""
    digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _listed(values: Collection[int] | None) -> str:
    return shorten([str(value) for value in sorted(values or ())], most=12)
