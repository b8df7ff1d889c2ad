"""Where the device's memory is exhausted, prediction goes on with less of it, and keeps to that."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_models import make_model

from sam3dnet.inference import economy, on_disk, windows
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.case_pipeline import reason_of
from sam3dnet.inference.economy import CPU, Demand, Economy, Setting, is_out_of_memory, settings_for
from sam3dnet.inference.images import ImageInput
from sam3dnet.inference.models import load_model

CARD, MPS = torch.device("cuda"), torch.device("mps")
DEMAND = Demand(CARD, batch_size=3, sum_bytes=1000, window_bytes=12_000_000)
SUMS_ON_CPU = (CPU, 3)


@pytest.fixture(autouse=True)
def unknown_free_memory(monkeypatch):
    monkeypatch.setattr(economy, "free_bytes", lambda device: None)
    monkeypatch.setattr(economy, "release_cached", lambda device: None)


class Device:
    """Memory that suffices for the settings from one on."""

    def __init__(self, first_that_fits, error=None):
        self.tried, self._first, self._error = [], first_that_fits, error or torch.cuda.OutOfMemoryError("full")

    def predict(self, setting):
        self.tried.append((setting.sums_device, setting.batch_size))
        if settings_for(DEMAND).index(setting) < self._first:
            raise self._error
        return "labels"


def test_first_the_sums_leave_the_device_then_windows_go_one_at_a_time():
    every = [(s.sums_device, s.batch_size) for s in settings_for(DEMAND)]
    assert every == [(CARD, 3), (CPU, 3), (CPU, 1)]
    assert [s.batch_size for s in settings_for(Demand(MPS, 1, 1, 1))] == [1, 1]
    assert len(settings_for(Demand(CPU, 1, 1, 1))) == 1


@pytest.mark.parametrize(("fits", "tried", "warnings"), [(0, 1, 0), (1, 2, 1), (2, 3, 2)])
def test_an_image_is_predicted_anew_until_it_fits_and_the_next_ones_begin_there(fits, tried, warnings, caplog):
    device, kept = Device(fits), Economy()
    with caplog.at_level(logging.WARNING):
        assert kept.attempt(DEMAND, device.predict) == "labels"
    assert len(device.tried) == tried
    assert len(caplog.records) == warnings
    caplog.clear()
    assert kept.attempt(DEMAND, device.predict) == "labels"
    assert device.tried[tried:] == device.tried[tried - 1 : tried]
    assert not caplog.records


def test_the_warning_says_what_it_costs(caplog):
    with caplog.at_level(logging.WARNING):
        Economy().attempt(DEMAND, Device(2).predict)
    first, last = (record.getMessage() for record in caplog.records)
    assert "sums of the windows in the CPU's memory (12 MB are copied a window)" in first
    assert "one window at a time in place of 3 (at most 3 times as slow)" in last


def test_where_nothing_is_left_to_save_the_image_fails():
    device = Device(99)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="full") as raised:
        Economy().attempt(DEMAND, device.predict)
    assert len(device.tried) == 3
    assert reason_of(raised.value).startswith("GPU memory exhausted")


def test_other_errors_are_not_tried_again():
    device = Device(1, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        Economy().attempt(DEMAND, device.predict)
    assert len(device.tried) == 1


def test_what_the_failed_attempt_held_is_free_before_the_next():
    held = []

    class Sums:
        def __del__(self):
            held.remove(self.number)

    def predict(setting):
        assert held == []
        sums = Sums()
        sums.number = setting.batch_size
        held.append(sums.number)
        if setting.batch_size > 1:
            raise torch.cuda.OutOfMemoryError("full")
        return sums.number

    assert Economy().attempt(DEMAND, predict) == 1


@pytest.mark.parametrize(("free", "expected"), [(1000, (CARD, 3)), (999, SUMS_ON_CPU)])
def test_sums_larger_than_what_is_free_are_not_tried(monkeypatch, free, expected, caplog):
    monkeypatch.setattr(economy, "free_bytes", lambda device: free)
    device, kept = Device(0), Economy()
    kept.attempt(DEMAND, device.predict)
    assert device.tried == [expected]
    monkeypatch.setattr(economy, "free_bytes", lambda device: 10**9)
    kept.attempt(DEMAND, device.predict)  # a smaller image, or a card that others left
    assert device.tried[1:] == [(CARD, 3)]
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_exhausted_memory_is_known_by_every_name(error, expected):
    assert is_out_of_memory(error) is expected
    assert ("memory exhausted" in reason_of(error)) is expected


@pytest.fixture
def card_in_disguise(monkeypatch):
    """Predict on the CPU by the settings of a card."""
    steps = [Setting(CPU, 2), Setting(CPU, 2, "fewer sums"), Setting(CPU, 1, "one at a time")]
    monkeypatch.setattr(economy, "settings_for", lambda demand: steps)


def full_for_batches(network, seen):
    """Let the network's memory suffice for one window."""
    forward = network.forward

    def limited(x_BCZYX):
        seen.append(len(x_BCZYX))
        if len(x_BCZYX) > 1:
            raise torch.cuda.OutOfMemoryError("full")
        return forward(x_BCZYX)

    network.forward = limited


