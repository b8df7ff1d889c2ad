"""Probabilities beside label maps: those of nnU-Net for the same logits, whole or not at all, agreeing with labels."""

import json
import pickle
import shutil
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_prompts import make_promptable_model, write_prompts
from faults import disk_that_ends_after
from test_label_slabs import TARGETS, make_logits, make_properties
from tiny_models import LABELS, REGIONS, labels_of, make_model, truncate

from sam3dnet.evaluation.plain_pickles import holds_plain_values
from sam3dnet.inference import label_slabs, probabilities, windows
from sam3dnet.inference.companions import WHOLE, Segmentation, start_companions
from sam3dnet.inference.label_slabs import start_label_map
from sam3dnet.inference.models import load_model
from sam3dnet.inference.probabilities import ProbabilityVolume, agree, shape_of
from sam3dnet.inference.writing import unfinished_folder


def probabilities_of(path):
    with np.load(path) as content:
        return content["probabilities"]


def written_by(volume, folder, labels_ZYX):
    volume.write(folder / "a", labels_ZYX)
    volume.close()
    return probabilities_of(folder / "a.npz")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("linear", [True, False], ids=["slabs", "the plan's function"])
def test_they_are_those_of_stock_export_for_the_same_logits(tmp_path, monkeypatch, target, labels, linear):
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    loaded = load_model(make_model(tmp_path / "results", labels=labels))
    logits, properties = make_logits(loaded.labels.num_segmentation_heads).float(), make_properties(*TARGETS[target])
    monkeypatch.setattr(type(loaded.plans.image_reader_writer_class()), "write_seg", lambda *_: None)
    arguments = loaded.configuration, loaded.plans, loaded.dataset_json, str(tmp_path / "stock"), True, 1
    export_prediction_from_logits(logits, properties, *arguments)
    if not linear:
        monkeypatch.setattr(label_slabs, "axis_modes", lambda *_: None)
    monkeypatch.setattr(windows, "BYTES_AT_A_TIME", 2000)
    volume = ProbabilityVolume(unfinished_folder(tmp_path), properties, loaded.plans, loaded.labels)
    growing = start_label_map(logits.shape[1:], properties, loaded.plans, loaded.configuration, loaded.labels, volume)
    for slab in logits.split(4, dim=1):
        growing.add(slab)
    labels_ZYX = growing.finish()
    ours, stocks = written_by(volume, tmp_path, labels_ZYX), probabilities_of(tmp_path / "stock.npz")
    assert ours.shape == stocks.shape and ours.dtype == stocks.dtype == np.float32
    np.testing.assert_allclose(ours, stocks, atol=1e-5)
    np.testing.assert_array_equal(loaded.labels.convert_probabilities_to_segmentation(ours), labels_ZYX)
    assert pickle.loads((tmp_path / "a.pkl").read_bytes()) == properties
    assert {file.name for file in tmp_path.iterdir()} == {"results", "stock.npz", "stock.pkl", "a.npz", "a.pkl"}


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_whatever_a_label_map_says_nnunets_decision_is_the_same(tmp_path, labels):
    manager = load_model(make_model(tmp_path, labels=labels)).labels
    rng = np.random.default_rng(3)
    shape = (manager.num_segmentation_heads, 5, 7, 6)
    values = manager.apply_inference_nonlin(rng.integers(-2, 3, shape).astype(np.float32)).numpy()  # many ties
    wanted = rng.choice([0, 1, 700 if labels is REGIONS else 2], shape[1:])
    decided = manager.convert_probabilities_to_segmentation(values)
    before = values.copy()
    agree(values, wanted, manager)
    np.testing.assert_array_equal(manager.convert_probabilities_to_segmentation(values), wanted)
    np.testing.assert_array_equal(values[:, decided == wanted], before[:, decided == wanted])
    assert ((values >= 0) & (values <= 1)).all()
    if labels is LABELS:
        np.testing.assert_allclose(values.sum(0), 1, atol=1e-6)
        np.testing.assert_allclose(np.sort(values, 0), np.sort(before, 0), atol=1e-6)
    else:
        np.testing.assert_allclose(np.abs(values - 0.5), np.abs(before - 0.5), atol=1e-6)  # p, or 1 - p


def test_of_regions_that_are_drawn_with_the_same_label_one_is_turned_on_that_nothing_covers():
    def drawn(values):
        labels_zyx = np.zeros(values.shape[1:], int)
        for region, label in zip(values, manager.regions_class_order, strict=True):
            labels_zyx[region > 0.5] = label
        return labels_zyx

    manager = SimpleNamespace(
        has_regions=True, regions_class_order=[1, 2, 1], convert_probabilities_to_segmentation=drawn
    )
    values = np.random.default_rng(0).random((3, 4, 4, 4), np.float32)
    wanted = np.random.default_rng(1).integers(0, 3, (4, 4, 4))
    first = values[0].copy()
    agree(values, wanted, manager)
    np.testing.assert_array_equal(drawn(values), wanted)
    assert (values[0] == first)[wanted == 1].all()


