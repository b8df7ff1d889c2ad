"""Label maps from corrected logits: as if all were resampled anew, and obeying every click."""

import numpy as np
import pytest
import torch
from fake_prompts import whole
from tiny_models import LABELS, REGIONS, make_model

from sam3dnet.inference.label_slabs import label_map
from sam3dnet.inference.models import load_model
from sam3dnet.interactive import label_map as prompted_export
from sam3dnet.interactive.classes import PromptClass, prompt_classes
from sam3dnet.interactive.correction import CorrectedBox, Correction
from sam3dnet.interactive.label_map import Click, PromptedExport, obeying_label

SHAPE = (6, 8, 10)
PROPERTIES = {
    "spacing": [3.0, 1.1, 0.7],
    "shape_after_cropping_and_before_resampling": (9, 4, 7),
    "shape_before_cropping": (11, 5, 7),
    "bbox_used_for_cropping": [[1, 10], [0, 4], [0, 7]],
}
UNCHANGED = {**PROPERTIES, "shape_after_cropping_and_before_resampling": SHAPE, "shape_before_cropping": (7, 8, 10)}
UNCHANGED["bbox_used_for_cropping"] = [[1, 7], [0, 8], [0, 10]]
THICK = {**PROPERTIES, "spacing": [1.0, 9.0, 1.0]}


def make_case(tmp_path, labels, resampling="resample_torch_fornnunet", properties=PROPERTIES):
    loaded = load_model(make_model(tmp_path, labels=labels, resampling=resampling))
    rest = (properties, loaded.plans, loaded.configuration, loaded.labels)
    torch.manual_seed(5)
    logits = torch.randn(loaded.labels.num_segmentation_heads, *SHAPE).half()
    automatic = label_map(logits.float(), *rest)
    return logits, automatic, PromptedExport(logits, automatic, *rest), rest


def make_correction(rng, *boxes):
    """Random values in boxes, each given by its first voxel and its shape."""
    return Correction(tuple(CorrectedBox(low, rng.normal(0, 3, shape).astype(np.float32)) for low, shape in boxes))


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("properties", [PROPERTIES, UNCHANGED, THICK], ids=["resampled", "as is", "thick slices"])
@pytest.mark.parametrize("resampling", ["resample_torch_fornnunet", "resample_data_or_seg_to_shape"])
def test_boxes_that_are_made_anew_equal_the_whole_made_anew(tmp_path, labels, properties, resampling):
    logits, automatic, export, rest = make_case(tmp_path, labels, resampling, properties)
    rng = np.random.default_rng(2)
    corrections = {
        0: make_correction(rng, ((0, 3, 2), (3, 5, 4))),
        1: make_correction(rng, ((2, 0, 5), (4, 3, 5)), ((4, 2, 4), (2, 6, 3)), ((0, 6, 0), (2, 2, 1))),
    }
    corrected = logits.float()
    for channel, correction in corrections.items():
        corrected[channel] += torch.from_numpy(whole(correction, SHAPE))
    expected = label_map(corrected, *rest)
    ours = export.label_map(corrections)
    assert ours.dtype == automatic.dtype
    assert (expected != automatic).mean() > 0.05
    np.testing.assert_array_equal(ours, expected)


def test_other_resampling_is_done_by_the_plans_function(tmp_path, monkeypatch):
    monkeypatch.setattr(prompted_export, "axis_modes", lambda *arguments: None)
    logits, automatic, export, rest = make_case(tmp_path, LABELS)
    correction = Correction((CorrectedBox((1, 2, 3), np.full((2, 2, 2), 9, np.float32)),))
    corrected = logits.float()
    corrected[2] += torch.from_numpy(whole(correction, SHAPE))
    ours = export.label_map({2: correction})
    np.testing.assert_array_equal(ours, label_map(corrected, *rest))
    assert (ours != automatic).any()
    assert export.label_map({2: correction}, [Click(1, (3, 4, 5), True)])[3, 4, 5] == 1


