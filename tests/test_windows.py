"""Sliding windows: positions, weights and logits equal to nnU-Net's; constant in, constant out."""

import itertools

import pytest
import torch
from torch import nn

from sam3dnet.inference import on_disk, windows
from sam3dnet.inference.windows import (
    importance,
    mirror_combinations,
    pad_to_patch,
    predict_mirrored,
    predict_slabs,
    window_starts,
)

PATCH = (4, 6, 5)
HALF_TOLERANCE = 2e-3  # the logits of the whole volume are kept in half precision


def identity(windows_BCZYX):
    return windows_BCZYX


def summed_weights(shape):
    padded, inside = pad_to_patch(torch.zeros(1, *shape), PATCH)
    total = padded[0].clone()
    for corner in itertools.product(*window_starts(padded.shape[1:], PATCH, 0.5)):
        box = tuple(slice(start, start + size) for start, size in zip(corner, PATCH, strict=True))
        total[box] += importance(PATCH, torch.device("cpu"))
    return total[inside]


def predict_volume(network, image_CZYX, patch_size, num_heads, **options):
    slabs = predict_slabs([lambda: network], image_CZYX, patch_size, num_heads, **options)
    return torch.cat(list(slabs), 1).half()


@pytest.fixture
def network():
    torch.manual_seed(7)
    return nn.Conv3d(2, 3, 3, padding=1).eval()


@pytest.mark.parametrize("shape", [(4, 6, 5), (9, 17, 6), (5, 7, 30)])
@pytest.mark.parametrize("step_size", [0.3, 0.5, 1.0])
def test_windows_cover_the_image_to_its_border(shape, step_size):
    starts = window_starts(shape, PATCH, step_size)
    for size, patch, axis in zip(shape, PATCH, starts, strict=True):
        assert axis[0] == 0
        assert axis[-1] == size - patch
        assert all(0 < b - a < patch * step_size + 1 for a, b in itertools.pairwise(axis))


def test_importance_is_largest_in_the_middle_and_nowhere_zero():
    weights = importance((16, 40, 24), torch.device("cpu"))
    assert weights.dtype == torch.float32
    assert weights.min() > 0
    assert weights[8, 20, 12] == weights.max() == 10


@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 5, 4), (2, 13, 5), (11, 6, 17), (1, 1, 1)])
@pytest.mark.parametrize("step_size", [0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_identity_network_returns_the_image(shape, step_size, batch_size):
    torch.manual_seed(3)
    image = torch.randn(2, *shape)
    logits = predict_volume(identity, image, PATCH, 2, step_size=step_size, batch_size=batch_size)
    assert logits.shape == image.shape
    torch.testing.assert_close(logits.float(), image, atol=HALF_TOLERANCE, rtol=HALF_TOLERANCE)


@pytest.mark.parametrize("shape", [(3, 6, 5), (9, 17, 11)])
def test_constant_in_constant_out(shape):
    def constant(windows_BCZYX):
        return torch.tensor([2.0, -3.0]).view(1, 2, 1, 1, 1).expand(len(windows_BCZYX), 2, *PATCH)

    logits = predict_volume(constant, torch.randn(1, *shape), PATCH, 2, mirror_axes=(0, 1, 2))
    assert logits[0].unique().tolist() == [2.0]
    assert logits[1].unique().tolist() == [-3.0]


@pytest.mark.parametrize("shape", [(9, 17, 11), (3, 8, 5)])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2), (0, 1, 2)])
def test_logits_equal_those_of_stock_nnunet(network, shape, mirror_axes):
    from types import SimpleNamespace

    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    stock = nnUNetPredictor(use_mirroring=bool(mirror_axes), device=torch.device("cpu"), allow_tqdm=False)
    stock.network, stock.allowed_mirroring_axes = network, mirror_axes
    stock.configuration_manager = SimpleNamespace(patch_size=PATCH)
    stock.label_manager = SimpleNamespace(num_segmentation_heads=3)
    expected = stock.predict_sliding_window_return_logits(image).float()
    logits = predict_volume(network, image, PATCH, 3, mirror_axes=mirror_axes, batch_size=2).float()
    enough = summed_weights(shape) > 1e-2  # stock adds up in half precision, which rounds smaller weights coarsely
    assert enough.float().mean() > 0.4
    torch.testing.assert_close(logits[:, enough], expected[:, enough], atol=1e-2, rtol=1e-2)


