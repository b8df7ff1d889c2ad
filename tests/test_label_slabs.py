"""From logits to labels: nnU-Net's decisions whichever way they come, and types that hold the labels."""

from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import LABELS, REGIONS, make_model

from sam3dnet.inference import label_slabs, windows
from sam3dnet.inference.deciding import smallest_type
from sam3dnet.inference.label_slabs import label_map, start_label_map
from sam3dnet.inference.models import load_model
from sam3dnet.inference.resampling import axis_modes

LOGITS_SHAPE = (6, 8, 10)
# Target shapes and spacings (x, y, z, as the plan transposes them): finer, coarser, the same, and one coarse axis each.
TARGETS = {
    "finer": ((13, 11, 17), [0.7, 0.5, 0.5]),
    "coarser": ((4, 5, 3), [3.0, 2.5, 2.0]),
    "the same": (LOGITS_SHAPE, [2.5, 1.0, 0.8]),
    "mixed": ((9, 4, 7), [3.0, 1.1, 0.7]),
    "coarse z": ((15, 9, 11), [0.9, 6.0, 0.7]),
    "coarse y": ((9, 15, 11), [6.0, 0.9, 0.7]),
    "coarse x": ((9, 13, 17), [0.7, 0.9, 6.0]),
    "one plane": ((1, 9, 11), [0.7, 0.9, 0.6]),
}


def make_properties(shape, spacing_mm):
    before = (shape[0] + 2, shape[1] + 1, shape[2])
    return {
        "spacing": spacing_mm,
        "shape_after_cropping_and_before_resampling": shape,
        "shape_before_cropping": before,
        "bbox_used_for_cropping": [[1, 1 + shape[0]], [0, shape[1]], [0, shape[2]]],
    }


def make_logits(num_heads):
    return torch.randn(num_heads, *LOGITS_SHAPE, generator=torch.Generator().manual_seed(5)).half()


def in_slabs(logits, properties, loaded, thickness):
    growing = start_label_map(logits.shape[1:], properties, loaded.plans, loaded.configuration, loaded.labels)
    for slab in logits.float().split(thickness, dim=1):
        growing.add(slab)
    return growing.finish()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("resampling", ["resample_torch_fornnunet", "resample_data_or_seg_to_shape"])
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_labels_equal_those_of_stock_export(tmp_path, monkeypatch, target, resampling, labels):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    loaded = load_model(make_model(tmp_path, labels=labels, resampling=resampling))
    if target.startswith("coarse "):
        loaded.configuration.configuration["spacing"] = [1.0, 1.2, 0.8]  # else its own axis 1 is resampled separately
    logits, properties = make_logits(loaded.labels.num_segmentation_heads), make_properties(*TARGETS[target])
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.float(), loaded.plans, loaded.configuration, loaded.labels, properties, num_threads_torch=1
    )
    assert len(np.unique(expected)) == 3
    ours = label_map(logits.float(), properties, loaded.plans, loaded.configuration, loaded.labels)
    np.testing.assert_array_equal(ours.astype(expected.dtype), expected)
    assert ours.dtype == smallest_type(loaded.labels) == (np.uint16 if labels is REGIONS else np.uint8)
    monkeypatch.setattr(label_slabs, "label_map", lambda *_: pytest.fail("all logits were kept"))
    for bytes_at_a_time, thickness in ((1, 1), (windows.BYTES_AT_A_TIME, 4)):
        monkeypatch.setattr(windows, "BYTES_AT_A_TIME", bytes_at_a_time)
        slabs = in_slabs(logits, properties, loaded, thickness)
        assert slabs.dtype == ours.dtype
        np.testing.assert_array_equal(slabs, ours)


def test_another_resampling_is_called_itself(tmp_path, monkeypatch):
    loaded = load_model(make_model(tmp_path, resampling="resample_data_or_seg_to_shape"))
    loaded.configuration.configuration["resampling_fn_probabilities_kwargs"]["order"] = 3
    logits, properties = make_logits(3), make_properties(*TARGETS["mixed"])
    expected = label_map(logits, properties, loaded.plans, loaded.configuration, loaded.labels)
    np.testing.assert_array_equal(in_slabs(logits, properties, loaded, 4), expected)
    monkeypatch.setattr(label_slabs, "label_map", lambda *_: "the plan's function was called")
    assert in_slabs(logits, properties, loaded, 4) == "the plan's function was called"


def resample_otherwise(data, shape, current, new):
    return data


def test_only_what_is_linear_by_axis_is_done_in_slabs():
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape as classic
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet as fast

    even, coarse = (1.0, 1.0, 1.2), (1.0, 4.0, 1.0)
    linear = ("linear",) * 3
    separate = ("linear", "nearest-exact", "linear")
    assert axis_modes(partial(fast), even, even) == linear
    assert axis_modes(partial(fast), coarse, even) == separate
    assert axis_modes(partial(fast), even, coarse) == separate
    assert axis_modes(partial(fast, force_separate_z=False), coarse, even) == linear
    assert axis_modes(partial(classic, order=1), coarse, even) == linear
    assert axis_modes(partial(classic, order=1, force_separate_z=None), coarse, even) == separate
    assert axis_modes(partial(classic), even, even) is None
    assert axis_modes(partial(classic, order=1, order_z=1), even, even) is None
    assert axis_modes(partial(fast, mode="bicubic"), even, even) is None
    assert axis_modes(partial(resample_otherwise), even, even) is None
