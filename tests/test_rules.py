import math

import numpy as np
import pytest
from fingerprints import SITUATIONS
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from sam3dnet.planning import rules


@pytest.mark.parametrize(
    ("spacing", "shape", "stride"),
    [
        ((1.0, 1.0, 1.0), (160, 190, 170), [8, 8, 8]),
        ((5.0, 0.8, 0.8), (60, 512, 512), [1, 8, 8]),
        ((3.0, 0.7, 1.1), (30, 90, 80), [2, 8, 4]),
        ((0.7, 1.4, 2.9), (200, 200, 200), [8, 4, 2]),
    ],
)
def test_tokens_are_near_to_isotropic_in_mm(spacing, shape, stride):
    decision = rules.choose_token_stride(8, spacing, shape)
    assert decision.value == stride
    size_mm = [s * mm for s, mm in zip(stride, spacing, strict=True)]
    assert max(size_mm) / min(size_mm) <= 2


@pytest.mark.parametrize(("slices", "expected"), [(1, 1), (2, 2), (3, 2), (7, 4), (8, 8)])
def test_tokens_are_no_larger_than_the_image(slices, expected):
    assert rules.choose_token_stride(8, (1.0, 1.0, 1.0), (slices, 190, 170)).value == [expected, 8, 8]


@pytest.mark.parametrize("finest", [4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 2), (1, 2, 1), (60, 3, 3)])
def test_tokens_of_the_smallest_images_leave_two_outputs_for_deep_supervision(finest, shape):
    strides = rules.choose_token_stride(finest, (1.0, 1.1, 0.9), shape).value
    levels = rules.choose_stage_strides(strides, (1.0, 1.1, 0.9)).value
    assert len(levels) >= 3
    assert max(strides) <= max(4, finest)


