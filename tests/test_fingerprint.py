import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fingerprints import measure

from sam3dnet.errors import DatasetError
from sam3dnet.planning import fingerprint as module
from sam3dnet.planning.fingerprint import FINGERPRINT_FILE, load_or_make_fingerprint, summarise
from sam3dnet.planning.objects import LabelBoxes, measure_classes
from sam3dnet.preprocessing.cases import foreground_classes, list_training_cases
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.preprocessing.reading import DatasetReader

SPACING = (3.0, 0.7, 1.1)


@pytest.fixture
def folders(nnunet_root, tiny_dataset, tmp_path):
    """The tiny dataset, copied so that a test may spoil it; nothing preprocessed."""
    raw = tmp_path / "nnUNet_raw"
    shutil.copytree(nnunet_root / "nnUNet_raw" / tiny_dataset, raw / tiny_dataset)
    return Folders(raw=raw, preprocessed=tmp_path / "nnUNet_preprocessed", results=tmp_path / "nnUNet_results")


@pytest.fixture
def counted(monkeypatch):
    """Counts how often the cases are measured."""
    calls = []
    original = module.measure_cases

    def counting(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "measure_cases", counting)
    return calls


def make(tiny_dataset, folders, num_processes=1):
    return load_or_make_fingerprint(tiny_dataset, folders, num_processes, progress=False)


def test_nnunets_keys_are_nnunets_values(nnunet_root, tiny_dataset, folders):
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(tiny_dataset, 1)
    extractor.show_progress_bar = False
    extractor.num_foreground_voxels_for_intensitystats = module.FOREGROUND_SAMPLES
    stock = json.loads(json.dumps(extractor.run(overwrite_existing=True), default=float))
    # The file is shared by the session; leave none that other tests did not make.
    (nnunet_root / "nnUNet_preprocessed" / tiny_dataset / FINGERPRINT_FILE).unlink()
    ours = make(tiny_dataset, folders)
    assert len(extractor.dataset) == len(ours["spacings"])
    assert set(ours) == {*stock, "sam3d"}
    for key in ("spacings", "shapes_after_crop", "median_relative_size_after_cropping"):
        assert ours[key] == stock[key]
    for channel, values in stock["foreground_intensity_properties_per_channel"].items():
        assert ours["foreground_intensity_properties_per_channel"][channel] == pytest.approx(values, rel=1e-5)


def test_several_processes_give_the_same_fingerprint(tiny_dataset, folders):
    alone = make(tiny_dataset, folders)
    (folders.preprocessed / tiny_dataset / FINGERPRINT_FILE).unlink()
    assert make(tiny_dataset, folders, num_processes=2) == alone


def test_every_class_is_described_and_found_again_on_disk(tiny_dataset, folders):
    fingerprint = make(tiny_dataset, folders)
    labels = json.loads((folders.raw / tiny_dataset / "dataset.json").read_text())["labels"]
    classes = fingerprint["sam3d"]["classes"]
    assert set(classes) == set(labels) - {"background"}
    for name, measures in classes.items():
        assert measures["label_values"] == [labels[name]]
        assert len(measures["cases"]) == len(measures["volume_mm3"]) == len(measures["largest_extent_mm"]) > 0
        assert np.all(np.asarray(measures["largest_extent_voxels"]) >= 1)
        assert measures["inside"]["0"]["percentile_05_0"] <= measures["inside"]["0"]["percentile_95_0"]
    stored = json.loads((folders.preprocessed / tiny_dataset / FINGERPRINT_FILE).read_text())
    assert stored == fingerprint


def test_quantiles_of_the_foreground_agree_with_its_percentiles(tiny_dataset, folders):
    fingerprint = make(tiny_dataset, folders)
    quantiles = fingerprint["sam3d"]["foreground_quantiles"]["0"]
    properties = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    assert quantiles == sorted(quantiles)
    assert quantiles[100] == pytest.approx(properties["median"], rel=0.02, abs=2.0)


def test_a_current_fingerprint_is_read_and_a_stale_one_made_anew(tiny_dataset, folders, counted):
    first = make(tiny_dataset, folders)
    assert make(tiny_dataset, folders) == first
    assert len(counted) == 1
    label = next((folders.raw / tiny_dataset / "labelsTr").iterdir())
    os.utime(label, ns=(1, 1))
    assert make(tiny_dataset, folders)["spacings"] == first["spacings"]
    assert len(counted) == 2
    description = folders.raw / tiny_dataset / "dataset.json"
    description.write_text(description.read_text() + "\n")
    make(tiny_dataset, folders)
    assert len(counted) == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"spacings": []}', "\x00"])
def test_a_damaged_or_foreign_fingerprint_is_made_anew(tiny_dataset, folders, counted, content):
    path = folders.preprocessed / tiny_dataset / FINGERPRINT_FILE
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert "sam3d" in make(tiny_dataset, folders)
    assert len(counted) == 1


def test_a_dataset_without_cases_is_an_error(tiny_dataset, folders):
    shutil.rmtree(folders.raw / tiny_dataset / "imagesTr")
    with pytest.raises(DatasetError, match=r"imagesTr: holds no training case; .* CASE_0000\.nii\.gz"):
        make(tiny_dataset, folders)