def test_batches_do_not_change_the_logits(network):
    image = torch.randn(2, 9, 17, 11)
    one = predict_volume(network, image, PATCH, 3, batch_size=1)
    many = predict_volume(network, image, PATCH, 3, batch_size=5)
    torch.testing.assert_close(one, many, atol=1e-3, rtol=1e-3)


def test_the_network_sees_float32_batches_of_the_size_asked_for():
    seen = []

    def spy(windows_BCZYX):
        seen.append((windows_BCZYX.dtype, windows_BCZYX.shape))
        return windows_BCZYX

    predict_volume(spy, torch.randn(2, 4, 12, 10), PATCH, 2, batch_size=4)
    assert [shape[0] for _, shape in seen] == [4, 4, 1]
    assert all(dtype == torch.float32 and shape[1:] == (2, *PATCH) for dtype, shape in seen)


def test_mirroring_is_the_mean_over_all_flips(network):
    windows = torch.randn(1, 2, *PATCH)
    with torch.no_grad():
        flipped = network(windows.flip((2,))).flip((2,))
        both = network(windows.flip((2, 4))).flip((2, 4))
        last = network(windows.flip((4,))).flip((4,))
        expected = (network(windows) + flipped + both + last) / 4
        torch.testing.assert_close(predict_mirrored(network, windows, (2, 0)), expected)
    assert mirror_combinations((2, 0)) == [(), (2,), (4,), (2, 4)]
    assert len(mirror_combinations((0, 1, 2))) == 8


def test_of_deep_supervision_the_finest_counts():
    def supervised(windows_BCZYX):
        return [windows_BCZYX, windows_BCZYX[:, :, ::2, ::2, ::2]]

    image = torch.randn(2, 5, 7, 6)
    logits = predict_volume(supervised, image, PATCH, 2).float()
    torch.testing.assert_close(logits, image, atol=HALF_TOLERANCE, rtol=HALF_TOLERANCE)


def test_padding_is_even_with_the_rest_behind():
    padded, inside = pad_to_patch(torch.ones(2, 3, 9, 2), PATCH)
    assert padded.shape == (2, 4, 9, 5)
    assert inside == (slice(0, 3), slice(0, 9), slice(1, 3))
    assert padded[(slice(None), *inside)].sum() == padded.sum() == 2 * 3 * 9 * 2


def test_progress_rises_to_one():
    shares = []
    predict_volume(identity, torch.randn(2, 9, 17, 11), PATCH, 2, batch_size=2, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("shape", [(11, 6, 17), (3, 7, 5)])
def test_slabs_are_the_volume_in_order_whatever_their_thickness(network, monkeypatch, shape):
    image = torch.randn(2, *shape)
    whole = predict_volume(network, image, PATCH, 3)
    monkeypatch.setattr(windows, "BYTES_AT_A_TIME", 1)
    slabs = list(predict_slabs([lambda: network], image, PATCH, 3))
    assert [slab.shape[1] for slab in slabs] == [1] * shape[0]
    assert torch.equal(torch.cat(slabs, 1).half(), whole)


@pytest.mark.parametrize("bytes_at_a_time", [1, 500])
def test_sums_on_disk_give_the_same_logits(network, monkeypatch, tmp_path, bytes_at_a_time):
    image = torch.randn(2, 23, 7, 17)  # the planes go round their ring several times
    in_memory = predict_volume(network, image, PATCH, 3, mirror_axes=(0, 2), batch_size=2)
    monkeypatch.setattr(on_disk, "SHARE_OF_MEMORY", 0.0)
    monkeypatch.setattr(on_disk.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(windows, "BYTES_AT_A_TIME", bytes_at_a_time)
    let_go, mapped = windows.let_go, []
    monkeypatch.setattr(windows, "let_go", lambda sums: mapped.append(sums in on_disk._MAPPED) or let_go(sums))
    assert torch.equal(predict_volume(network, image, PATCH, 3, mirror_axes=(0, 2), batch_size=2), in_memory)
    assert mapped and all(mapped)


def test_folds_are_averaged_slab_by_slab():
    image, calls = torch.randn(1, 9, 6, 5), []
    folds = [lambda n=number: calls.append(n) or (lambda x: x * n) for number in (1.0, 2.0, 6.0)]
    slabs = list(predict_slabs(folds, image, PATCH, 1))
    torch.testing.assert_close(torch.cat(slabs, 1), 3 * image)
    assert calls == [1.0, 2.0, 6.0] * len(window_starts((9, 6, 5), PATCH, 0.5)[0])
