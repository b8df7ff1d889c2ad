"""Make a small dataset, break it, and look at what verification finds."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import make_raw_dataset, write_volume

from sam3dnet.preprocessing.verify import Problem, verify_dataset

SHAPE = (5, 9, 8)
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
FLIPPED = (-1, 0, 0, 0, 1, 0, 0, 0, 1)


def make(folder: Path, **options: Any) -> Path:
    return make_raw_dataset(folder / "Dataset904_Verify", **{"num_cases": 4, "shape": SHAPE, **options})


def check(folder: Path) -> list[Problem]:
    return verify_dataset(folder, num_processes=0, progress=False)


def found(folder: Path) -> set[tuple[str, str, str]]:
    return {(problem.severity, problem.case, problem.check) for problem in check(folder)}


def message_of(folder: Path, check_name: str) -> str:
    messages = [problem.message for problem in check(folder) if problem.check == check_name]
    assert len(messages) == 1, messages
    return messages[0]


def image_of(folder: Path, case: int, channel: int = 0) -> Path:
    return next((folder / "imagesTr").glob(f"case_{case}_{channel:04d}.*"))


def label_of(folder: Path, case: int) -> Path:
    return next((folder / "labelsTr").glob(f"case_{case}.*"))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda array: array, **geometry: Any) -> None:
    write_volume(change(read(path)), path, **geometry)


def set_voxels(array: np.ndarray, value: float, count: int = 3) -> np.ndarray:
    array = array.astype(np.float32)
    array.flat[100 : 100 + count] = value
    return array


def edit_json(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@contextmanager
def disk_that_ends_after(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="Windows limits no file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def rewrite_as(folder: Path, source: Path, name: str) -> None:
    """Write a changed copy of a file beside it, under another name."""
    array = read(source)
    if source.parent.name == "imagesTr":
        array = array + 5
    write_volume(array, source.parent / name)
