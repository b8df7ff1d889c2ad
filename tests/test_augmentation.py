"""Augmentation of patches with few planes, on which nnU-Net's blur ends in an error."""

import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from sam3dnet.training.augmentation import SHORTEST_BLURRED, with_short_axes
from sam3dnet.training.trainer import nnUNetTrainerSAM3D


def stock_blur() -> GaussianBlurTransform:
    """Return the blur that nnU-Net trains with, never left out."""
    stock = nnUNetTrainer.get_training_transforms((8, 8, 8), 0.0, None, (0, 1, 2), None).transforms
    (blur,) = (one.transform for one in stock if isinstance(getattr(one, "transform", None), GaussianBlurTransform))
    blur.p_per_channel = 1
    return blur


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_short_axes_are_left_sharp(planes):
    blur, image = stock_blur(), torch.randn(1, planes, 12, 12)
    (ours,) = with_short_axes(ComposeTransforms([RandomTransform(blur, 1.0)])).transforms
    assert ours.apply_probability == 1.0
    sigmas = {"apply_to_channel": torch.tensor([True]), "sigmas": [[1.0, 1.0, 1.0]]}
    with pytest.raises(RuntimeError, match=r"[Pp]adding size should be less"):
        blur._apply_to_image(image.clone(), **sigmas)
    blurred = ours.transform._apply_to_image(image.clone(), **sigmas)
    for plane, alone in zip(blurred[0], image[0], strict=True):
        in_plane = {"apply_to_channel": torch.tensor([True]), "sigmas": [[1.0, 1.0]]}
        assert torch.allclose(plane, blur._apply_to_image(alone[None].clone(), **in_plane)[0], atol=1e-5)
    assert not torch.allclose(blurred, image, atol=0.1)


def test_axes_with_room_are_blurred_as_by_nnunet():
    blur, image = stock_blur(), torch.randn(2, SHORTEST_BLURRED, 8, 8)
    (ours,) = with_short_axes(ComposeTransforms([blur])).transforms
    both = {"apply_to_channel": torch.tensor([True, True]), "sigmas": [[1.0, 0.5, 0.7], [0.6, 1.0, 1.0]]}
    expected = blur._apply_to_image(image.clone(), **both)
    assert torch.allclose(ours._apply_to_image(image.clone(), **both), expected, atol=1e-5)


@pytest.mark.parametrize("patch_size", [(2, 16, 16), (16, 16, 3), (8, 16, 16)])
def test_the_trainer_leaves_out_what_a_patch_has_no_room_for(patch_size):
    trainer = object.__new__(nnUNetTrainerSAM3D)
    trainer.plans_manager = type("Plans", (), {"plans": {}})()
    trainer.dataset_json = {"labels": {"background": 0, "organ": 1}}
    composed = trainer.get_training_transforms(patch_size, 0.0, None, (0, 1, 2), None)
    for one in composed.transforms:  # whatever is left to chance happens
        one.apply_probability = 1.0
        if isinstance(getattr(one, "transform", None), GaussianBlurTransform):
            one.transform.p_per_channel = 1.0
            one.transform.blur_sigma = 1.0
    batch = {"image": torch.randn(1, *patch_size), "segmentation": torch.zeros(1, *patch_size, dtype=torch.int16)}
    assert torch.isfinite(composed(**batch)["image"]).all()
