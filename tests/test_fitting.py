"""Crops that fit the memory, and when activations are recomputed for it."""

import math

import pytest

from sam3dnet.planning import rules
from sam3dnet.planning.fitting import CropFitter, Grid
from sam3dnet.planning.rules import Budget

GRID = Grid((1.0, 0.9, 0.8), (120, 140, 160), (60.0, 50.0, 40.0))
ENCODER = {"encoder": "vit_b", "pretrained": True}
FIXED, A_VOXEL = 10**8, 2000


def cost(arch_kwargs, input_channels, output_channels, batch_size):
    """Recomputing needs a quarter; finer tokens need more."""
    share = 0.25 if arch_kwargs.get("checkpointing") else 1.0
    voxels = batch_size * math.prod(arch_kwargs["patch_size"])
    return FIXED + int(voxels * A_VOXEL * share * 8 / max(arch_kwargs["token_stride"]))


def seconds_of(arch_kwargs, _channels, _outputs, batch_size):
    return batch_size * math.prod(arch_kwargs["patch_size"]) * 1e-6


def find(budget_bytes, *, encoder=ENCODER, seconds=None, strides=(4,), fixed=cost):
    budget = Budget(budget_bytes, seconds, seconds)
    return CropFitter(fixed, budget, 1, 2, {}, strides, seconds=seconds_of).find(GRID, encoder)


COVERING = 64 * 56 * 56 * 2 * 2 * A_VOXEL  # about what a batch of two crops that cover the objects needs


def test_where_the_objects_fit_nothing_is_recomputed():
    fit = find(FIXED + 2 * COVERING)
    assert "checkpointing" not in fit.arch_kwargs
    assert [decision.name for decision in fit.decisions()] == ["token_stride", "strides", "patch_size"]