@pytest.mark.parametrize("share_of_memory", [0.25, 0.0])
def test_labels_and_logits_are_those_of_an_undisturbed_prediction(
    tmp_path, images, card_in_disguise, monkeypatch, share_of_memory
):
    monkeypatch.setattr(on_disk, "SHARE_OF_MEMORY", share_of_memory)
    folder, seen = make_model(tmp_path / "results"), []
    expected, limited = load_model(folder), load_model(folder)
    case = type("Case", (), {"name": "a", "files": (images / "a_0000.nii.gz",)})
    image, properties = ImageInput(expected).read(case)
    full_for_batches(limited.network, seen)
    results = []
    for model in (expected, limited):
        automatic = AutomaticSegmentation(model)
        logits = automatic.room_for_logits(image)
        results.append((automatic.label_map(image, properties, keep=logits), logits))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert seen[:2] == [2, 2] and set(seen[2:]) == {1}


def test_a_full_card_costs_a_run_time_and_no_case(predict, monkeypatch, card_in_disguise, caplog):
    real, calls = windows._Slab.__init__, []

    def full_at_first(self, *arguments):
        calls.append(arguments)
        if len(calls) <= 1:
            raise torch.cuda.OutOfMemoryError("full")
        real(self, *arguments)

    monkeypatch.setattr(windows._Slab, "__init__", full_at_first)
    with caplog.at_level(logging.WARNING):
        report = predict()
    assert (report.written, report.failed) == (["a", "b", "c"], {})
    assert len(calls) == 4
    assert ["fewer sums" in record.getMessage() for record in caplog.records] == [True]


def test_without_room_for_one_window_each_case_says_so(predict, monkeypatch, card_in_disguise):
    def full(self, *arguments):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(windows._Slab, "__init__", full)
    report = predict()
    assert report.written == []
    assert set(report.failed.values()) == {
        "GPU memory exhausted; close other programs on the card, or use --device cpu"
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_a_real_limit_on_a_card(tmp_path, caplog):
    num_classes, shape = 60, (16, 400, 400)  # sums of 614 MB, and 16 MB for the logits of a window
    folder = make_model(tmp_path, labels={"background": 0, **{f"class_{k}": k for k in range(1, num_classes)}})
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 64, 64]
    (folder / "plans.json").write_text(json.dumps(plans))
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    properties = {
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
        "spacing": [1.0, 1.0, 1.0],
    }
    expected = AutomaticSegmentation(load_model(folder, device="cuda")).label_map(image, properties)
    limited = load_model(folder, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(400e6 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with caplog.at_level(logging.WARNING):
            labels = AutomaticSegmentation(limited).label_map(image, properties)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "sums of the windows in the CPU's memory" in caplog.text
    assert (labels == expected).mean() > 0.999