@pytest.mark.parametrize(
    ("stride", "spacing_mm", "levels"),
    [
        ([8, 8, 8], (1.0, 1.0, 1.0), [[2, 2, 2]] * 3),
        ([4, 8, 8], (1.9, 1.0, 1.0), [[2, 2, 2], [2, 2, 2], [1, 2, 2]]),
        ([4, 8, 8], (2.0, 1.0, 1.0), [[1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ([2, 16, 16], (7.7, 2.5, 2.5), [[1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]),
        ([1, 8, 4], (9.0, 1.0, 2.5), [[1, 2, 1], [1, 2, 2], [1, 2, 2]]),
        ([2, 8, 8], (40.0, 1.0, 1.0), [[1, 2, 2], [1, 2, 2], [2, 2, 2]]),  # in time, however coarse
        ([16, 2, 1], (1.0, 8.0, 20.0), [[2, 1, 1], [2, 1, 1], [2, 1, 1], [2, 2, 1]]),
    ],
)
def test_axes_near_to_the_finest_are_halved(stride, spacing_mm, levels):
    assert rules.choose_stage_strides(stride, spacing_mm).value == [[1, 1, 1], *levels]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (9.0, 1.0, 1.0), (0.5, 0.7, 5.0)])
@pytest.mark.parametrize("stride", [[8, 8, 8], [1, 8, 8], [2, 8, 4], [16, 16, 1], [4, 1, 1]])
def test_stage_strides_multiply_to_the_token_stride(stride, spacing_mm):
    levels = rules.choose_stage_strides(stride, spacing_mm).value
    assert np.prod(levels, axis=0).tolist() == stride
    assert len(levels) == 1 + math.log2(max(stride))


@pytest.mark.parametrize(
    ("stages", "features"),
    [
        ([[2, 2, 2]] * 4, [16, 32, 64, 96]),
        ([[1, 2, 2]] * 4, [16, 24, 40, 64]),
        ([[1, 2, 2], [2, 2, 2], [1, 2, 2]], [16, 24, 48]),
        ([[1, 1, 2]] * 3, [16, 24, 24]),
    ],
)
def test_a_level_has_as_many_features_as_cubes_of_its_voxels_have(stages, features):
    assert rules.choose_features([[1, 1, 1], *stages]).value == features


def test_patch_is_the_median_image_in_whole_tokens_where_it_fits():
    patch = rules.choose_patch_size([25, 27, 25], (36, 50, 35), (1, 1, 1), (8, 8, 8), 128 * 1024)
    assert patch.value == [40, 56, 40]
    assert "whole median image" in patch.reason


def test_patch_covers_the_largest_objects_then_grows_evenly():
    patch = rules.choose_patch_size([44, 35, 33], (50.5, 45, 91), (3, 3, 3), (8, 8, 8), 128 * 1024)
    assert patch.value == [48, 48, 56]
    assert "covers" in patch.reason


def test_patch_is_near_to_isotropic_where_the_objects_do_not_fit():
    patch = rules.choose_patch_size([200, 200, 200], (300, 300, 300), (2.0, 1.0, 1.0), (4, 8, 8), 64**3)
    size_mm = [n * mm for n, mm in zip(patch.value, (2.0, 1.0, 1.0), strict=True)]
    assert max(size_mm) / min(size_mm) < 1.3
    assert 0.7 * 64**3 < math.prod(patch.value) <= 64**3
    assert "do not fit" in patch.reason


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("voxels", [0, 30_000, 128 * 1024, 160**3])
def test_patch_keeps_to_image_tokens_and_budget(name, voxels):
    situation = SITUATIONS[name]
    stride = rules.choose_token_stride(8, situation.spacing_mm, situation.shape).value
    extent = rules.object_extent_voxels(situation.fingerprint()["sam3d"]["classes"], situation.spacing_mm)
    patch = rules.choose_patch_size(extent, situation.shape, situation.spacing_mm, stride, voxels).value
    assert all(n % s == 0 for n, s in zip(patch, stride, strict=True))
    assert all(n - s < size for n, s, size in zip(patch, stride, situation.shape, strict=True))
    assert math.prod(patch) <= max(voxels, math.prod(stride))


@pytest.mark.parametrize(("name", "slices"), [("two slices", 2), ("one slice", 1)])
def test_patch_of_one_or_two_slices(name, slices):
    situation = SITUATIONS[name]
    stride = rules.choose_token_stride(8, situation.spacing_mm, situation.shape).value
    patch = rules.choose_patch_size(None, situation.shape, situation.spacing_mm, stride, 128 * 1024).value
    assert patch[0] == slices
    assert patch[1] > 64


def test_object_extent_is_the_95th_percentile_of_the_largest_class_on_the_planned_axes():
    extents = [[10.0, 20.0, 30.0]] * 99 + [[500.0, 500.0, 500.0]]
    classes = {
        "a": {"largest_extent_mm": extents},
        "b": {"largest_extent_mm": [[15.0, 1.0, 1.0]]},
        "never": {"largest_extent_mm": []},
    }
    assert rules.object_extent_voxels(classes, (3.0, 0.5, 2.0), (2, 0, 1)) == pytest.approx([10.0, 30.0, 10.0])
    assert rules.object_extent_voxels({"never": {"largest_extent_mm": []}}, (1, 1, 1)) is None


def test_window_is_widened_to_the_surroundings_of_the_smallest_class():
    properties = {"percentile_00_5": 28.0, "percentile_99_5": 228.0, "mean": 153.0, "std": 39.0}
    classes = {
        "kidney": {"volume_mm3": [4e5, 5e5], "around": {"0": {"percentile_05_0": -900.0, "percentile_95_0": 900.0}}},
        "tumour": {"volume_mm3": [3e4], "around": {"0": {"percentile_05_0": -116.0, "percentile_95_0": 187.0}}},
    }
    window = rules.choose_window("0", properties, np.linspace(0.0, 300.0, 201).tolist(), classes)
    assert (window.value["percentile_00_5"], window.value["percentile_99_5"]) == (-116.0, 228.0)
    assert window.value["mean"] == pytest.approx(np.clip(np.linspace(0, 300, 201), -116, 228).mean())
    assert window.value["std"] == pytest.approx(np.clip(np.linspace(0, 300, 201), -116, 228).std())
    assert "tumour" in window.reason


def test_window_grows_by_its_own_width_at_most_and_never_shrinks():
    properties = {"percentile_00_5": 0.0, "percentile_99_5": 100.0, "mean": 50.0, "std": 20.0}

    def window_for(low, high):
        around = {"0": {"percentile_05_0": low, "percentile_95_0": high}}
        value = rules.choose_window("0", properties, None, {"a": {"volume_mm3": [1.0], "around": around}}).value
        return value["percentile_00_5"], value["percentile_99_5"]

    assert window_for(-1000.0, 3000.0) == (-100.0, 200.0)
    assert window_for(-2000.0, -1000.0) == (-100.0, 100.0)
    assert window_for(30.0, 60.0) == (0.0, 100.0)


def test_window_without_classes_is_nnunets():
    properties = {"percentile_00_5": 0.0, "percentile_99_5": 100.0, "mean": 50.0, "std": 20.0}
    assert rules.choose_window("0", properties, None, {}).value == properties


@pytest.mark.parametrize(
    ("device", "target", "free", "is_time", "gigabytes"),
    [
        ("cpu", None, None, True, None),
        ("cpu", 11.0, None, False, 11.0),
        ("cuda:1", None, 24e9, False, 24.0),
        ("cuda", 10.0, 24e9, False, 10.0),
        ("mps", None, None, False, 8.0),
    ],
)
def test_budget_is_the_target_else_free_memory_else_8_gb_and_time_on_a_cpu(device, target, free, is_time, gigabytes):
    budget, decision = rules.choose_budget(device, target, None if free is None else int(free))
    assert budget.is_time is is_time
    expected = None if gigabytes is None else int(gigabytes * 1e9 * rules.USABLE_SHARE_OF_MEMORY)
    assert budget.bytes == expected
    assert decision.reason


@pytest.mark.parametrize(
    ("pretrained", "is_time", "shape", "candidates"),
    [
        (False, True, (36, 50, 35), (8,)),
        (True, True, (36, 50, 35), (8,)),
        (False, False, (36, 50, 35), (4, 8)),
        (False, False, (160, 190, 170), (8,)),
        (True, False, (160, 190, 170), (4, 8, 16)),
    ],
)
def test_stride_candidates(pretrained, is_time, shape, candidates):
    assert rules.stride_candidates(pretrained, is_time, shape) == candidates
    assert rules.stride_candidates(pretrained, is_time, shape, convolutional=True) == (16, 8)


@pytest.mark.parametrize(
    ("patch", "stride", "enough"),
    [
        ((10, 96, 64), (1, 16, 16), True),
        ((10, 96, 48), (1, 16, 16), False),
        ((24, 64, 24), (8, 16, 8), True),  # of axes that are halved less nothing is asked
        ((48, 48, 48), (16, 16, 16), False),
        ((32, 32, 32), (8, 8, 8), True),
    ],
)
def test_an_axis_is_halved_while_four_features_are_left_along_it(patch, stride, enough):
    assert rules.leaves_features(patch, stride) is enough


@pytest.mark.parametrize(
    ("patch", "stride", "affordable"),
    [
        ((32, 40, 48), (4, 4, 4), True),
        ((28, 40, 48), (4, 4, 4), False),
        ((28, 240, 248), (4, 4, 4), False),
        ((16, 88, 96), (2, 8, 8), True),
        ((16, 48, 48), (2, 8, 8), False),
    ],
)
def test_fine_tokens_are_affordable_with_the_objects_in_the_crop_and_common_ones_in_any_large_crop(
    patch, stride, affordable
):
    assert rules.is_affordable(patch, (32, 40, 40), stride) is affordable


def test_batch_is_at_least_two_whatever_the_budget():
    assert rules.choose_batch_size((40, 56, 40), 1.0, lambda _limit: 2).value == 2


def test_batch_grows_to_what_fits_5_percent_and_the_step():
    small = (16, 12, 8)
    assert rules.choose_batch_size(small, 1e9, lambda limit: min(limit, 5)).value == 5
    assert rules.choose_batch_size(small, 1e9, lambda limit: limit).value == rules.LARGEST_BATCH
    assert rules.choose_batch_size(small, 20 * 3 * 1536, lambda limit: limit).value == 3


@pytest.mark.parametrize(
    ("spacing_mm", "patch"),
    [
        ((10.0, 1.5, 1.5), (16, 128, 128)),
        ((8.0, 1.0, 1.0), (16, 128, 128)),
        ((5.0, 2.5, 2.5), (32, 64, 64)),
        ((3.0, 1.0, 1.1), (32, 128, 128)),
        ((1.0, 1.0, 1.0), (64, 64, 64)),
    ],
)
def test_kernels_are_those_of_nnunet(spacing_mm, patch):
    nnunet = get_pool_and_conv_props(spacing_mm, patch, 4, 999)[2]
    strides = rules.choose_stage_strides(rules.choose_token_stride(8, spacing_mm, patch).value, spacing_mm).value
    kernels = rules.choose_kernels(spacing_mm, strides).value
    assert kernels[:-1] == [list(kernel) for kernel in nnunet[:3]]
    assert kernels[-1] == [3, 3, 3]


@pytest.mark.parametrize(
    ("spacing_mm", "shape", "fine", "coarser"),
    [
        ((10.0, 1.5, 1.5), (10, 126, 136), [1, 8, 8], [[1, 16, 16], [2, 16, 16]]),
        ((6.0, 1.6, 1.6), (40, 256, 256), [2, 8, 8], [[2, 16, 16], [4, 16, 16]]),
        ((4.7, 2.5, 4.7), (100, 180, 110), [4, 8, 4], [[8, 16, 8]]),  # no slices
        ((1.0, 1.0, 1.0), (200, 200, 200), [8, 8, 8], [[16, 16, 16]]),
        ((10.0, 1.5, 1.5), (10, 9, 9), [1, 8, 8], [[2, 8, 8]]),
        ((10.0, 1.5, 1.5), (1, 9, 9), [1, 8, 8], []),
    ],
)
def test_coarser_tokens_are_wider_first_and_then_deeper(spacing_mm, shape, fine, coarser):
    assert rules.choose_token_stride(8, spacing_mm, shape).value == fine
    assert [decision.value for decision in rules.coarser_token_strides(fine, spacing_mm, shape)] == coarser


def test_an_axis_that_is_halved_is_never_passed_over():
    """A kernel of one voxel and a stride of two would leave half of them out."""
    kernels = rules.choose_kernels((9.0, 1.0, 1.0), [(1, 1, 1), (2, 2, 2), (1, 2, 2), (1, 2, 2)]).value
    assert kernels == [[1, 3, 3], [3, 3, 3], [1, 3, 3], [3, 3, 3]]


def test_no_low_resolution_stage_where_the_crop_sees_a_quarter():
    decision = rules.choose_lowres_spacing((1.0, 1.0, 1.0), (264, 264, 250), lambda _mm, shape: 0.3 * math.prod(shape))
    assert decision.value is None
    assert "sees enough" in decision.reason


def test_no_low_resolution_stage_for_an_image_of_common_size_however_small_the_crop():
    def planned(shape):
        return rules.choose_lowres_spacing((1.0, 1.0, 1.0), shape, lambda _mm, _shape: 96 * 1024)

    assert planned((200, 200, 209)).reason == "a median image of 200 x 200 x 209 voxels is not large"
    assert planned((200, 200, 212)).value is not None


def test_no_low_resolution_stage_that_is_hardly_smaller():
    decision = rules.choose_lowres_spacing((1.0, 1.0, 1.0), (220, 220, 220), lambda _mm, _shape: 2_000_000)
    assert decision.value is None


def test_low_resolution_coarsens_the_finer_axes_first():
    decision = rules.choose_lowres_spacing((5.0, 0.8, 0.8), (60, 512, 512), lambda _mm, _shape: 80**3)
    z, y, x = decision.value
    assert z == 5.0
    assert y == x
    assert 0.8 < y < 5.0
    assert 0.25 * 60 * (512 * 0.8 / y) ** 2 <= 80**3


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((1, 3500, 3500), (1.0, 1.0, 1.0)), ((1, 3500, 3500), (1.0, 0.5, 0.5)), ((2, 3000, 3000), (1.0, 1.0, 1.0))],
)
def test_an_axis_of_a_slice_or_two_keeps_a_voxel_in_low_resolution(shape, spacing):
    low = rules.choose_lowres_spacing(spacing, shape, lambda _mm, _shape: 256**2).value
    fewer = [size * full / mm for size, full, mm in zip(shape, spacing, low, strict=True)]
    assert round(fewer[0]) >= 1 and fewer[1] == fewer[2]
    assert 256**2 / math.prod(fewer) >= rules.LOWRES_COVERAGE


