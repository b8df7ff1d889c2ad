"""A dataset of made-up shapes, to learn from before there is any label: which object is meant, a click must tell.

    python benchmarks/made_up_shapes.py FOLDER/Dataset960_MadeUpShapes --cases 400 --channel MRI
    sam3d_plan_and_preprocess -d 960
    sam3d_train 960 all --minutes 60
    python benchmarks/learning_curves.py ... --methods sam3d sam3d-from --from MODEL_FOLDER

Nothing is taken from an image. Tissues are where one of several smooth random fields is the largest, as in SynthMorph
(Hoffmann et al. 2022); blobs and bent tubes lie among them. As in SynthSeg (Billot et al. 2023) each of them gets a
brightness of its own by chance, then come blur, shading and noise. One connected piece of a tissue, a blob or a tube is
the object, chosen by chance, so that no brightness and no shape tells which it is.

A training that starts --from such a model takes over what is called the same in both sets. No real set has a channel or
class of the names that there are by default, so the weights that read the image and those of the class start anew: give
with --channel the name of the real set's channel (one called CT is normalised as such), and with --object that of its
class.
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from sam3dnet.preprocessing.folders import write_json

SHAPE = (56, 56, 56)
SIZES = (150, 25_000)  # voxels of an object
NO_CLASSES = ("background", "ignore")
Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def smooth(rng: np.random.Generator, sigma: float) -> Field:
    """Make smooth random values of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), sigma)
    return (field - field.mean()) / field.std()


def blob(rng: np.random.Generator) -> Mask:
    """Make an ellipsoid, turned and dented by chance."""
    centre = rng.uniform(0.15, 0.85, 3) * SHAPE
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    radii = rng.uniform(3, 14) * rng.uniform(0.5, 1.0, 3)
    offsets = np.indices(SHAPE, np.float32) - centre[:, None, None, None]
    distance = np.sqrt((np.tensordot(turned / radii[:, None], offsets, 1) ** 2).sum(0))
    return distance < 1 + rng.uniform(0, 0.3) * smooth(rng, rng.uniform(3, 8))


def tube(rng: np.random.Generator) -> Mask:
    """Make a bent tube of even thickness."""
    at, direction = rng.uniform(0.2, 0.8, 3) * SHAPE, rng.normal(size=3)
    line = np.ones(SHAPE, bool)
    for _ in range(int(rng.integers(20, 70))):
        direction = direction / np.linalg.norm(direction) + 0.25 * rng.normal(size=3)
        at = at + direction / np.linalg.norm(direction)
        line[tuple(np.clip(np.round(at).astype(int), 0, np.subtract(SHAPE, 1)))] = False
    return ndimage.distance_transform_edt(line) < rng.uniform(1.5, 4.5)


def make_case(rng: np.random.Generator) -> tuple[Field, npt.NDArray[np.uint8]]:
    """Make an image and the object in it, both (Z, Y, X)."""
    sigma = rng.uniform(4, 12)
    regions = np.argmax([smooth(rng, sigma) for _ in range(rng.integers(3, 8))], axis=0)
    for make in rng.choice([blob, blob, tube], size=rng.integers(2, 7)):
        regions[make(rng)] = regions.max() + 1
    objects: list[Mask] = []
    for region in np.unique(regions):
        pieces = ndimage.label(regions == region)[0]
        sizes = np.bincount(pieces.ravel())
        objects += [pieces == n for n in range(1, len(sizes)) if SIZES[0] <= sizes[n] <= SIZES[1]]
    if not objects:
        return make_case(rng)
    labels = objects[rng.integers(len(objects))].astype(np.uint8)

    values = rng.uniform(0, 1, regions.max() + 1).astype(np.float32)
    grain = rng.uniform(0, 0.08, regions.max() + 1).astype(np.float32)
    image = values[regions] + grain[regions] * smooth(rng, rng.uniform(0.4, 1.5))
    image = ndimage.gaussian_filter(image, rng.uniform(0.2, 1.2, 3))
    image = image * (1 + rng.uniform(0, 0.25) * smooth(rng, 15)) + rng.uniform(0.01, 0.08) * smooth(rng, 0.3)
    return image, labels


def write_case(folder: Path, seed: int, number: int) -> None:
    """Write an image and its label map."""
    image, labels = make_case(np.random.default_rng((seed, number)))
    for array, file in ((image, f"imagesTr/shapes_{number:04}_0000"), (labels, f"labelsTr/shapes_{number:04}")):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{file}.nii.gz"), useCompression=True)


def description(channel: str, object_name: str, cases: int) -> dict[str, Any]:
    """Give the content of dataset.json."""
    return {
        "channel_names": {"0": channel},
        "labels": {"background": 0, object_name: 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that is not there yet, DatasetXXX_Name")
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channel", default="made up", help="what the channel is called (default %(default)s)")
    parser.add_argument("--object", default="object", help="what the class is called (default %(default)s)")
    found = parser.parse_args(arguments)
    if found.object in NO_CLASSES:
        parser.error(f"--object {found.object}: nnU-Net means something else by it; name a class")
    return found


def main() -> None:
    """Write the dataset."""
    a = parse()
    for name in ("imagesTr", "labelsTr"):
        (a.folder / name).mkdir(parents=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(write_case, a.folder, a.seed), range(a.cases)))
    write_json(a.folder / "dataset.json", description(a.channel, a.object, a.cases))


if __name__ == "__main__":
    main()
