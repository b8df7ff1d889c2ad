"""Readers that reorient make one of files that are stored along other axes; so do checks, scores and masks."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from commands import evaluate_folder, predict_folder
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from readers import (
    LESION,
    ORGAN,
    SHAPE_IJK,
    ZOOMS_IJK,
    Kind,
    cases_of,
    make_dataset,
    make_fold,
    make_model,
    read,
    write,
)
from tiny_models import LABELS

from sam3dnet.preprocessing.along_world import grid_along_world, voxels_along_world
from sam3dnet.preprocessing.reading import DatasetReader
from sam3dnet.preprocessing.verify import verify_dataset

KINDS = [
    Kind("SimpleITKIOWithReorient", ".nii.gz", "flipped and oblique"),
    Kind("NibabelIOWithReorient", ".nii", "flipped and oblique"),
    Kind("SimpleITKIOWithReorient", ".mha", "sagittal and oblique"),
]
OTHER = "ASL"  # of no header: letters of the directions in which the axes of the file run


def store_otherwise(file: Path, codes: str = OTHER) -> None:
    """Store a file along other axes; each voxel keeps its place."""
    if ".nii" in file.name:
        image = nibabel.load(file, mmap=False)
        change = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
        turned = image.as_reoriented(change)
        nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine).to_filename(file)
    else:
        image = sitk.ReadImage(str(file))
        sitk.WriteImage(sitk.DICOMOrient(image, codes), str(file))


@pytest.fixture(params=KINDS, ids=str)
def kind(request: Any) -> Kind:
    return request.param


@pytest.fixture
def dataset(kind: Kind, tmp_path: Path) -> Path:
    """A dataset of which one image is stored otherwise, and of another case only the label."""
    folder = make_dataset(kind, tmp_path / "Dataset912_Otherwise")
    store_otherwise(folder / "imagesTr" / f"a_0000{kind.ending}")
    store_otherwise(folder / "labelsTr" / f"a{kind.ending}")
    store_otherwise(folder / "labelsTr" / f"b{kind.ending}")
    return folder


def test_such_a_dataset_is_sound(dataset: Path, kind: Kind) -> None:
    assert verify_dataset(dataset, 0, progress=False) == []


def test_another_reader_takes_it_for_what_it_is(dataset: Path, kind: Kind) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    plain = kind.reader.removesuffix("WithReorient")
    (dataset / "dataset.json").write_text(json.dumps(content | {"overwrite_image_reader_writer": plain}))
    found = {(problem.case, problem.check) for problem in verify_dataset(dataset, 0, progress=False)}
    assert ("dataset", "mixed orientations") in found
    assert ("b", "direction mismatch") in found


def test_grids_and_voxels_are_those_of_nnunet(dataset: Path, kind: Kind) -> None:
    cases, reader = cases_of(dataset)
    for case in cases:
        image_CZYX, properties = reader.read_images(case.images)
        grid, _ = reader.read_grid(case.name, case.images[0])
        voxels, _ = reader.read_voxels(case.name, case.images[0])
        assert grid is not None and voxels is not None
        assert grid.shape == image_CZYX.shape[1:] == voxels.shape
        np.testing.assert_allclose(grid.spacing_mm, properties["spacing"], rtol=1e-6)
        np.testing.assert_array_equal(voxels, image_CZYX[0])


def test_scores_compare_the_same_voxels(dataset: Path, kind: Kind, tmp_path: Path) -> None:
    """The predictions are stored as the images were once, the truth of a and b otherwise."""
    predictions = tmp_path / "predictions"
    truth = read(dataset / "labelsTr" / f"c{kind.ending}")
    for axis, name in enumerate("abc"):
        write(kind, predictions / f"{name}{kind.ending}", np.roll(truth, 1, axis))
    options = {"dataset_json": dataset / "dataset.json", "num_processes": 0}
    result = evaluate_folder(predictions, dataset / "labelsTr", **options)
    assert not result.failed
    for axis, name in enumerate("abc"):
        for label, where in (("organ", ORGAN), ("lesion", LESION)):
            score = result.cases[name].scores[label]
            assert score.hd95_mm == pytest.approx(ZOOMS_IJK[axis], rel=1e-5)
            assert score.dice == pytest.approx(1 - 1 / (where[axis].stop - where[axis].start))


def along_world(file: Path) -> Any:
    """Read an array along the axes of the world, without our code."""
    if ".nii" in file.name:
        return np.asarray(nibabel.as_closest_canonical(nibabel.load(file)).dataobj)
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS")).T


def test_what_validation_writes_lies_on_the_truth(dataset: Path, kind: Kind, tmp_path: Path) -> None:
    """The label map of b is stored along other axes than its image."""
    _, fold = make_fold(kind, dataset, tmp_path)
    for name in "abc":
        file = fold / "validation" / f"{name}{kind.ending}"
        truth = along_world(dataset / "labelsTr" / file.name) == LABELS["lesion"]
        found = along_world(file) == LABELS["lesion"]
        assert found.shape == truth.shape
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8


def test_a_mask_lies_on_the_first_channel(kind: Kind, tmp_path: Path) -> None:
    """nnU-Net's reader keeps the orientation of the last channel beside the place of the first."""
    folder = make_dataset(kind, tmp_path / "Dataset912_Otherwise")
    model = make_model(kind, tmp_path, num_channels=2)
    images = folder / "imagesTs"
    for name in "de":
        second = images / f"{name}_0001{kind.ending}"
        write(kind, second, read(images / f"{name}_0000{kind.ending}"))
        store_otherwise(second)
    report = predict_folder(images, tmp_path / "out", model, device="cpu")
    assert not report.failed
    found = read(tmp_path / "out" / f"d{kind.ending}") == LABELS["lesion"]
    expected = np.zeros(SHAPE_IJK, bool)
    expected[LESION] = True
    assert found.shape == SHAPE_IJK
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.8


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "ASL"])
def test_a_grid_turned_names_the_place_of_each_voxel(tmp_path: Path, codes: str) -> None:
    kind = Kind("SimpleITKIO", ".mha", "flipped and oblique")
    file = tmp_path / "a.mha"
    array_ijk = np.arange(np.prod(SHAPE_IJK)).reshape(SHAPE_IJK).astype(np.int16)
    write(kind, file, array_ijk)
    store_otherwise(file, codes)
    grid, _ = DatasetReader("SimpleITKIO").read_grid("a", file)
    voxels, _ = DatasetReader("SimpleITKIO").read_voxels("a", file)
    assert grid is not None and voxels is not None
    turned, turned_voxels = grid_along_world(grid), voxels_along_world(voxels, grid)
    expected = sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS")
    np.testing.assert_array_equal(turned_voxels, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(turned.origin_mm, expected.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(turned.direction, expected.GetDirection(), atol=1e-9)
    np.testing.assert_allclose(turned.spacing_mm, expected.GetSpacing()[::-1], rtol=1e-12)
    assert turned.shape == expected.GetSize()[::-1]