def test_where_they_fit_only_by_recomputing_it_is_done_and_said():
    fit = find(FIXED + COVERING // 2)
    assert fit.arch_kwargs["checkpointing"] is True
    assert all(size >= extent for size, extent in zip(fit.patch.value, GRID.object_extent, strict=True))
    assert fit.decisions()[-1].name == "checkpointing"
    assert "no crop that is large enough fits without" in fit.decisions()[-1].reason


def test_coarser_tokens_are_preferred_to_recomputing():
    fit = find(FIXED + COVERING // 2, strides=(4, 16))
    assert max(fit.token_stride.value) == 16
    assert "checkpointing" not in fit.arch_kwargs


def test_where_recomputing_does_not_help_it_is_not_done():
    assert "checkpointing" not in find(FIXED + COVERING // 20).arch_kwargs


def test_where_nothing_fits_without_it_is_done():
    def dear(arch_kwargs, *others):
        return cost(arch_kwargs, *others) + (0 if arch_kwargs.get("checkpointing") else 10**12)

    assert find(FIXED + COVERING // 20, fixed=dear).arch_kwargs["checkpointing"] is True


@pytest.mark.parametrize("options", [{"seconds": 1e3}, {"encoder": {"encoder": "none", "pretrained": False}}])
def test_neither_a_budget_of_time_nor_another_package_s_network_recomputes(options):
    assert "checkpointing" not in find(FIXED + COVERING // 2, **options).arch_kwargs


@pytest.mark.parametrize("multiple", [1, 16, 32])
def test_crops_are_multiples_of_what_the_network_wants(multiple):
    budget = Budget(FIXED + COVERING, 0.3, 0.6)
    fitter = CropFitter(cost, budget, 1, 2, {}, (8,), crop_multiple=multiple, seconds=seconds_of)
    patch = fitter.find(GRID, ENCODER).patch.value
    assert all(size % max(multiple, 8) == 0 for size in patch)
    assert patch == fitter.find(GRID, ENCODER).arch_kwargs["patch_size"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [  # of tokens of 1x8x8, 1x16x16, 2x16x16; as many seconds a voxel as a cube's
        ((1.4, 1.0, 1.0), [1, 8, 8]),
        ((1.6, 1.4, 1.0), [1, 16, 16]),
        ((4.0, 1.6, 1.4), [2, 16, 16]),
        ((9.0, 9.0, 9.0), [2, 16, 16]),
    ],
)
def test_on_a_cpu_tokens_of_thick_slices_are_as_fine_as_their_step_is_short(times, expected):
    asked = dict(zip(((1, 8, 8), (1, 16, 16), (2, 16, 16)), times, strict=True))

    def seconds(arch_kwargs, _channels, _outputs, batch_size):
        assert batch_size == 2
        assert math.prod(arch_kwargs["patch_size"]) < 10**6
        stride = tuple(arch_kwargs["token_stride"])
        assert ("kernels" in arch_kwargs) == ("features" in arch_kwargs)
        return asked.get(stride, 1.0) * math.prod(arch_kwargs["patch_size"]) / 2e5

    thick = Grid((10.0, 1.5, 1.5), (10, 126, 136), (10, 88, 72))
    budget = rules.choose_budget("cpu", None, None)[0]
    fitter = CropFitter(cost, budget, 1, 2, {}, flat_kernels=True, seconds=seconds)
    fit = fitter.find(thick, ENCODER)
    assert fit.token_stride.value == fit.arch_kwargs["token_stride"] == expected
    assert ("a step would take too long" in fit.token_stride.reason) == (expected != [1, 8, 8])
    assert math.prod(side / step for side, step in zip(fit.patch.value, expected, strict=True)) % 1 == 0
    isotropic = fitter.find(Grid((1.0, 1.0, 1.0), (60, 60, 60), (40, 40, 40)), ENCODER)
    assert isotropic.token_stride.value == [8, 8, 8]


@pytest.mark.parametrize(
    ("voxels_a_second", "grid", "expected"),
    [
        (2e5, Grid((10.0, 1.5, 1.5), (10, 126, 136), (10, 88, 72)), [2, 16, 16]),
        (2e5, Grid((1.0, 1.0, 1.0), (36, 50, 35), (20, 40, 20)), [8, 8, 8]),  # crops are too short
        (2e6, Grid((1.0, 1.0, 1.0), (160, 160, 160), (20, 40, 20)), [16, 16, 16]),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_transformer_the_network_is_as_deep_as_its_crop_allows(device, voxels_a_second, grid, expected):
    def seconds(arch_kwargs, _channels, _outputs, _batch_size):
        return math.prod(arch_kwargs["patch_size"]) / voxels_a_second

    budget = rules.choose_budget(device, None, 10**9)[0]
    fitter = CropFitter(cost, budget, 1, 2, {}, flat_kernels=True, seconds=seconds)
    fit = fitter.find(grid, {"encoder": "none", "pretrained": False})
    assert fit.token_stride.value == fit.arch_kwargs["token_stride"] == expected
    assert "4 at least" in fit.token_stride.reason and fit.token_stride.source.startswith("nnU-Net")
    assert len(fit.strides.value) == 1 + math.log2(max(expected))
    others = CropFitter(cost, budget, 1, 2, {}, seconds=seconds)  # networks of other packages
    assert max(others.find(grid, {"encoder": "none", "pretrained": False}).token_stride.value) <= 8


def test_tokens_of_a_published_system_go_by_the_objects_on_a_cpu_too():
    """A crop of 70,000 voxels does not hold the objects; only where it does may its tokens be the finest."""
    budget = rules.choose_budget("cpu", None, None)[0]
    fitter = CropFitter(cost, budget, 1, 2, {}, (4, 16), seconds=lambda *call: 2.5 * seconds_of(*call))
    assert fitter.find(GRID, ENCODER).token_stride.value == [16, 16, 16]
    small = Grid((1.0, 1.0, 1.0), (60, 60, 60), (32, 32, 32))
    assert fitter.find(small, ENCODER).token_stride.value == [4, 4, 4]


def counted(calls, cost_of=cost):
    def noting(arch_kwargs, channels, outputs, batch_size):
        calls.append(batch_size * math.prod(arch_kwargs["patch_size"]))
        return cost_of(arch_kwargs, channels, outputs, batch_size)

    return noting


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5, 1, 2, 10, 20])
def test_a_few_looks_fill_the_memory(share):
    calls, limit = [], FIXED + int(share * COVERING)
    fit = find(limit, fixed=counted(calls))
    step = max(fit.patch.value) * max(fit.patch.value) * 4  # a further layer of tokens
    whole = fit.patch.value == [120, 140, 160]
    assert fit.step_bytes <= limit
    assert whole or FIXED + 2 * (fit.voxels + step) * A_VOXEL * 8 / 4 > 0.9 * limit
    assert whole == (share == 20)
    assert len(calls) <= 5 * 2  # with recomputing, too
    assert max(calls) <= 2 * max(160**3 / 8, 4.4 * fit.voxels)  # nothing much larger than what fits is traced


def test_tokens_whose_crop_will_be_too_small_are_not_looked_at_closely():
    calls = []
    fit = find(FIXED + COVERING // 2, strides=(4, 16), fixed=counted(calls))
    assert max(fit.token_stride.value) == 16
    assert len(calls) <= 6


def test_where_coarser_tokens_do_not_fit_at_all_finer_ones_are_taken():
    def no_coarse_ones(arch_kwargs, *others):
        return cost(arch_kwargs, *others) * (10**9 if max(arch_kwargs["token_stride"]) > 4 else 1)

    fit = find(FIXED + COVERING // 20, strides=(4, 16), fixed=no_coarse_ones)
    assert max(fit.token_stride.value) == 4 and fit.voxels > 4**3


def test_a_further_image_is_asked_about_only_where_it_might_fit():
    for voxels, asked in ((160**3, False), (30**3, True)):
        calls = []
        budget = Budget(FIXED + COVERING, patch_voxels=voxels)
        fitter = CropFitter(counted(calls), budget, 1, 2, {}, (4,))
        fit = fitter.find(Grid((1, 1, 1), (400, 400, 400), None), ENCODER)
        before = len(calls)
        assert (fitter.largest_batch(fit, 3) == 3) == asked
        assert (len(calls) > before) == asked


def test_a_network_like_one_before_is_looked_at_near_the_crop_that_fits():
    """As of low resolution beside full resolution: other voxels and objects, the same tokens."""
    calls = []
    fitter = CropFitter(counted(calls), Budget(FIXED + 3 * COVERING), 1, 2, {}, (4,))
    first = fitter.find(GRID, ENCODER)
    before = len(calls)
    second = fitter.find(Grid((2.0, 1.8, 1.6), (200, 240, 260), (80.0, 20.0, 20.0)), ENCODER)
    assert before - 1 == 2 and len(calls) - before == 1  # beyond the smallest crop, which both share
    assert second.patch.value != first.patch.value
    assert FIXED + 3 * COVERING >= second.step_bytes > 0.9 * (FIXED + 3 * COVERING)


@pytest.mark.parametrize("a_batch", [0.0, 0.3, 3.0])
def test_the_largest_batch_is_found_from_two_sizes(a_batch):
    """Also where a further image takes more than it does at least, by the crop."""

    def dear_batches(arch_kwargs, channels, outputs, batch_size):
        needed = cost(arch_kwargs, channels, outputs, batch_size)
        return needed + int(a_batch * (batch_size - 2) * 64**3 * A_VOXEL)

    calls = []
    budget = Budget(FIXED + 10 * COVERING, patch_voxels=64**3)
    fitter = CropFitter(counted(calls, dear_batches), budget, 1, 2, {}, (4,))
    fit = fitter.find(GRID, ENCODER)
    sizes = [size for size in range(3, 13) if dear_batches(fit.arch_kwargs, 1, 2, size) <= budget.bytes]
    before = len(calls)
    assert fitter.largest_batch(fit, 12) == max(sizes, default=2)
    assert len(calls) == before + 1


WIDE = Grid((1.0, 1.0, 1.0), (400, 400, 400), (20.0, 20.0, 20.0))


@pytest.mark.parametrize("microseconds", [0.5, 1.0, 3.0])
def test_a_crop_takes_the_seconds_of_the_budget_whatever_a_voxel_takes(microseconds):
    """Few classes or many, a small network or a large one: the step takes as long, as long as the crop is of use."""
    looks = []

    def seconds(*call):
        looks.append(call)
        return 0.02 + microseconds * seconds_of(*call)

    fitter = CropFitter(cost, Budget(None, 0.35, 0.7), 1, 2, {}, (8,), seconds=seconds)
    fit = fitter.find(WIDE, ENCODER)
    a_layer = fit.voxels / min(fit.patch.value) * 8 * 2 * microseconds * 1e-6
    assert 0.35 - 1.3 * a_layer < fitter.step_seconds(fit.arch_kwargs) <= 0.35
    assert len(looks) <= 6
    assert fitter.largest_batch(fit, 12) == 2


def test_a_crop_takes_longer_only_to_cover_the_objects():
    """48^3 voxels: 0.22 s a batch."""
    looks = []

    def seconds(*call):
        looks.append(call)
        return seconds_of(*call)

    for budget, covers in (((0.3, 0.3), True), ((0.15, 0.3), True), ((0.15, 0.2), False), ((0.02, 0.2), False)):
        fitter = CropFitter(cost, Budget(None, *budget), 1, 2, {}, (8,), seconds=seconds)
        fit = fitter.find(Grid((1.0, 1.0, 1.0), (400, 400, 400), (41.0, 41.0, 41.0)), ENCODER)
        assert (min(fit.patch.value) >= 48) == covers
        before = len(looks)
        assert not covers or budget[0] > 0.2 or fitter.largest_batch(fit, 12) == 2
        assert len(looks) == before  # a step that takes longer to cover the objects leaves no room for another image
        assert covers or fitter.step_seconds(fit.arch_kwargs) <= max(0.15, 2e-6 * rules.CPU_LEAST_VOXELS)


def test_a_crop_is_never_too_small_to_be_of_use_unless_the_memory_is():
    def slow(*call):
        return 100 * seconds_of(*call)

    fit = CropFitter(cost, Budget(None, 0.35, 0.7), 1, 2, {}, (8,), seconds=slow).find(WIDE, ENCODER)
    assert rules.CPU_LEAST_VOXELS / 2 < fit.voxels <= rules.CPU_LEAST_VOXELS
    limit = FIXED + 2 * A_VOXEL * 12**3
    tight = CropFitter(cost, Budget(limit, 0.35, 0.7), 1, 2, {}, (8,), seconds=slow).find(WIDE, ENCODER)
    assert tight.step_bytes <= limit


def test_a_batch_takes_no_longer_than_the_budget():
    """A small median image leaves room for more images of 24^3 voxels, 0.028 s each in a batch."""
    small = Grid((1.0, 1.0, 1.0), (24, 24, 24), (20.0, 20.0, 20.0))
    fitter = CropFitter(cost, Budget(None, 0.1, 0.2), 1, 2, {}, (8,), seconds=seconds_of)
    fit = fitter.find(small, ENCODER)
    assert fit.patch.value == [24, 24, 24]
    assert [fitter.largest_batch(fit, limit) for limit in (3, 6, 12)] == [3, 6, 7]


def test_a_budget_of_seconds_needs_their_estimate():
    with pytest.raises(ValueError, match="seconds="):
        CropFitter(cost, Budget(None, 0.35, 0.7), 1, 2, {})


def test_encoders_are_compared_on_as_large_a_crop():
    def seconds(arch_kwargs, *others):
        return seconds_of(arch_kwargs, *others) * (4 if arch_kwargs["encoder"] == "vit_b" else 1)

    fitter = CropFitter(cost, Budget(None, 0.1, 0.2), 1, 2, {}, (8,), seconds=seconds)
    assert fitter.times_the_seconds(WIDE, "vit_b", "small") == 4
    assert CropFitter(cost, Budget(10**10), 1, 2, {}, (8,)).times_the_seconds(WIDE, "vit_b", "small") is None
