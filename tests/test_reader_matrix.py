"""Every command takes voxels, places and millimetres from a dataset's reader: reader x format x header."""

import json
import os
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from commands import evaluate_folder, predict_folder, write_report
from fake_prompts import write_prompts
from readers import (
    HEADERS,
    LESION,
    LPS,
    ORGAN,
    SHAPE_IJK,
    ZOOMS_IJK,
    Kind,
    cases_of,
    kinds,
    make_dataset,
    make_fold,
    make_model,
    read,
    write,
    write_sidecar,
)

from sam3dnet.evaluation import report
from sam3dnet.evaluation.sam_points import write_point_predictions
from sam3dnet.planning.fingerprint import files_record, measure_case
from sam3dnet.preprocessing.cases import foreground_classes, read_dataset_json
from sam3dnet.preprocessing.pipeline import RECORDS_FOLDER, Recipe, preprocess_case
from sam3dnet.preprocessing.verify import verify_dataset

TOLERANCE_MM = 1.0
CHANGED_IJK = (0.8, 1.1, 2.6)

every_kind = pytest.mark.parametrize("kind", kinds(), ids=str)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make the dataset of a kind once; no test changes it."""
    return cache(lambda kind: make_dataset(kind, tmp_path_factory.mktemp("raw") / "Dataset911_Matrix"))


def centre(mask_ijk: Any) -> Any:
    return np.argwhere(mask_ijk).mean(0)


@every_kind
def test_a_sound_dataset_is_sound(datasets: Any, kind: Kind) -> None:
    problems = verify_dataset(datasets(kind), 0, progress=False)
    assert {problem.check for problem in problems} == ({"two places"} if kind.says_two_places else set())


@every_kind
def test_the_fingerprint_has_shapes_and_millimetres_of_the_array(datasets: Any, kind: Kind) -> None:
    folder = datasets(kind)
    cases, reader = cases_of(folder)
    assert reader.name == kind.reader
    measures = measure_case(cases[0], reader, foreground_classes(read_dataset_json(folder)), 100)
    np.testing.assert_allclose(measures["spacing"], kind.of_array(ZOOMS_IJK), rtol=1e-6)
    assert measures["shape"] == kind.of_array(SHAPE_IJK)
    extent = [part.stop - part.start for part in LESION]
    lesion = measures["objects"]["lesion"]
    assert lesion["voxels"] == np.prod(extent)
    np.testing.assert_allclose(lesion["volume_mm3"], np.prod(extent) * np.prod(ZOOMS_IJK), rtol=1e-5)
    np.testing.assert_allclose(lesion["largest_extent_mm"], kind.of_array(np.multiply(extent, ZOOMS_IJK)), rtol=1e-5)


def recipe_of(kind: Kind, folder: Path, output: Path) -> Recipe:
    plans = json.loads((make_model(kind, output / "model") / "plans.json").read_text())
    for name in (RECORDS_FOLDER, ".partial"):
        (output / name).mkdir(parents=True)
    return Recipe(plans, "3d_fullres", read_dataset_json(folder), "settings", output)


@every_kind
def test_preprocessed_voxels_land_where_they_should(datasets: Any, kind: Kind, tmp_path: Path) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = datasets(kind)
    recipe = recipe_of(kind, folder, tmp_path)
    assert preprocess_case(recipe, cases_of(folder)[0][0])
    image, labels, _, _ = nnUNetDatasetBlosc2(str(tmp_path), ["a"]).load_case("a")
    image, labels = np.asarray(image[0]), np.asarray(labels[0])
    forward = recipe.plans["transpose_forward"]
    spacing = np.array(recipe.plans["configurations"]["3d_fullres"]["spacing"])
    voxels = np.array(kind.of_array(ZOOMS_IJK))[forward] / spacing  # preprocessed voxels in one of the file
    expected_shape = np.round(np.array(kind.of_array(SHAPE_IJK))[forward] * voxels)
    np.testing.assert_array_equal(labels.shape, expected_shape)
    for where, value in ((ORGAN, 1), (LESION, 2)):
        at_ijk = [(part.start + part.stop - 1) / 2 for part in where]
        at = (kind.array_voxel(at_ijk)[forward] + 0.5) * voxels - 0.5
        np.testing.assert_allclose(centre(labels == value), at, atol=0.6)
        bright = image > 1 if value == 2 else image < -1
        np.testing.assert_allclose(centre(bright), at, atol=0.6)


def assert_same_place(kind: Kind, image: Path, mask: Path) -> None:
    if kind.ending == ".tif":
        assert json.loads((mask.parent / f"{mask.stem}.json").read_text()) == {"spacing": list(ZOOMS_IJK[::-1])}
        return
    one, other = (sitk.ReadImage(str(file)) for file in (image, mask))
    for where in ((0, 0, 0), (3, 7, 2)):
        expected = one.TransformIndexToPhysicalPoint(where)
        np.testing.assert_allclose(other.TransformIndexToPhysicalPoint(where), expected, rtol=0, atol=1e-12)
    if kind.is_nifti:
        np.testing.assert_array_equal(nibabel.load(image).affine, nibabel.load(mask).affine)


@every_kind
def test_a_mask_lies_on_its_object(datasets: Any, kind: Kind, tmp_path: Path) -> None:
    folder = datasets(kind)
    report = predict_folder(folder / "imagesTs", tmp_path / "out", make_model(kind, tmp_path), device="cpu")
    assert (report.written, report.failed) == (["d", "e"], {})
    mask = tmp_path / "out" / f"d{kind.ending}"
    found = read(mask) == 2
    expected = np.zeros(SHAPE_IJK, bool)
    expected[LESION] = True
    assert found.shape == SHAPE_IJK
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.8
    np.testing.assert_allclose(centre(found), centre(expected), atol=0.4)
    assert_same_place(kind, folder / "imagesTs" / f"d_0000{kind.ending}", mask)


@every_kind
def test_scores_are_in_the_millimetres_of_the_file(datasets: Any, kind: Kind, tmp_path: Path) -> None:
    """Each case is moved by a voxel along another axis of its file; the tolerance lies between their lengths."""
    truth = datasets(kind) / "labelsTr"
    for axis, name in enumerate("abc"):
        labels = read(truth / f"{name}{kind.ending}").reshape(SHAPE_IJK)
        write(kind, tmp_path / f"{name}{kind.ending}", np.roll(labels, 1, axis))
    dataset_json = datasets(kind) / "dataset.json"
    result = evaluate_folder(tmp_path, truth, dataset_json=dataset_json, tolerance=TOLERANCE_MM, num_processes=0)
    assert not result.failed
    for axis, (name, where) in product(range(3), (("organ", ORGAN), ("lesion", LESION))):
        score = result.cases["abc"[axis]].scores[name]
        extent = [part.stop - part.start for part in where]
        assert score.hd95_mm == pytest.approx(ZOOMS_IJK[axis], rel=1e-6)
        assert score.dice == pytest.approx(1 - 1 / extent[axis])
        assert (score.nsd == pytest.approx(1)) == (ZOOMS_IJK[axis] < TOLERANCE_MM)
        assert score.truth_ml == pytest.approx(np.prod(extent) * np.prod(ZOOMS_IJK) / 1000)


def said(kind: Kind, space: str, voxel_ijk: Any) -> list[float]:
    """Say where a voxel of the file lies, by a library that the space belongs to."""
    if space == "voxel" or kind.ending == ".tif":
        return [float(index) for index in voxel_ijk]
    seen = LPS @ HEADERS[kind.header][0] if space == "LPS" else HEADERS[kind.header][1 if kind.is_nifti else 0]
    return [float(mm) for mm in (seen @ (*voxel_ijk, 1))[:3]]


@every_kind
def test_clicks_and_boxes_obey_the_very_voxel(datasets: Any, kind: Kind, tmp_path: Path) -> None:
    folder, model = datasets(kind), make_model(kind, tmp_path)
    at = tuple((part.start + part.stop - 1) // 2 for part in ORGAN)
    low, high = (5, 1, 2), (6, 3, 4)
    found = {}
    for space in ("voxel", "LPS", "RAS"):
        corners = [said(kind, space, corner) for corner in product(*zip(low, high, strict=True))]
        box = {"min": np.min(corners, 0).tolist(), "max": np.max(corners, 0).tolist()}
        stated = {"d": {"points": [{"at": said(kind, space, at)}]}, "e": {"boxes": [box]}}
        prompts = write_prompts(tmp_path / "p.json", {name: {"lesion": one} for name, one in stated.items()}, space)
        output = tmp_path / space
        report = predict_folder(folder / "imagesTs", output, model, prompts=prompts, device="cpu")
        if kind.ending == ".tif" and space != "voxel":
            assert all("give voxel indices instead" in report.failed[name] for name in "de")
            continue
        assert not report.failed
        for what, name in (("click", "d"), ("box", "e")):
            found[what, space] = read(output / f"{name}{kind.ending}") == 2
    click, box = found["click", "voxel"], found["box", "voxel"]
    organ, boxed = np.zeros(SHAPE_IJK, bool), np.zeros(SHAPE_IJK, bool)
    organ[ORGAN] = organ[LESION] = boxed[LESION] = True
    boxed[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = True
    assert click[at] and np.mean(click[~organ]) < 0.05
    assert 2 * (box & boxed).sum() / (box.sum() + boxed.sum()) > 0.8
    for (what, _), mask in found.items():
        if what == "click" or kind.header == "as of DICOM":
            np.testing.assert_array_equal(mask, found[what, "voxel"])
        else:  # the box of an oblique image along the world's axes is larger
            assert mask[box].mean() > 0.9


def change_place(kind: Kind, file: Path) -> None:
    """Give an image another spacing along its third axis; the voxels and the size of the file stay."""
    if kind.ending == ".tif":
        write_sidecar(file, CHANGED_IJK)
    elif kind.is_nifti:
        image = nibabel.load(file)
        stretched = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        scale = np.diag([1, 1, CHANGED_IJK[2] / ZOOMS_IJK[2], 1])
        stretched.set_qform(image.get_qform() @ scale, 1)
        stretched.set_sform(image.get_sform() @ scale, 2)
        stretched.to_filename(file)
    else:
        image = sitk.ReadImage(str(file))
        image.SetSpacing(CHANGED_IJK)
        sitk.WriteImage(image, str(file))


every_reader = pytest.mark.parametrize(
    "kind", [*{(kind.reader, kind.ending): kind for kind in kinds()}.values()], ids=str
)


@every_reader
def test_what_was_made_of_another_place_is_stale(kind: Kind, tmp_path: Path) -> None:
    folder = make_dataset(kind, tmp_path / "Dataset911_Matrix")
    recipe = recipe_of(kind, folder, tmp_path / "preprocessed")
    (case, *_), reader = cases_of(folder)
    record = files_record(folder, [case], reader)
    model, output = make_model(kind, tmp_path), tmp_path / "out"
    assert preprocess_case(recipe, case) and not preprocess_case(recipe, case)
    assert predict_folder(folder / "imagesTr", output, model, device="cpu").written == ["a", "b", "c"]
    mask = output / f"a{kind.ending}"
    for file in folder.rglob("*"):
        os.utime(file, ns=(mask.stat().st_mtime_ns - 10**9,) * 2)
    assert predict_folder(folder / "imagesTr", output, model, device="cpu").skipped == ["a", "b", "c"]
    change_place(kind, case.images[0])
    assert files_record(folder, [case], reader) != record
    assert preprocess_case(recipe, case)
    again = predict_folder(folder / "imagesTr", output, model, device="cpu")
    assert (again.written, again.skipped) == (["a"], ["b", "c"])
    if kind.ending == ".tif":
        assert json.loads((output / "a.json").read_text()) == {"spacing": list(CHANGED_IJK[::-1])}
    else:
        assert reader.format.grid(mask, is_label=True).spacing_mm == pytest.approx(CHANGED_IJK[::-1])


def give_report_a_plan(model: Path) -> None:
    """Put a network into the plan of a model that is in no need of it any more."""
    plans = json.loads((model / "plans.json").read_text())
    arch_kwargs = {"strides": [[1, 1, 1], [1, 2, 2]], "token_stride": [1, 2, 2], "encoder": "tiny", "pretrained": False}
    architecture = {"network_class_name": "sam3dnet.network.sam3d.SAM3D", "arch_kwargs": arch_kwargs}
    plans["configurations"]["3d_fullres"] |= {
        "architecture": {**architecture, "_kw_requires_import": []},
        "median_image_size_in_voxels": [5, 12, 9],
    }
    plans["sam3d"] = {"version": 1, "decisions": []}
    (model / "plans.json").write_text(json.dumps(plans))


def objects_of(file: Path) -> list[tuple[str, float, list[int]]]:
    """Give class, certainty and place of the objects of a file of confidences."""
    classes = json.loads(file.read_text())["classes"]
    return [(name, one["certainty"], one["at"]) for name, found in classes.items() for one in found["objects"]]


@every_reader
def test_validation_is_prediction_and_the_report_shows_the_same_voxels(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raw = make_dataset(kind, tmp_path / "raw" / "Dataset911_Matrix")
    folders, fold = make_fold(kind, raw, tmp_path)
    predict_folder(raw / "imagesTr", tmp_path / "out", fold.parent, device="cpu", confidence=True)
    for file in (fold / "validation").iterdir():
        if file.name.endswith("_confidence.json"):
            assert objects_of(file) == objects_of(tmp_path / "out" / file.name) != []
        else:
            assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    truth = folders.preprocessed / raw.name / "gt_segmentations"
    assert (truth / "a.json").is_file() == (kind.ending == ".tif")
    assert len(list((fold / "validation").iterdir())) == (9 if kind.ending == ".tif" else 6)
    give_report_a_plan(fold.parent)
    shown = []
    monkeypatch.setattr(report, "three_planes", lambda *drawn: shown.append(drawn) or b"")
    html = write_report(folders, dataset=911, num_processes=0).read_text()
    assert "Without result" not in html
    for image, truth, prediction, spacing_mm in shown[3:]:  # of the lesion, that of the organ comes before
        assert image[truth].min() > 14 > image[~truth].max()
        assert 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()) > 0.8
        lengths = np.ptp(np.argwhere(truth), axis=0) + 1
        expected = [(part.stop - part.start) * mm for part, mm in zip(LESION, ZOOMS_IJK, strict=True)]
        assert sorted(lengths * spacing_mm) == pytest.approx(sorted(expected))
    assert len(shown) == 6
    assert "another label map" not in caplog.text  # the report found each object where the file has it


class Everywhere:
    """Stands for SAM: whatever is clicked, the mask is the whole slice."""

    def set_image(self, image_YX3: Any) -> None:
        self.shape = image_YX3.shape[:2]

    def predict(self, *_: Any, **__: Any) -> Any:
        return np.ones((1, *self.shape), bool), None, None


@every_reader
def test_sam_with_points_marks_the_slices_of_the_array(datasets: Any, kind: Kind, tmp_path: Path) -> None:
    folder = datasets(kind)
    cases, reader = cases_of(folder)
    files = {"a": (list(cases[0].images), cases[0].label)}
    options = {"reader": reader, "file_ending": kind.ending}
    (written,) = write_point_predictions(files, tmp_path, {"lesion": (2,)}, Everywhere(), **options)
    found, expected = read(written), np.zeros(SHAPE_IJK, bool)
    slices = int(np.flatnonzero(kind.orientation[:, 0] == 2)[0])  # the axis of the file that the array has first
    expected[tuple(LESION[slices] if axis == slices else slice(None) for axis in range(3))] = True
    np.testing.assert_array_equal(found == 2, expected)
    assert_same_place(kind, cases[0].images[0], written)


def test_the_matrix_is_what_the_libraries_see(datasets: Any) -> None:
    """The headers mean to each library what the tests above take them for."""
    for kind in kinds():
        file = datasets(kind) / "imagesTr" / f"a_0000{kind.ending}"
        voxel = (3.0, 7.0, 2.0)
        if kind.ending == ".tif":
            assert tifffile.imread(file).shape == SHAPE_IJK[::-1]
            continue
        by_itk = sitk.ReadImage(str(file)).TransformContinuousIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(by_itk, (LPS @ HEADERS[kind.header][0] @ (*voxel, 1))[:3], atol=1e-3)
        if kind.is_nifti:
            np.testing.assert_allclose(nibabel.load(file).affine, HEADERS[kind.header][1], atol=1e-4)