def test_a_label_map_and_its_probabilities_are_made_together(predict, images, tmp_path):
    predict()
    label_maps = {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"}
    assert predict(save_probabilities=True).written == ["a", "b", "c"]
    assert {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"} == label_maps
    labels = labels_of(tmp_path / "out" / "a.nii.gz")
    values = probabilities_of(tmp_path / "out" / "a.npz")
    np.testing.assert_array_equal(values.argmax(0), labels)
    assert len(np.unique(labels)) == 3
    assert (values[0, 0] == 1).all()  # the slice of air that nnU-Net crops away
    assert holds_plain_values(tmp_path / "out" / "a.pkl")  # stock nnU-Net loads it where there is no sam3dnet
    assert predict(save_probabilities=True).written == []
    assert predict().written == []
    assert (tmp_path / "out" / "a.npz").is_file()


def test_what_is_missing_or_truncated_is_made_anew(predict, tmp_path):
    predict(save_probabilities=True)
    out = tmp_path / "out"
    (out / "a.pkl").unlink()
    truncate(out / "b.npz")
    assert shape_of(out / "b.npz") is None and shape_of(out / "c.npz")[0] == 3
    assert predict(save_probabilities=True).written == ["a", "b"]
    np.savez_compressed(out / "c.npz", probabilities=np.zeros((2, *labels_of(out / "c.nii.gz").shape), np.float32))
    assert predict(save_probabilities=True).written == ["c"]
    np.savez_compressed(out / "c.npz", probabilities=np.zeros((3, 5, 4, 3), np.float32))
    assert predict(save_probabilities=True).written == ["c"]
    assert predict(save_probabilities=True).written == []


def test_where_segmenting_fails_the_room_is_given_back():
    closed = []
    volume = SimpleNamespace(close=lambda: closed.append(True))
    with pytest.raises(ZeroDivisionError):
        Segmentation.of(start_companions(lambda: volume, False, lambda: volume), lambda: 1 / 0)
    assert closed == [True, True]
    with pytest.raises(ZeroDivisionError):
        start_companions(lambda: volume, lambda: 1 / 0)
    assert closed == [True, True, True]


def test_probabilities_of_another_label_map_do_not_stay(predict, images, tmp_path):
    predict(save_probabilities=True)
    shutil.copy(images / "a_0000.nii.gz", images / "b_0000.nii.gz")
    assert predict().written == ["b"]
    assert {file.name for file in (tmp_path / "out").glob("*.npz")} == {"a.npz", "c.npz"}
    truncate(images / "c_0000.nii.gz")
    assert predict(step_size=0.9).written == ["a", "b"]  # those of c are not averaged with others either
    assert not [*(tmp_path / "out").glob("*.npz"), *(tmp_path / "out").glob("*.pkl")]


@pytest.mark.parametrize("method", ["__init__", "write"])
def test_a_full_disk_leaves_neither_label_map_nor_probabilities(predict, tmp_path, monkeypatch, method):
    """Neither for the logits is there room, nor for what is made of them."""
    real = getattr(ProbabilityVolume, method)

    def on_a_full_disk(*arguments):
        with disk_that_ends_after(200):
            return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ProbabilityVolume, method, on_a_full_disk)
        report = predict(save_probabilities=True)
    assert report.written == [] and set(report.failed) == set("abc")
    assert "no room for probabilities of 0.00 GB" in report.failed["a"] or method == "write"
    assert not {file.name for file in (tmp_path / "out").iterdir()} & {"a.nii.gz", "a.npz", "a.pkl"}
    assert not list((tmp_path / "out").glob(".sam3d*"))
    assert predict(save_probabilities=True).written == ["a", "b", "c"]


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("instance", [False, True])
def test_under_prompts_they_say_what_the_label_map_says(predict, tmp_path, monkeypatch, labels, instance):
    model = make_promptable_model(tmp_path / "promptable", labels=labels)
    name = list(labels)[-1]
    said = {"points": [{"at": [3, 4, 2]}, {"at": [5, 2, 3], "positive": False}]}
    options = {"model": model, "prompts": write_prompts(tmp_path / "p.json", {"b": {name: said}})}
    predict(**options, instance=instance)
    expected = labels_of(tmp_path / "out" / "b.nii.gz")
    monkeypatch.setattr(windows, "BYTES_AT_A_TIME", 1000)
    predict(**options, instance=instance, save_probabilities=True)
    np.testing.assert_array_equal(labels_of(tmp_path / "out" / "b.nii.gz"), expected)
    values = probabilities_of(tmp_path / "out" / "b.npz")
    decided = load_model(model).labels.convert_probabilities_to_segmentation(values)
    np.testing.assert_array_equal(decided, expected)
    plain = probabilities_of(tmp_path / "out" / "a.npz")
    assert plain.shape == values.shape


def test_corrected_logits_are_those_that_labels_are_decided_by(predict, tmp_path, monkeypatch):
    """With another resampling function, which is called for the whole image."""
    from sam3dnet.interactive import label_map as prompted

    model = make_promptable_model(tmp_path / "promptable")
    options = {"model": model, "save_probabilities": True}
    click = {"at": [3, 4, 2], "positive": False}
    options["prompts"] = write_prompts(tmp_path / "p.json", {"b": {"lesion": {"points": [click]}}})
    found = []
    for modes in (prompted.axis_modes, lambda *_: None):
        monkeypatch.setattr(prompted, "axis_modes", modes)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        predict(**options)
        found.append(probabilities_of(tmp_path / "out" / "b.npz"))
    np.testing.assert_allclose(*found, atol=1e-3)
    shutil.rmtree(tmp_path / "out")
    predict(**options | {"prompts": None})
    unprompted = probabilities_of(tmp_path / "out" / "b.npz")
    assert found[0][2, 2, 4, 3] < unprompted[2, 2, 4, 3] - 0.1


def test_an_ensemble_with_a_stock_prediction_is_nnunets(predict, images, tmp_path, monkeypatch):
    """nnUNetv2_ensemble averages ours and those that nnU-Net's predictor writes."""
    from nnunetv2.ensembling.ensemble import ensemble_folders
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    monkeypatch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
    predict(save_probabilities=True)
    other = load_model(make_model(tmp_path / "other", folds=(1,)))
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    stock.manual_initialization(
        other.network, other.plans, other.configuration, other.weights, other.dataset_json, "", None
    )
    (tmp_path / "stock").mkdir()
    for name in "abc":
        files = [[str(images / f"{name}_0000.nii.gz")]], [str(tmp_path / "stock" / name)]
        stock.predict_from_files_sequential(*files, save_probabilities=True)
    ensemble_folders([str(tmp_path / "out"), str(tmp_path / "stock")], str(tmp_path / "both"), num_processes=1)
    for name in "abc":
        mean = sum(probabilities_of(tmp_path / folder / f"{name}.npz") for folder in ("out", "stock")) / 2
        np.testing.assert_array_equal(labels_of(tmp_path / "both" / f"{name}.nii.gz"), mean.argmax(0))
    assert json.loads((tmp_path / "both" / "dataset.json").read_text())["labels"] == LABELS


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_nnunet_writes_our_label_maps_from_them_in_whatever_axes_its_readers_give(
    predict, model, tmp_path, monkeypatch, reader
):
    from nnunetv2.ensembling.ensemble import ensemble_folders

    monkeypatch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
    plans = json.loads((model / "plans.json").read_text()) | {"image_reader_writer": reader}
    (model / "plans.json").write_text(json.dumps(plans))
    assert predict(save_probabilities=True).failed == {}
    ensemble_folders([str(tmp_path / "out")], str(tmp_path / "alone"), num_processes=1)
    for name in "abc":
        ours, theirs = (tmp_path / folder / f"{name}.nii.gz" for folder in ("out", "alone"))
        assert len(np.unique(labels_of(ours))) == 3
        np.testing.assert_array_equal(labels_of(theirs), labels_of(ours))
    assert predict(save_probabilities=True).written == []


def test_no_more_than_a_few_planes_are_held(tmp_path, monkeypatch):
    """What is decided and swapped at a time follows from the memory that is allowed, not from the image."""
    loaded = load_model(make_model(tmp_path / "results"))
    properties = make_properties(*TARGETS["finer"])
    volume = ProbabilityVolume(unfinished_folder(tmp_path), properties, loaded.plans, loaded.labels)
    crop = properties["shape_after_cropping_and_before_resampling"]
    for channel in range(3):
        volume.put(channel, WHOLE, torch.randn(crop, generator=torch.Generator().manual_seed(channel)))
    seen = []
    monkeypatch.setattr(windows, "BYTES_AT_A_TIME", 1)
    monkeypatch.setattr(probabilities, "agree", lambda values, *_: seen.append(values.shape))
    shape = [properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward]
    written_by(volume, tmp_path, np.zeros(shape, np.uint8))
    assert seen == [(3, 1, *shape[1:])] * shape[0]