def test_a_case_without_label_is_an_error(tiny_dataset, folders):
    (folders.raw / tiny_dataset / "labelsTr" / "case_3.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r'case "case_3": .*labelsTr.case_3\.nii\.gz cannot be read'):
        make(tiny_dataset, folders)


def test_all_cases_that_cannot_be_read_are_named(tiny_dataset, folders):
    for name in ("case_1", "case_4"):
        (folders.raw / tiny_dataset / "labelsTr" / f"{name}.nii.gz").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r'(?s)2 of 6 cases could not be measured.*"case_1".*"case_4"'):
        make(tiny_dataset, folders)
    assert not (folders.preprocessed / tiny_dataset / FINGERPRINT_FILE).exists()


def test_a_dataset_without_description_is_an_error(tiny_dataset, folders):
    (folders.raw / tiny_dataset / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"dataset\.json: not found"):
        make(tiny_dataset, folders)


def test_a_dataset_without_foreground_is_an_error():
    case = {"intensities": [[]], "spacing": SPACING, "shape": (5, 6, 7), "relative_size": 1.0}
    with pytest.raises(DatasetError, match="no case has a labelled voxel"):
        summarise([case], 1, "Dataset901_Tiny")


def test_objects_are_measured_in_voxels_and_mm():
    mask = np.zeros((5, 16, 17), dtype=bool)
    mask[1:3, 2:8, 4:7] = True
    mask[3, 8, 7] = True  # touches the first at a corner: the same object
    mask[4, 14, 15] = True
    measures = measure(np.zeros((1, *mask.shape), dtype=np.float32), mask, SPACING)
    assert measures.largest_extent_voxels == [3, 7, 4]
    assert measures.largest_extent_mm == pytest.approx([9.0, 4.9, 4.4])
    assert measures.object_count == 2
    assert (measures.largest_voxels, measures.voxels) == (37, 38)
    assert measures.volume_mm3 == pytest.approx((2 * 6 * 3 + 2) * 3.0 * 0.7 * 1.1)


def test_the_shell_lies_around_the_object_and_no_further_than_3_mm():
    mask = np.zeros((7, 20, 19), dtype=bool)
    mask[3, 8:12, 9] = True
    image = np.full(mask.shape, 1000.0, dtype=np.float32)
    image[2:5, 8 - 4 : 12 + 4, 9 - 3 : 10 + 3] = -50.0
    image[mask] = 70.0
    measures = measure(np.stack([image, -image]), mask, SPACING)
    assert measures.inside[0]["mean"] == 70.0
    assert measures.inside[1]["percentile_50_0"] == -70.0
    assert measures.around[0]["percentile_00_5"] == measures.around[0]["percentile_99_5"] == -50.0


def test_classes_are_looked_for_where_their_labels_lie():
    labels = np.zeros((6, 9, 12), dtype=np.int16)
    labels[1:3, 2:5, 3:6], labels[4, 7, 10], labels[0, 0, 0] = 2, 300, 5
    boxes = LabelBoxes(labels)
    assert boxes.of([2]) == (slice(1, 3), slice(2, 5), slice(3, 6))
    assert boxes.of((300, 2)) == (slice(1, 5), slice(2, 8), slice(3, 11))
    assert boxes.of([1]) is boxes.of([301]) is boxes.of([0]) is boxes.of([]) is None
    assert LabelBoxes(np.zeros((2, 2, 2), np.uint8)).of([1]) is None
    assert LabelBoxes(labels - 1).of([299]) == (slice(4, 5), slice(7, 8), slice(10, 11))
    classes = {"both": (2, 300), "far": (300,), "none": (7,)}
    image = np.random.default_rng(0).normal(size=(2, *labels.shape)).astype(np.float32)
    found = measure_classes(image, labels, classes, SPACING)
    assert found["none"] is None
    for name in ("both", "far"):
        assert found[name] == measure(image, np.isin(labels, classes[name]), SPACING)


def test_an_absent_class_has_no_measures_and_a_full_image_no_surroundings():
    image = np.ones((1, 3, 4, 5), dtype=np.float32)
    assert measure(image, np.zeros((3, 4, 5), dtype=bool), SPACING) is None
    assert measure(image, np.ones((3, 4, 5), dtype=bool), SPACING).around == [{}]


def test_the_files_of_a_case_are_read_once(tiny_dataset, folders, monkeypatch):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    read = []
    original = SimpleITKIO.read_images

    def counting(self, files):
        read.extend(Path(file).name for file in files)
        return original(self, files)

    dataset_json = json.loads((folders.raw / tiny_dataset / "dataset.json").read_text())
    case = list_training_cases(folders.raw / tiny_dataset, dataset_json)[0]
    monkeypatch.setattr(SimpleITKIO, "read_images", counting)
    module.measure_case(case, DatasetReader("SimpleITKIO"), foreground_classes(dataset_json), 100)
    assert sorted(read) == sorted(Path(file).name for file in (*case.images, case.label))
