"""The probabilities of all classes or regions at every voxel of an image, in the files that nnU-Net's ensembles read.

Those of a large image are larger than memory. So logits come in parts and go into a file of the image's size, where
they become probabilities a few planes at a time.

Axes in names: K classes or regions, n voxels, Z Y X voxels.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from torch import Tensor

from sam3dnet.inference.companions import Slices
from sam3dnet.inference.on_disk import reserve
from sam3dnet.inference.windows import in_parts
from sam3dnet.preprocessing.world import WORLD

ENDINGS = (".npz", ".pkl")  # nnU-Net's: probabilities, and what its readers and its preprocessor say about the image
COPIES = 4  # of the planes that are made probabilities: logits, softmax, its parts, nnU-Net's decision

Floats = npt.NDArray[np.float32]


class ProbabilityVolume:
    """Takes the logits of an image in any order, and gives probabilities that say what its label map says.

    Args:
        folder: Holds them meanwhile; is removed by `close`.
        properties: What nnU-Net's preprocessor says about the case: shapes and the box of the crop.
        plans: nnU-Net's PlansManager.
        labels: nnU-Net's LabelManager.

    Raises:
        OSError: If the disk has no room.
    """

    def __init__(self, folder: tempfile.TemporaryDirectory, properties: Mapping[str, Any], plans: Any, labels: Any):
        self._folder, self._properties, self._plans, self._labels = folder, properties, plans, labels
        shape = (labels.num_segmentation_heads, *image_shape(properties, plans))
        try:
            file = Path(folder.name) / "logits"
            reserve(file, 4 * int(np.prod(shape)), "probabilities")
            self._values_KZYX: Floats = np.memmap(file, np.float32, "r+", shape=shape)
        except BaseException:
            folder.cleanup()
            raise
        self._cropped_Kzyx = cropped(self._values_KZYX, properties, plans)

    def put(self, channels: int | slice, box: Slices, logits: Tensor) -> None:
        """Take the logits of a channel, or of all, in a box of the image that the plan transposed and cropped."""
        self._cropped_Kzyx[(channels, *box)] = logits.float().cpu().numpy()

    def write(self, stem: Path, labels_ZYX: np.ndarray, before_ZYX: np.ndarray | None = None) -> None:
        """Write both files, of which nnU-Net's decision is a label map.

        Where logits say otherwise than this label map (a clicked voxel, a tie, an object that was taken out), the
        probability of what it says is swapped with the highest one; of regions p becomes 1 - p.

        Args:
            stem: The files, without their endings.
            labels_ZYX: The label map on the image's grid.
            before_ZYX: Before post-processing, which does not matter here.

        Raises:
            OSError: If writing fails.
        """
        for planes in in_parts(self._values_KZYX.shape[1], COPIES * self._values_KZYX[:, 0].size):
            values_KZYX = self._probabilities_of(planes)
            agree(values_KZYX, labels_ZYX[planes], self._labels)
            self._values_KZYX[:, planes] = values_KZYX
        npz, pkl = _files(stem)
        np.savez_compressed(npz, probabilities=self._values_KZYX)
        save_pickle({key: value for key, value in self._properties.items() if key != WORLD}, str(pkl))  # of nnU-Net

    def _probabilities_of(self, planes: slice) -> Floats:
        """Apply nnU-Net's softmax or sigmoid; what the crop left out is background for sure."""
        values_KZYX: Floats = self._labels.apply_inference_nonlin(np.array(self._values_KZYX[:, planes])).numpy()
        outside_ZYX = np.ones(values_KZYX.shape[1:], bool)
        crop = _crop(self._properties)
        z, y, x = (crop[axis] for axis in self._plans.transpose_backward)
        outside_ZYX[max(0, z.start - planes.start) : max(0, z.stop - planes.start), y, x] = False
        values_KZYX[:, outside_ZYX] = 0
        if not self._labels.has_regions:
            values_KZYX[0, outside_ZYX] = 1
        return values_KZYX

    def close(self) -> None:
        """Give the room back."""
        del self._values_KZYX, self._cropped_Kzyx  # Windows removes no file that is mapped
        self._folder.cleanup()


