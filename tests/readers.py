"""Tiny datasets for every reader, format and kind of header, written without our code, and where they lie."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from fake_prompts import make_model_of_bright_objects
from scipy.spatial.transform import Rotation
from tiny_models import LABELS

from sam3dnet.inference.models import load_model
from sam3dnet.preprocessing.cases import TrainingCase, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.reading import DatasetReader, reader_of_cases
from sam3dnet.training.validation import _Validation

SHAPE_IJK = (7, 10, 8)
ZOOMS_IJK = (0.8, 1.1, 2.5)
ORGAN, LESION = (slice(1, 4), slice(1, 4), slice(5, 7)), (slice(4, 6), slice(6, 9), slice(1, 4))
ITK_READERS, NIBABEL_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient"), ("NibabelIO", "NibabelIOWithReorient")
READER_KEY = "overwrite_image_reader_writer"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine(rotation: Any = None, axes: Any = (0, 1, 2), signs: Any = (1, 1, 1)) -> Any:
    """Make a transform from file voxels to RAS: axis n of the file runs along axes[n], then all is rotated."""
    matrix = np.zeros((4, 4))
    for n in range(3):
        matrix[axes[n], n] = signs[n] * ZOOMS_IJK[n]
    if rotation is not None:
        matrix[:3, :3] = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() @ matrix[:3, :3]
    matrix[:, 3] = (-31.7, 17.3, 101.9, 1)
    return matrix


# qform and sform; of other formats the first alone
HEADERS = {
    "as of DICOM": (affine(signs=(-1, -1, 1)),) * 2,
    "flipped and oblique": (affine((5, -8, 20), signs=(-1, 1, -1)),) * 2,
    "sagittal and oblique": (affine((-7, 12, 9), (1, 2, 0), (-1, -1, 1)),) * 2,
    "steep": (affine((41, 20, -43)),) * 2,
    "two places": (affine((5, -8, 20)), affine((3, 2, 10), (1, 0, 2), (1, -1, -1))),
    "a fourth axis": (affine((5, -8, 20), signs=(-1, 1, -1)),) * 2,
}


@dataclass(frozen=True)
class Kind:
    """A reader, a format and a header.

    Attributes:
        reader: Of nnU-Net.
        ending: Of the files.
        header: One of HEADERS; of TIFF "a sidecar".
    """

    reader: str
    ending: str
    header: str

    def __str__(self) -> str:
        return f"{self.reader} {self.ending} {self.header}"

    @property
    def is_nifti(self) -> bool:
        return self.ending.startswith(".nii")

    @property
    def says_two_places(self) -> bool:
        return self.header == "two places"

    @property
    def seen_by_reader(self) -> Any:
        """RAS from file voxels, as the reader's library has it."""
        return HEADERS[self.header][1 if self.reader in NIBABEL_READERS else 0]

    @cached_property
    def orientation(self) -> Any:
        """For each axis of the file, the axis of the array (x, y, z) and whether it runs the same way."""
        if self.reader.endswith("WithReorient"):
            return nibabel.orientations.io_orientation(self.seen_by_reader).astype(int)
        return np.array([[0, 1], [1, 1], [2, 1]])

    def array_voxel(self, voxel_ijk: Any) -> Any:
        """Give the voxel (z, y, x) of the reader's array for one of the file."""
        found = np.zeros(3)
        for n, (axis, sign) in enumerate(self.orientation):
            found[axis] = voxel_ijk[n] if sign > 0 else SHAPE_IJK[n] - 1 - voxel_ijk[n]
        return found[::-1]

    def of_array(self, lengths_ijk: Any) -> list[float]:
        """Bring three lengths along the file's axes into the order of the reader's array."""
        return [float(lengths_ijk[list(self.orientation[:, 0]).index(axis)]) for axis in (2, 1, 0)]


MORE_AXES = "a fourth axis"
OWN = {".nii": NIBABEL_READERS, ".nii.gz": ITK_READERS}  # the libraries that nnU-Net takes unless it is told


def kinds() -> list[Kind]:
    """List what there is to be tested: all headers with the library that a format has, some with the other one."""
    nifti = [
        Kind(reader, ending, header)
        for ending in OWN
        for reader in ITK_READERS + NIBABEL_READERS
        for header in (HEADERS if reader in OWN[ending] else ("flipped and oblique", "two places", MORE_AXES))
        if header != MORE_AXES or reader in ITK_READERS
    ]
    metaimage = [Kind(reader, ".mha", header) for reader in ITK_READERS for header in list(HEADERS)[:4]]
    nrrd = [Kind(reader, ".nrrd", "sagittal and oblique") for reader in ITK_READERS]
    return [*nifti, *metaimage, *nrrd, Kind("Tiff3DIO", ".tif", "a sidecar")]