def test_low_resolution_then_coarsens_all_axes():
    z, y, _ = rules.choose_lowres_spacing((0.8, 0.7, 0.7), (800, 512, 512), lambda _mm, _shape: 128**3).value
    assert z / y == pytest.approx(0.8 / 0.7)
    assert z > 2.0


@pytest.mark.parametrize(
    ("left_right", "axes", "value"), [(2, (0, 1, 2), [2]), (2, (2, 0, 1), [0]), (0, (1, 0, 2), [1])]
)
def test_mirroring_follows_left_and_right_through_the_transposition(left_right, axes, value):
    assert rules.choose_mirror_axes(left_right, axes).value == value


@pytest.mark.parametrize("name", ["EM", "ssTEM", "fluorescence", "DAPI 405", "light-sheet"])
def test_under_a_microscope_there_is_no_upper_side(name):
    assert rules.choose_mirror_axes(2, channel_names=["green", name]).value == [0, 1, 2]
    assert rules.choose_mirror_axes(2, unlike=[("left_lobe", "right_lobe")], channel_names=[name]).value == []


@pytest.mark.parametrize("name", ["CT", "MR_T2SPIR", "PET", "system", "channel_0"])
def test_patients_have_an_upper_side(name):
    assert rules.choose_mirror_axes(2, channel_names=[name]).value == [2]


def test_images_without_orientation_are_mirrored_as_nnunet_does():
    assert rules.choose_mirror_axes(None).value == [0, 1, 2]


@pytest.mark.parametrize(
    ("patch_size", "median_shape", "expected"),
    [
        ((32, 48, 32), (36.0, 50.0, 35.0), False),
        ((48, 40, 40), (52.0, 45.0, 85.0), True),
        ((8, 8, 8), (4.0, 8.0, 8.0), False),
    ],
)
def test_the_dice_loss_is_taken_over_the_batch_where_a_crop_shows_little(patch_size, median_shape, expected):
    decision = rules.choose_batch_dice(patch_size, median_shape)
    assert decision.value is expected
    assert "100%" in decision.reason or math.prod(patch_size) < math.prod(median_shape)