def image_shape(properties: Mapping[str, Any], plans: Any) -> tuple[int, int, int]:
    """Give the voxels (Z, Y, X) of an image as its reader gave it, from what nnU-Net's preprocessor says about it."""
    transposed = properties["shape_before_cropping"]
    depth, height, width = (int(transposed[axis]) for axis in plans.transpose_backward)
    return depth, height, width


def cropped(values_KZYX: np.ndarray, properties: Mapping[str, Any], plans: Any) -> np.ndarray:
    """View an array on the image's grid along the plan's axes, (K, z, y, x), where the preprocessor cropped it to."""
    in_plan = values_KZYX.transpose(0, *(1 + axis for axis in plans.transpose_forward))
    return in_plan[(slice(None), *_crop(properties))]


def _crop(properties: Mapping[str, Any]) -> list[slice]:
    return [slice(int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"]]


def agree(probabilities_KZYX: Floats, labels_ZYX: np.ndarray, labels: Any) -> None:
    """Change probabilities, in place and where need be, so that nnU-Net decides on these labels.

    Args:
        probabilities_KZYX: Of classes, or of regions.
        labels_ZYX: Labels.
        labels: nnU-Net's LabelManager.
    """
    decided_ZYX = labels.convert_probabilities_to_segmentation(probabilities_KZYX)
    wrong_ZYX = decided_ZYX != labels_ZYX
    if wrong_ZYX.any():
        values_Kn, wanted_n = probabilities_KZYX[:, wrong_ZYX], labels_ZYX[wrong_ZYX].astype(np.int64)
        if labels.has_regions:
            _turn_regions(values_Kn, wanted_n, [int(label) for label in labels.regions_class_order])
        else:
            _swap_with_highest(values_Kn, wanted_n)
        probabilities_KZYX[:, wrong_ZYX] = values_Kn


def _swap_with_highest(values_Kn: Floats, wanted_n: npt.NDArray[np.int64]) -> None:
    voxels = np.arange(len(wanted_n))
    highest_n, first_n = values_Kn.max(0), values_Kn.argmax(0)
    values_Kn[first_n, voxels] = values_Kn[wanted_n, voxels]
    values_Kn[wanted_n, voxels] = np.nextafter(highest_n, np.float32(2))  # of equal ones the first would be taken


def _turn_regions(values_Kn: Floats, wanted_n: npt.NDArray[np.int64], drawn: Sequence[int]) -> None:
    """Turn on the region that is drawn with the label, and off those that would cover it."""
    above = np.nextafter(np.float32(0.5), np.float32(1))
    for label in np.unique(wanted_n):
        number = max((n for n, one in enumerate(drawn) if one == label), default=-1)
        of_label_Kn = values_Kn[:, wanted_n == label]
        covering = of_label_Kn[number + 1 :]
        covering[...] = np.where(covering > 0.5, 1 - covering, covering)
        if number >= 0:
            of_label_Kn[number] = np.maximum(np.maximum(of_label_Kn[number], 1 - of_label_Kn[number]), above)
        values_Kn[:, wanted_n == label] = of_label_Kn


def remove_probabilities(stem: Path) -> None:
    """Remove the probabilities of a label map that is no longer, or no longer the same; see `are_whole`."""
    npz, pkl = _files(stem)
    if npz.exists():  # else the other is not of these
        pkl.unlink(missing_ok=True)
        npz.unlink()


def are_whole(stem: Path, shape: Sequence[int], channels: int) -> bool:
    """Tell whether the probabilities of a case are there, whole and of this size.

    Args:
        stem: Their files, without the endings.
        shape: Of the image, axes in any order.
        channels: Classes or regions of the model.
    """
    npz, pkl = _files(stem)
    found = shape_of(npz)
    return found is not None and pkl.is_file() and found[0] == channels and sorted(found[1:]) == sorted(shape)


def _files(stem: Path) -> tuple[Path, Path]:
    npz, pkl = (stem.with_name(f"{stem.name}{ending}") for ending in ENDINGS)
    return npz, pkl


def shape_of(npz: Path) -> tuple[int, ...] | None:
    """Read the shape of probabilities, (K, Z, Y, X); None where the file is missing or not whole."""
    if not npz.is_file():
        return None
    try:
        with npz.open("rb") as file, np.load(file) as content, content.zip.open("probabilities.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, _ = np.lib.format.read_array_header_1_0(member)
    except Exception:  # a damaged archive raises whatever its bytes stand for
        return None
    return tuple(shape)
