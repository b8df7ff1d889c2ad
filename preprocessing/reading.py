"""How the files of a dataset are read, and where their voxels lie; whatever reads an image or a label map asks here.

nnU-Net has several readers, which differ in what they open, in where they say that voxels lie, and in the order in
which they give the axes. Which of them reads a dataset follows from the ending of its files, from the first of them,
and from dataset.json; what lies in a header, and where, is asked of the library that this reader uses.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.preprocessing.along_world import grid_along_world, voxels_along_world
from sam3dnet.preprocessing.cases import TrainingCase
from sam3dnet.preprocessing.checks_description import NON_FINITE, accepted_checks
from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.file_formats import (
    Array,
    FileFormat,
    ItkFormat,
    NibabelFormat,
    TiffFormat,
    UnfitError,
)
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.problems import Problem, error
from sam3dnet.preprocessing.world import World, is_nifti, world_of

PLANAR_READER = "NaturalImage2DIO"
MOST_TRIED = 5  # damaged images, in a row, after which a sound one is no longer looked for
READER_KEY = "overwrite_image_reader_writer"  # of dataset.json
_ENDINGS = ".nii.gz, .nii, .nrrd, .mha or, a stack of pages, .tif"
_FORMATS: dict[str, FileFormat] = {
    "SimpleITKIO": ItkFormat(),
    "SimpleITKIOWithReorient": ItkFormat(),
    "NibabelIO": NibabelFormat(),
    "NibabelIOWithReorient": NibabelFormat(),
    "Tiff3DIO": TiffFormat(),
}


@dataclass(frozen=True)
class DatasetReader:
    """Reads the files of one dataset; takes the place of nnU-Net's reader wherever nnU-Net's functions want one.

    Attributes:
        name: Of the class of nnU-Net that reads the dataset.
        zeroes_non_finite: Whether NaN and infinite voxels of images are read as 0, which ITK makes of those in NIfTI
            files: in datasets that accept them.
    """

    name: str
    zeroes_non_finite: bool = False

    @cached_property
    def nnunet(self) -> Any:
        """nnU-Net's reader and writer."""
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        try:
            return recursive_find_reader_writer_by_name(self.name)()
        except RuntimeError as problem:
            raise PlanError(f"nnU-Net has no reader {self.name!r}; correct dataset.json, and plan again") from problem

    @property
    def reorients(self) -> bool:
        """Whether the arrays run along the world's axes, (z, y, x) of RAS, however the files are stored."""
        return self.name.endswith("WithReorient")

    @property
    def format(self) -> FileFormat:
        """What opens the files themselves; a reader that is not known here is taken for one that uses ITK."""
        return _FORMATS.get(self.name, _FORMATS["SimpleITKIO"])

    def read_images(self, files: Sequence[str | Path]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Read the channels of an image, as nnU-Net's reader does.

        Returns:
            (C, Z, Y, X), and where it lies.
        """
        image_CZYX, properties = self._quietly(self.nnunet.read_images, [str(file) for file in files])
        if self.zeroes_non_finite:
            np.nan_to_num(image_CZYX, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        if len(files) > 1 and "original_orientation" in properties.get("sitk_stuff", {}):
            properties["sitk_stuff"]["original_orientation"] = orientation_by_itk(Path(files[0]))
        return image_CZYX, properties

    def read_seg(self, file: str | Path) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Read a label map, as nnU-Net's reader does.

        Returns:
            (1, Z, Y, X), and where it lies.
        """
        labels_1ZYX, properties = self._quietly(self.nnunet.read_seg, str(file))
        return labels_1ZYX, properties

    def read_grid(self, case: str, file: Path, is_label: bool = False) -> tuple[Grid | None, list[Problem]]:
        """Read where the voxels lie from a file's header; None and the reason where it is no volume.

        Axes are as the file stores them, or along the world's where the reader reorients.
        """
        if (what := not_a_file(file)) is not None:
            return None, [error(case, "unreadable file", f"{file}: is {what}; expected an image's file")]
        try:
            grid = self.format.grid(file, is_label)
        except UnfitError as problem:
            check, message = problem.args
            return None, [error(case, check, f"{file}: {message}")]
        except DatasetError as problem:
            return None, [error(case, "unreadable file", str(problem))]
        except Exception as problem:  # each library raises its own
            return None, [unreadable(case, file, problem)]
        if not all(math.isfinite(mm) and mm > 0 for mm in grid.spacing_mm):
            came = f"has spacing {grid.spacing_mm} mm (z, y, x)"
            message = f"{file}: {came}; expected numbers above 0; correct the header"
            return None, [error(case, "impossible spacing", message)]
        return grid_along_world(grid) if self.reorients else grid, []

    def read_voxels(self, case: str, file: Path) -> tuple[Array | None, list[Problem]]:
        """Read the voxels (Z, Y, X), type as stored, axes as of `read_grid`; None and the reason if it cannot."""
        try:
            return self.in_read_axes(self.format.voxels(file), file), []
        except Exception as problem:  # each library raises its own
            return None, [unreadable(case, file, problem)]

    def in_read_axes(self, stored_ZYX: Array, file: Path) -> Array:
        """Bring an array from the axes in which a file stores its voxels to those of `read_grid`."""
        return voxels_along_world(stored_ZYX, self.format.grid(file, is_label=False)) if self.reorients else stored_ZYX

    def world_of(self, file: Path) -> World | None:
        """Say where a file lies in the world; None of formats that do not say, such as TIFF."""
        return None if isinstance(self.format, TiffFormat) else world_of(file)

    def voxels_apart(self, file: Path) -> float:
        """Say how far apart the two places are that a file's header says, see `World`; 0 where it says one at most."""
        world = self.world_of(file)
        return 0.0 if world is None else world.voxels_apart(self.format.grid(file, is_label=False).shape[::-1])

    def files_of(self, files: Sequence[Path], label: Path | None = None) -> list[Path]:
        """List the files of a case with those that belong to them: whatever it must be made anew for."""
        found = [*files, *(companion for file in files for companion in self.format.companions(file, is_label=False))]
        if label is not None:
            found += [label, *self.format.companions(label, is_label=True)]
        return list(dict.fromkeys(found))

    @staticmethod
    def _quietly(read: Callable[[Any], Any], files: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's readers print what our checks say in a sentence
            return read(files)


def dataset_reader(dataset_json: Mapping[str, Any], example: Path | None) -> DatasetReader:
    """Find the reader that nnU-Net takes for a dataset.

    Args:
        dataset_json: Of the dataset.
        example: The first of its images; None if it has none.

    Raises:
        DatasetError: If nnU-Net has no reader for it, or has one for pictures of two dimensions alone.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    _require_known(dataset_json.get(READER_KEY, "None"))
    file = None if example is None else str(example)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = determine_reader_writer_from_dataset_json(dict(dataset_json), file, verbose=False)
    except RuntimeError as problem:
        what = f"files ending in {dataset_json.get('file_ending')}" if example is None else example
        raise DatasetError(f"{what}: nnU-Net has no reader that opens it; export it again, as {_ENDINGS}") from problem
    if found.__name__ == PLANAR_READER:
        raise DatasetError(
            f"{example}: is a picture in two dimensions; expected volumes; for pictures use stock nnU-Net (2d)"
        )
    return reader_named(found.__name__, dataset_json)


def _require_known(name: Any) -> None:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    if name == "None":
        return
    try:
        recursive_find_reader_writer_by_name(name)
    except (RuntimeError, TypeError) as problem:
        raise DatasetError(
            f'dataset.json: "{READER_KEY}" is {name!r}, which nnU-Net does not have; expected such as "SimpleITKIO" or '
            '"NibabelIO"; correct it, or leave it out'
        ) from problem


def reader_named(name: str, dataset_json: Mapping[str, Any]) -> DatasetReader:
    """Give the reader of a plan.

    Args:
        name: "image_reader_writer" of the plan.
        dataset_json: Of the dataset; what it accepts counts.
    """
    return DatasetReader(name, NON_FINITE in accepted_checks(dataset_json))


def reader_by_ending(dataset_json: Mapping[str, Any]) -> DatasetReader:
    """Give the reader that files of this ending have where they are sound."""
    ending = str(dataset_json.get("file_ending", "")).lower()
    names = {".nii": "NibabelIO", ".tif": "Tiff3DIO", ".tiff": "Tiff3DIO"}
    return reader_named(names.get(ending, "SimpleITKIO"), dataset_json)


def reader_of_cases(dataset_json: Mapping[str, Any], cases: Sequence[TrainingCase]) -> DatasetReader:
    """Find the reader of a dataset by its training cases; see `reader_of_images`."""
    return reader_of_images(dataset_json, (image for case in cases for image in case.images[:1]))


def reader_of_images(dataset_json: Mapping[str, Any], images: Iterable[Path]) -> DatasetReader:
    """Find the reader that nnU-Net takes for a dataset, by the first of its images that is not damaged.

    Args:
        dataset_json: Of the dataset.
        images: A file of each.

    Raises:
        DatasetError: As of `dataset_reader`; that of the first image, where the first few are all of no use.
    """
    problems: list[DatasetError] = []
    for image in images:
        if not_a_file(image) is not None:
            continue
        try:
            return dataset_reader(dataset_json, image)
        except DatasetError as problem:
            problems.append(problem)
        if len(problems) == MOST_TRIED:
            break
    if problems:
        raise problems[0]
    return dataset_reader(dataset_json, None)


def first_file(files: Iterable[Path]) -> Path | None:
    """Give the first that can be opened; a pipe would wait for ever."""
    return next((file for file in files if not_a_file(file) is None), None)


def unreadable(case: str, file: Path, problem: Exception) -> Problem:
    """Say in a sentence that a library cannot read a file, and what would help."""
    lines = [line for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    reason = lines[-1].removeprefix("sitk::ERROR: ").strip()
    message = f"{file}: cannot be read as an image ({reason}); export it again, or leave the case out"
    if is_nifti(file) and _nibabel_reads(file):
        message += f', or have nibabel read the dataset: "{READER_KEY}": "NibabelIO" in dataset.json'
    return error(case, "unreadable file", message)


def _nibabel_reads(file: Path) -> bool:
    try:
        return NibabelFormat().grid(file, is_label=False) is not None
    except Exception:  # it cannot, for whatever reason
        return False


def orientation_by_itk(file: Path) -> str:
    """Name the orientation in which a file is stored, as the reader that reorients with ITK does.

    Of several channels nnU-Net keeps that of the last one, beside the place of the first, whose header masks have.
    """
    import SimpleITK as sitk

    direction = ItkFormat().grid(file, is_label=False).direction
    return str(sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(direction))
