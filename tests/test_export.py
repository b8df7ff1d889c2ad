"""From logits to labels: nnU-Net's decisions, and types that hold the labels."""

import numpy as np
import pytest
import torch
from tiny_models import LABELS, REGIONS, make_model

from sam3dnet.inference.export import label_map, smallest_type
from sam3dnet.inference.models import load_model


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_label_map_channel_by_channel_equals_stock_export(tmp_path, labels):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    loaded = load_model(make_model(tmp_path, labels=labels))
    logits = torch.randn(
        loaded.labels.num_segmentation_heads, 6, 8, 10, generator=torch.Generator().manual_seed(5)
    ).half()
    properties = {
        "spacing": [3.0, 1.1, 0.7],
        "shape_after_cropping_and_before_resampling": (9, 4, 7),
        "shape_before_cropping": (11, 5, 7),
        "bbox_used_for_cropping": [[1, 10], [0, 4], [0, 7]],
    }
    ours = label_map(logits, properties, loaded.plans, loaded.configuration, loaded.labels)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, loaded.plans, loaded.configuration, loaded.labels, properties, num_threads_torch=1
    )
    assert ours.shape == (5, 11, 7)
    np.testing.assert_array_equal(ours.astype(expected.dtype), expected)
    assert ours.dtype == smallest_type(loaded.labels) == (np.uint16 if labels is REGIONS else np.uint8)
