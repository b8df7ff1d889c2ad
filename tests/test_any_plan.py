"""The planning rules for any dataset: crops, tokens and batches are valid, within the image, and grow with memory."""

import math
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from properties import for_any, triples

from sam3dnet.planning import rules
from sam3dnet.planning.fitting import CropFitter, Grid

SPACINGS_MM = triples(st.floats(0.01, 20))
SHAPES = triples(st.floats(1, 700))
EXTENTS = st.none() | triples(st.floats(0.3, 900))
FINEST = st.sampled_from([4, 8, 16])


def stride_for(finest: int, spacing_mm: Any, shape: Any) -> list[int]:
    stride: list[int] = rules.choose_token_stride(finest, spacing_mm, shape).value
    return stride


@for_any(finest=FINEST, spacing_mm=SPACINGS_MM, shape=SHAPES)
def test_tokens_are_powers_of_two_and_stages_lead_there(finest: int, spacing_mm: Any, shape: Any) -> None:
    stride = stride_for(finest, spacing_mm, shape)
    assert all(math.log2(n).is_integer() for n in stride)
    assert rules.SMALLEST_LARGEST_STRIDE <= max(stride) <= finest
    stages = rules.choose_stage_strides(stride, spacing_mm).value
    assert [math.prod(stage[axis] for stage in stages) for axis in range(3)] == stride
    assert len(stages) >= 3


@for_any(finest=FINEST, spacing_mm=SPACINGS_MM, shape=SHAPES, extent=EXTENTS, voxels=st.floats(0, 1e7))
def test_crops_are_whole_tokens_within_image_and_budget(
    finest: int, spacing_mm: Any, shape: Any, extent: Any, voxels: float
) -> None:
    stride = stride_for(finest, spacing_mm, shape)
    patch = rules.choose_patch_size(extent, shape, spacing_mm, stride, voxels).value
    assert all(n % step == 0 and n > 0 for n, step in zip(patch, stride, strict=True))
    assert all(n < round(size) + step for n, size, step in zip(patch, shape, stride, strict=True))
    assert math.prod(patch) <= max(voxels, math.prod(stride))


@for_any(finest=FINEST, spacing_mm=SPACINGS_MM, shape=SHAPES, extent=EXTENTS, more=triples(st.floats(0, 1e6)))
def test_a_larger_budget_never_means_a_smaller_crop(
    finest: int, spacing_mm: Any, shape: Any, extent: Any, more: Any
) -> None:
    stride = stride_for(finest, spacing_mm, shape)
    voxels = [sum(more[: count + 1]) for count in range(3)]
    crops = [rules.choose_patch_size(extent, shape, spacing_mm, stride, one).value for one in voxels]
    sizes = [math.prod(crop) for crop in crops]
    assert sizes == sorted(sizes)


@for_any(patch=triples(st.integers(1, 200)), voxels=st.floats(1, 1e12), gigabytes=st.lists(st.floats(0.1, 200)))
def test_batches_are_valid_and_grow_with_memory(patch: Any, voxels: float, gigabytes: list[float]) -> None:
    sizes = []
    for memory in sorted(gigabytes):
        largest = lambda limit, memory=memory: max(2, min(limit, int(memory * 1e9 / math.prod(patch) / 400)))  # noqa: E731
        sizes.append(rules.choose_batch_size(patch, voxels, largest).value)
    assert sizes == sorted(sizes)
    assert all(rules.SMALLEST_BATCH <= size <= rules.LARGEST_BATCH for size in sizes)


@for_any(
    spacing_mm=SPACINGS_MM,
    shape=triples(st.floats(1, 400)),
    extent=EXTENTS,
    gigabytes=st.floats(0.05, 100),
    pretrained=st.booleans(),
)
def test_the_network_that_is_found_fits_the_memory(
    spacing_mm: Any, shape: Any, extent: Any, gigabytes: float, pretrained: bool
) -> None:
    def cost(arch_kwargs: dict[str, Any], channels: int, classes: int, batch: int) -> int:
        tokens = math.prod(arch_kwargs["patch_size"]) / math.prod(arch_kwargs["token_stride"])
        return int(1e8 + batch * (300 * math.prod(arch_kwargs["patch_size"]) + 2e5 * tokens + 10 * tokens**2))

    budget, _ = rules.choose_budget("cuda", gigabytes, None)
    fitter = CropFitter(cost, budget, 1, 2, {})
    encoder = {"encoder": "vit_b" if pretrained else "small", "pretrained": pretrained}
    fit = fitter.find(Grid(spacing_mm, shape, extent), encoder)
    assert budget.bytes is not None
    assume(fit is not None)
    assert fit is not None and fit.step_bytes <= budget.bytes
    more = CropFitter(cost, rules.choose_budget("cuda", 2 * gigabytes, None)[0], 1, 2, {})
    assert more.find(Grid(spacing_mm, shape, extent), encoder) is not None


@for_any(spacing_mm=SPACINGS_MM, shape=triples(st.floats(1, 3000)), voxels=st.integers(512, 10**7))
def test_a_stage_of_low_resolution_shows_a_quarter_of_the_image(spacing_mm: Any, shape: Any, voxels: int) -> None:
    def patch_voxels(_spacing: Any, median_shape: Any) -> float:
        return min(voxels, math.prod(median_shape))

    decision = rules.choose_lowres_spacing(spacing_mm, shape, patch_voxels)
    if decision.value is not None:
        assert all(coarse >= fine for coarse, fine in zip(decision.value, spacing_mm, strict=True))
        lowres = [n * fine / coarse for n, fine, coarse in zip(shape, spacing_mm, decision.value, strict=True)]
        assert voxels / math.prod(lowres) >= rules.LOWRES_COVERAGE


@for_any(left_right=st.none() | st.integers(0, 2), axes=st.permutations([0, 1, 2]))
def test_only_the_axis_between_left_and_right_is_mirrored(left_right: int | None, axes: list[int]) -> None:
    mirrored = rules.choose_mirror_axes(left_right, axes).value
    assert [axes[axis] for axis in mirrored] == ([left_right] if left_right is not None else axes)