def test_without_corrections_the_automatic_label_map_comes_out_as_a_copy(tmp_path):
    _, automatic, export, _ = make_case(tmp_path, LABELS)
    ours = export.label_map({})
    np.testing.assert_array_equal(ours, automatic)
    assert not np.shares_memory(ours, automatic)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_every_click_is_obeyed_and_nothing_else_changes(tmp_path, labels):
    _, automatic, export, rest = make_case(tmp_path, labels)
    classes = list(prompt_classes(rest[-1]).values())
    rng = np.random.default_rng(8)
    voxels = {tuple(int(rng.integers(size)) for size in automatic.shape) for _ in range(80)}  # some outside of the crop
    clicks = [
        Click(int(rng.choice([one.index for one in classes])), voxel, bool(rng.integers(2))) for voxel in sorted(voxels)
    ]
    ours = export.label_map({}, clicks)
    by_index = {one.index: one for one in classes}
    changed = 0
    for click in clicks:
        is_there = ours[click.voxel] in by_index[click.class_index].members
        assert is_there == click.positive
        changed += bool(ours[click.voxel] != automatic[click.voxel])
    assert changed == (ours != automatic).sum() > 10


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("properties", [PROPERTIES, THICK], ids=["resampled", "thick slices"])
def test_many_negative_clicks_are_decided_by_the_logits_of_their_voxels_made_in_a_few_blocks(
    tmp_path, monkeypatch, labels, properties
):
    monkeypatch.setattr(prompted_export, "BLOCK", 4)
    _, _, export, rest = make_case(tmp_path, labels, properties=properties)
    corrections = {1: make_correction(np.random.default_rng(2), ((2, 0, 5), (4, 3, 5)), ((0, 6, 0), (2, 2, 1)))}
    classes = {one.index: one for one in prompt_classes(rest[-1]).values()}
    crop = [stop - start for start, stop in properties["bbox_used_for_cropping"]]
    logits_KZYX = np.zeros((rest[-1].num_segmentation_heads, *crop))

    def take(channel, box, values):
        logits_KZYX[channel][box] = values.numpy()

    export.give_logits(corrections, take)
    before = export.label_map(corrections)
    made, channels = [], export._channels
    monkeypatch.setattr(export, "_channels", lambda box, said: made.append(box) or channels(box, said))
    order, starts = rest[1].transpose_forward, [start for start, _ in properties["bbox_used_for_cropping"]]
    places = list(np.ndindex(*crop))[::2]
    voxels = [tuple(np.add(place, starts)[[order.index(axis) for axis in range(3)]].tolist()) for place in places]
    index = min(classes)
    ours = export.label_map(corrections, [Click(index, voxel, False) for voxel in voxels])
    blocks = np.prod([-(-size // 4) for size in crop])
    assert len(made) <= 2 + blocks < len(voxels)
    for voxel, place in zip(voxels, places, strict=True):
        values = logits_KZYX[(slice(None), *place)]
        expected = obeying_label(lambda v=values: v, [Click(index, voxel, False)], classes, rest[-1].has_regions)
        assert ours[voxel] == expected
    untouched = np.ones(ours.shape, bool)
    untouched[tuple(np.transpose(voxels))] = False
    np.testing.assert_array_equal(ours[untouched], before[untouched])


CLASSES = {1: PromptClass(1, 1, (1,)), 2: PromptClass(2, 2, (2,))}
# as of tumours: whole with label 1, core in it with label 2, and another organ with label 3
PARTS = {0: PromptClass(0, 1, (1, 2)), 1: PromptClass(1, 2, (2,)), 2: PromptClass(2, 3, (3,))}


def said(*clicks):
    return [Click(index, (0, 0, 0), positive) for index, positive in clicks]


@pytest.mark.parametrize(
    ("clicks", "label"),
    [
        (said((1, True)), 1),
        (said((1, False)), 2),
        (said((2, False)), 1),
        (said((1, True), (1, False)), 2),
        (said((1, False), (1, True)), 1),
        (said((1, False), (2, False)), 0),
        (said((1, True), (2, True)), 2),
        (said((1, True), (2, False)), 1),
    ],
)
def test_of_classes_the_later_click_counts_and_else_the_best_other(clicks, label):
    assert obeying_label(lambda: np.array([-3.0, 0.5, 2.0]), clicks, CLASSES, False) == label


@pytest.mark.parametrize(
    ("clicks", "label"),
    [
        (said((0, True)), 2),  # the core is part of the whole
        (said((0, False)), 0),
        (said((1, True)), 2),
        (said((1, False)), 1),
        (said((2, True)), 3),
        (said((2, True), (0, True)), 2),
        (said((0, False), (0, True)), 1),
    ],
)
def test_of_regions_the_later_click_counts_and_they_are_drawn_in_their_order(clicks, label):
    assert obeying_label(lambda: np.array([1.0, 1.0, -1.0]), clicks, PARTS, True) == label


def test_a_region_drawn_later_gives_way_to_a_click_on_an_earlier_one():
    assert obeying_label(lambda: np.array([-1.0, -1.0, 1.0]), said((0, True)), PARTS, True) == 1


def test_classes_are_read_from_the_labels(tmp_path):
    assert prompt_classes(load_model(make_model(tmp_path / "a")).labels) == {
        "organ": PromptClass(1, 1, (1,)),
        "lesion": PromptClass(2, 2, (2,)),
    }
    regions = prompt_classes(load_model(make_model(tmp_path / "b", labels=REGIONS)).labels)
    assert regions == {"whole": PromptClass(0, 1, (1, 700)), "core": PromptClass(1, 700, (700,))}
    np.testing.assert_array_equal(regions["whole"].mask(np.array([0, 1, 700, 2])), [False, True, True, False])


@pytest.mark.parametrize("members", [(2,), (1, 3), (1, 2, 300)])
def test_the_mask_of_a_class_holds_all_its_labels(members):
    labels = np.array([[[0, 1, 2], [3, 300, 1]]], np.uint16)
    np.testing.assert_array_equal(PromptClass(0, 1, members).mask(labels), np.isin(labels, members))
