"""Tiny tasks in the Decathlon's format and in that of nnU-Net's first version."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from sam3dnet.cli.convert import main

SHAPE_XYZ = (7, 6, 5)
# oblique, anisotropic, with digits that a detour through cosines and spacings would not keep
AFFINE = np.array([[0.7642, -0.2659, 0, -91.27], [0.2364, 0.8597, 0, 17.31], [0, 0, 2.4999, -3.33], [0, 0, 0, 1.0]])
DESCRIPTION = {
    "name": "PROSTATE",
    "description": "Prostate",
    "reference": "Somewhere",
    "licence": "CC-BY-SA 4.0",
    "release": "1.0",
    "tensorImageSize": "4D",
    "modality": {"0": "T2", "1": "ADC"},
    "labels": {"0": "background", "2": "TZ", "1": "PZ"},
}


def write_nifti(
    file: Path,
    seed: int,
    channels: int | None = None,
    dtype: Any = np.int16,
    slope: tuple[float, float] | None = None,
    kind: Any = nibabel.Nifti1Image,
    order: str = "<",
) -> None:
    """Write an image, in four dimensions where channels are given, and scaled where a slope and intercept are."""
    shape = SHAPE_XYZ if channels is None else (*SHAPE_XYZ, channels)
    voxels = np.random.default_rng(seed).integers(-500, 1500, shape).astype(dtype)
    image = kind(voxels, None, kind.header_class(endianness=order))
    image.header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 2)
    image.header["descrip"] = b"kept"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"a comment"))
    if slope is not None:
        image.header.set_slope_inter(*slope)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(file)


def write_label(file: Path, seed: int) -> None:
    """Write a label map with the values 0, 1 and 2."""
    labels = np.random.default_rng(seed).integers(0, 3, SHAPE_XYZ).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(labels, AFFINE).to_filename(file)


def make_decathlon(
    folder: Path, *, channels: int | None = 2, num_training: int = 3, num_test: int = 1, **image: Any
) -> Path:
    """Make a task with one file an image, and the companions that macOS puts beside."""
    names = [f"p_{index:02d}" for index in range(num_training + num_test)]
    for index, name in enumerate(names):
        part = "Tr" if index < num_training else "Ts"
        write_nifti(folder / f"images{part}" / f"{name}.nii.gz", index, channels, **image)
        (folder / f"images{part}" / f"._{name}.nii.gz").write_bytes(b"Mac OS X")
        if part == "Tr":
            write_label(folder / "labelsTr" / f"{name}.nii.gz", index)
    return describe(folder, names[:num_training], names[num_training:], channels or 1)


def make_first_version(folder: Path, *, channels: int = 2, num_training: int = 3, num_test: int = 1) -> Path:
    """Make a task with one file a channel."""
    names = [f"p_{index:02d}" for index in range(num_training + num_test)]
    for index, name in enumerate(names):
        part = "Tr" if index < num_training else "Ts"
        for channel in range(channels):
            write_nifti(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", 10 * index + channel)
        write_label(folder / f"labels{part}" / f"{name}.nii.gz", index)
    return describe(folder, names[:num_training], names[num_training:], channels)


def describe(folder: Path, training: Sequence[str], test: Sequence[str], channels: int) -> Path:
    """Write dataset.json."""
    modality = {str(channel): ("T2", "ADC", "DWI", "CT")[channel] for channel in range(channels)}
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in training]
    tests = [f"./imagesTs/{name}.nii.gz" for name in test]
    counts = {"numTraining": len(training), "numTest": len(test)}
    content = DESCRIPTION | {"modality": modality, "training": listed, "test": tests, **counts}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of dataset.json; None removes one."""
    file = folder / "dataset.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def convert_below(root: Path, folder: Path, *options: str) -> int:
    """Convert into root/nnUNet_raw as the command does; give the exit status."""
    return main([str(folder), "--root", str(root), "--workers", "0", *options])


def files_below(folder: Path) -> list[str]:
    """List all files, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def left_in(root: Path) -> list[str]:
    """List what lies in nnUNet_raw, hidden or not."""
    raw = root / "nnUNet_raw"
    return sorted(path.name for path in raw.iterdir()) if raw.is_dir() else []
