"""The tolerance of the normalized surface Dice: the literature's for its tasks, else 2 mm where these fit the image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.preprocessing.json_files import read_json_if_whole

DEFAULT_MM = 2.0
MOST_VOXELS = 20  # in a finer image 2 mm are no tolerance: nearly any surface is near any other
FINE_VOXELS = 2  # there
# Gong et al. 2024 (3DSAM-adapter) measure with 5 mm on KiTS, MSD pancreas, LiTS and MSD colon.
_TUMOUR_TASKS = ("kits", "kidney", "pancreas", "lits", "liver", "colon")
_TUMOUR_TASKS_MM = 5.0
_TUMOUR_TASKS_SOURCE = "the literature's for this task: Gong et al. 2024"


@dataclass(frozen=True)
class Tolerance:
    """A distance in mm and why it was chosen."""

    mm: float
    source: str


def choose_tolerance(
    names: Iterable[str], given_mm: float | None = None, spacing_mm: Sequence[float] | None = None
) -> Tolerance:
    """Choose the tolerance: the one given, else the literature's for a task that one of the names tells, else 2 mm.

    In images whose voxels are much smaller or much larger than 2 mm it follows the voxels.

    Args:
        names: What the dataset may be called, such as its folder's name.
        given_mm: The user's choice.
        spacing_mm: Of an image.
    """
    if given_mm is not None:
        return Tolerance(given_mm, "as given")
    spacing_mm = spacing_mm or (DEFAULT_MM,)
    for name in names:
        if any(task in name.lower() for task in _TUMOUR_TASKS) and not _is_fine(spacing_mm, _TUMOUR_TASKS_MM):
            return Tolerance(_TUMOUR_TASKS_MM, f"{_TUMOUR_TASKS_SOURCE}, told from the name {name}")
    return _default(spacing_mm)


def _default(spacing_mm: Sequence[float]) -> Tolerance:
    finest, middle = min(spacing_mm), sorted(spacing_mm)[len(spacing_mm) // 2]
    if _is_fine(spacing_mm, DEFAULT_MM):
        return Tolerance(FINE_VOXELS * middle, f"{FINE_VOXELS} voxels, since 2 mm are more than {MOST_VOXELS} of them")
    if finest / FINE_VOXELS > DEFAULT_MM:
        return Tolerance(finest, "a voxel, since 2 mm are less than half of one")
    return Tolerance(DEFAULT_MM, "default")


def _is_fine(spacing_mm: Sequence[float], tolerance_mm: float) -> bool:
    """Tell whether an image's voxels are so small that nearly any surface is within the tolerance of any other."""
    return MOST_VOXELS * sorted(spacing_mm)[len(spacing_mm) // 2] < tolerance_mm


def dataset_names(labels_folder: Path, dataset_json_file: Path, dataset_json: dict[str, object]) -> list[str]:
    """Give what a dataset may be called: by plans.json, by dataset.json, and by the folder of the labels."""
    plans_file = dataset_json_file.with_name("plans.json")
    planned = (read_json_if_whole(plans_file) or {}).get("dataset_name")
    names: list[object] = [planned, dataset_json.get("name"), labels_folder.resolve().parent.name]
    return [name for name in names if isinstance(name, str)]