def draw(seed: int) -> tuple[Any, Any]:
    """Draw an image with a bright lesion and a dark organ, and its labels, both along the file's axes."""
    image = np.random.default_rng(seed).normal(10, 0.2, SHAPE_IJK).astype(np.float32)
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[ORGAN], labels[LESION] = 1, 2
    image[labels == 1], image[labels == 2] = 6, 15
    return image, labels


def write(kind: Kind, file: Path, array_ijk: Any) -> None:
    """Write an array along the file's axes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind.is_nifti:
        image = nibabel.Nifti1Image(array_ijk[..., None] if kind.header == MORE_AXES else array_ijk, None)
        qform, sform = HEADERS[kind.header]
        image.set_qform(qform, 1)
        image.set_sform(sform, 2)
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(file)
    elif kind.ending == ".tif":
        tifffile.imwrite(file, array_ijk.T, photometric="minisblack")
    else:
        image = sitk.GetImageFromArray(array_ijk.T)
        lps = LPS @ HEADERS[kind.header][0]
        image.SetSpacing(ZOOMS_IJK)
        image.SetOrigin(lps[:3, 3])
        image.SetDirection((lps[:3, :3] / ZOOMS_IJK).ravel())
        sitk.WriteImage(image, str(file))


def read(file: Path) -> Any:
    """Read an array along the file's axes."""
    if file.name.endswith(".tif"):
        return tifffile.imread(file).T
    if ".nii" in file.name:
        return np.asarray(nibabel.load(file).dataobj)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T


def write_sidecar(file: Path, zooms_ijk: Any = ZOOMS_IJK) -> None:
    """Write the spacing of a TIFF file beside it."""
    file.with_name(f"{file.name[:-9]}.json").write_text(json.dumps({"spacing": list(zooms_ijk[::-1])}))


def make_dataset(kind: Kind, folder: Path) -> Path:
    """Write a dataset with the training cases a, b and c and the test images d and e."""
    for seed, name in enumerate("abcde"):
        part = "Tr" if name in "abc" else "Ts"
        image, labels = draw(seed)
        file = folder / f"images{part}" / f"{name}_0000{kind.ending}"
        write(kind, file, image)
        if kind.ending == ".tif":
            write_sidecar(file)
        write(kind, folder / f"labels{part}" / f"{name}{kind.ending}", labels)
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 3, "file_ending": kind.ending}
    (folder / "dataset.json").write_text(json.dumps(content | {READER_KEY: kind.reader}))
    return folder


def cases_of(folder: Path) -> tuple[list[TrainingCase], DatasetReader]:
    """List the training cases, and find the reader as the commands do."""
    content = read_dataset_json(folder)
    cases = list_training_cases(folder, content)
    return cases, reader_of_cases(content, cases)


def make_model(kind: Kind, results: Path, **options: Any) -> Path:
    """Make a model of bright objects for a kind of dataset, with a spacing that is none of the images'."""
    folder = make_model_of_bright_objects(results, ending=kind.ending, **options)
    plans = json.loads((folder / "plans.json").read_text())
    plans["image_reader_writer"] = kind.reader
    plans["configurations"]["3d_fullres"] |= {"spacing": [0.7, 0.9, 0.6], "patch_size": [12, 16, 12]}
    (folder / "plans.json").write_text(json.dumps(plans))
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {READER_KEY: kind.reader}))
    return folder


def make_fold(kind: Kind, raw: Path, root: Path) -> tuple[Folders, Path]:
    """Preprocess a dataset and validate a fold with all of its cases by a model that nobody trained.

    Returns:
        The three folders, and that of the fold.
    """
    folders = Folders(raw.parent, root / "preprocessed", root / "results")
    preprocessed = folders.preprocessed / raw.name
    preprocessed.mkdir(parents=True)
    model = make_model(kind, folders.results, dataset=raw.name)
    (preprocessed / "SAM3DPlans.json").write_bytes((model / "plans.json").read_bytes())
    preprocess_dataset(raw.name, folders, num_processes=0, progress=False)
    names = [case.name for case in cases_of(raw)[0]]
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": [], "val": names}]))
    output = model / "fold_0" / "validation"
    output.mkdir()
    trainer: Any = SimpleNamespace(
        dataset_json=read_dataset_json(raw),
        preprocessed_dataset_folder_base=str(preprocessed),
        preprocessed_dataset_folder=str(preprocessed / "SAM3DPlans_3d_fullres"),
        folder_with_segs_from_previous_stage=None,
        configuration_manager=SimpleNamespace(next_stage_names=None),
        plans_manager=None,
        output_folder_base=str(model),
    )
    assert _Validation(trainer, load_model(model, [0], None, "cpu"), output, False).predict(names) == {}
    return folders, output.parent
