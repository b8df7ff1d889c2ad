"""Windows of air: which they are, that no network is asked about them, and that nothing else changes."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import predict_folder
from tiny_models import LABELS, REGIONS, SPACING_XYZ, TinyNetwork, labels_of, make_model
from torch.nn.functional import interpolate

from sam3dnet.inference.windows import Air, background_logits, predict_slabs, window_starts

PATCH = (4, 6, 5)
SHAPE = (13, 23, 19)
BODY = (slice(5, 8), slice(9, 13), slice(2, 6))
AIR = -2.7
BACKGROUND_K = torch.tensor([4.0, -4.0])


def body_in_air(channels=1):
    image = torch.full((channels, *SHAPE), AIR)
    image[(slice(None), *BODY)] = torch.randn(channels, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return image


class Spy:
    """Gives logits that depend on the voxel, and counts what it sees."""

    def __init__(self):
        self.windows = 0

    def __call__(self, windows_BCZYX):
        self.windows += len(windows_BCZYX)
        return torch.cat([windows_BCZYX[:, :1] * 2, 1 - windows_BCZYX[:, :1]], 1)


def predict(network, image_CZYX, **options):
    return torch.cat(list(predict_slabs([lambda: network], image_CZYX, PATCH, 2, **options)), 1)


def boxes_of_windows():
    for corner in itertools.product(*window_starts(SHAPE, PATCH, 0.5)):
        yield tuple(slice(start, start + size) for start, size in zip(corner, PATCH, strict=True))


def test_air_is_the_lowest_value_or_what_lies_outside_of_a_mask():
    image = body_in_air(2)
    assert Air(image).fills(image[:, :5])
    assert not Air(image).fills(image[:, :6])
    masked = image.clone()
    masked[0] = torch.where(masked[0] == AIR, 0.0, masked[0])
    assert masked[0].min() < 0
    assert Air(masked).fills(masked[:, :5])
    masked[0, 2, 3, 4] = 1e-6  # something, however little
    assert not Air(masked).fills(masked[:, :5])


def test_a_constant_above_the_lowest_value_is_not_air():
    image = body_in_air()
    image[:, 9:] = 3.1  # saturated
    assert not Air(image).fills(image[:, 10:])
    image[:, 9:] = AIR + 0.01
    assert not Air(image).fills(image[:, 10:])


def test_air_in_one_channel_is_not_enough():
    image = body_in_air(2)
    image[1, 0, 0, 0] = 0.3
    assert not Air(image).fills(image[:, :3])


def test_what_resampling_rounds_air_by_is_air():
    resampled = interpolate(body_in_air()[None], (29, 31, 22), mode="trilinear")[0]
    assert Air(resampled).fills(resampled[:, :9])
    rounded = body_in_air()
    rounded[:, :5] += torch.rand(1, 5, *SHAPE[1:]) * 2e-6
    assert len(rounded[:, :5].unique()) > 1
    assert Air(rounded).fills(rounded[:, :5])


@pytest.mark.parametrize("folds", [1, 3])
def test_no_network_sees_windows_of_air(folds):
    image, spies = body_in_air(), [Spy() for _ in range(folds)]
    slabs = predict_slabs(
        [lambda spy=spy: spy for spy in spies], image, PATCH, 2, background_K=BACKGROUND_K, batch_size=3
    )
    logits = torch.cat(list(slabs), 1)
    occupied = [box for box in boxes_of_windows() if (image[(0, *box)] != AIR).any()]
    assert 0 < len(occupied) < len(list(boxes_of_windows()))
    assert [spy.windows for spy in spies] == [len(occupied)] * folds
    all_through = predict(Spy(), image)
    alone_in_air, touched_by_air = (torch.zeros(SHAPE, dtype=torch.bool) for _ in range(2))
    alone_in_air[:] = True
    for box in boxes_of_windows():
        if (image[(0, *box)] != AIR).any():
            alone_in_air[box] = False
        else:
            touched_by_air[box] = True
    assert (~touched_by_air).any() and alone_in_air.any()
    torch.testing.assert_close(logits[:, ~touched_by_air], all_through[:, ~touched_by_air])
    torch.testing.assert_close(logits[:, alone_in_air], BACKGROUND_K[:, None].expand(-1, int(alone_in_air.sum())))


def test_without_air_nothing_changes():
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5))
    spy = Spy()
    torch.testing.assert_close(predict(spy, image, background_K=BACKGROUND_K), predict(Spy(), image), rtol=0, atol=0)
    assert spy.windows == len(list(boxes_of_windows()))


def test_padding_around_air_is_air():
    image = torch.full((1, 3, 17, 5), AIR)
    image[0, 1, 15, 2] = 1.0
    spy = Spy()
    logits = predict(spy, image, background_K=BACKGROUND_K)
    assert logits.shape == (2, 3, 17, 5)
    assert spy.windows == sum(start + 6 > 15 for start in window_starts((4, 17, 5), PATCH, 0.5)[1])
    torch.testing.assert_close(logits[:, 0, 0, 0], BACKGROUND_K)


def test_an_image_of_air_asks_no_network_and_is_whole():
    def take():
        pytest.fail("a network was asked")

    slabs = list(predict_slabs([take], torch.full((1, *SHAPE), AIR), PATCH, 2, background_K=BACKGROUND_K))
    logits = torch.cat(slabs, 1)
    assert logits.shape == (2, *SHAPE)
    assert (logits.argmax(0) == 0).all()


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_label_maps_hold_nothing_in_air(tmp_path, monkeypatch, labels):
    values = np.full((6, 60, 40), -3.0, np.float32)
    values[1:4, 4:22, 3:15] = np.random.default_rng(0).normal(size=(3, 18, 12))
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING_XYZ)
    (tmp_path / "images").mkdir()
    sitk.WriteImage(image, str(tmp_path / "images" / "a_0000.nii.gz"))
    model = make_model(tmp_path / "results", labels=labels)
    seen = []
    real = TinyNetwork.forward

    def forward(self, x_BCZYX):  # says that the last class or region is everywhere
        seen.append(len(x_BCZYX))
        logits = real(self, x_BCZYX) * 0
        logits[:, -1] += 5
        return logits

    monkeypatch.setattr(TinyNetwork, "forward", forward)
    report = predict_folder(tmp_path / "images", tmp_path / "out", model, device="cpu", no_mirroring=True)
    assert report.failed == {}
    assert seen
    found = labels_of(tmp_path / "out" / "a.nii.gz") > 0
    assert found[1:4, 4:22, 3:15].all()
    assert not found[:, 40:].any()
    assert not found[:, :, 30:].any()


def test_background_is_class_0_or_no_region():
    from types import SimpleNamespace

    classes = background_logits(SimpleNamespace(num_segmentation_heads=3, has_regions=False))
    assert classes.argmax() == 0 and (classes[1:] < 0).all()
    regions = background_logits(SimpleNamespace(num_segmentation_heads=2, has_regions=True))
    assert (regions < 0).all() and len(regions) == 2
