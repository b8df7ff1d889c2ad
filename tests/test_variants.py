"""The variants of training that benchmarks compare: each changes what it is for, and nothing else."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam3dnet.check.networks import own_arguments
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.prompts.types import ClassPrompts, Point
from sam3dnet.training import trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import variants
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_variants_change_the_trunk_and_segment(variant, monkeypatch):
    monkeypatch.setattr(SAM3D, "__init__", SAM3D.__init__)  # what is changed is undone
    arguments = own_arguments((16, 16, 24), (8, 8, 8), "tiny", False, prompts=False, fitted_windows=True)
    torch.manual_seed(0)
    plain = SAM3D(1, 2, **arguments).eval()
    variants.change(variant)
    torch.manual_seed(0)
    changed = SAM3D(1, 2, **arguments).eval()
    image = torch.randn(1, 1, 16, 16, 24)
    with torch.no_grad():
        logits, reference = changed(image), plain(image)
    assert logits.shape == reference.shape and torch.isfinite(logits).all()
    assert torch.equal(logits, reference) == (variant in ("as-is", "no-adapters"))  # adapters add nothing at birth
    count = sum(p.numel() for p in changed.parameters())
    assert (count == sum(p.numel() for p in plain.parameters())) == (variant in ("as-is", "zero-start"))


def test_prompts_that_are_kept_apart_teach_the_prompt_decoder_alone(monkeypatch):
    monkeypatch.setattr(SAM3D, "answer", SAM3D.answer)
    shape = (8, 8, 16)
    network = SAM3D(1, 2, **own_arguments(shape, (8, 8, 8), "none", False, prompts=True))
    batch = PromptBatch.of([Query(0, 1, ClassPrompts((Point((2, 3, 4)),)))], shape)

    def taught():
        network.zero_grad(set_to_none=True)
        network.prompted(network.features(torch.randn(1, 1, *shape)), batch, torch.zeros(1, *shape)).sum().backward()
        return {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}

    assert taught() > {"prompt_decoder"}
    variants.change("prompts-apart")
    assert taught() == {"prompt_decoder"}


def test_prompts_count_little_where_they_are_to(monkeypatch):
    monkeypatch.setattr(trainer, "PROMPT_LOSS_WEIGHT", trainer.PROMPT_LOSS_WEIGHT)
    variants.change("prompts-lightly")
    answer = SimpleNamespace(loss=lambda: torch.tensor(2.0))
    asked = SimpleNamespace(
        prompts=SimpleNamespace(asking=lambda *_: None),
        is_ddp=False,
        iterations_done=0,
        loss=lambda *_: torch.tensor(1.0),
        network=lambda *_: (None, answer),
    )
    assert trainer.nnUNetTrainerSAM3D._loss(asked, {}, None, None).item() == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("no-blocks", {"encoder": "none"}),
        ("no-prompts", {"prompts": False}),
        ("finer-tokens", {"token_stride": [2, 4, 4], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}),
    ],
)
def test_variants_of_the_plan_make_a_network_that_has_what_they_say(variant, changes, monkeypatch):
    crop, stride = (16, 16, 24), (4, 8, 8)
    planned = own_arguments(crop, stride, "tiny", False, spacing_mm=(3.0, 1.0, 1.0), prompts=True, fitted_windows=True)
    planned = json.loads(json.dumps(planned))  # as in a plan
    plans = {"configurations": {"3d_fullres": {"architecture": {"arch_kwargs": dict(planned)}}, "low": {}}}
    monkeypatch.setattr(variants.asked, "read_plan", lambda *_: (plans, {}))
    variants.change(variant)
    changed, _ = variants.asked.read_plan("Dataset501_Hippocampus", None, "SAM3DPlans")
    arguments = changed["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arguments != planned and {name: arguments[name] for name in changes} == changes
    with torch.no_grad():
        logits = SAM3D(1, 2, **arguments).eval()(torch.randn(1, 1, *crop))
    assert logits.shape == (1, 2, *crop) and torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("variant", "grey_values", "turned", "bent"),
    [
        ("spatial-only", False, 0.2, 0.2),
        ("mirror-only", False, 0, 0),
        ("elastic", True, 0.2, 1 / 3),
        ("more-spatial", True, 0.5, 1 / 3),
    ],
)
def test_variants_of_augmentation_change_what_they_are_for(variant, grey_values, turned, bent, monkeypatch):
    spatial = SpatialTransform((12, 24, 36), 0, False, p_elastic_deform=0.2, p_rotation=0.2, p_scaling=0.2)
    noise = RandomTransform(GaussianNoiseTransform(), apply_probability=1)
    composed = ComposeTransforms([spatial, noise, MirrorTransform((0,))])
    trainer = variants.nnUNetTrainerSAM3D
    monkeypatch.setattr(trainer, "get_training_transforms", lambda *_, **__: composed)
    variants.change(variant)
    left = trainer.get_training_transforms(None, (12, 24, 36)).transforms
    assert [type(one) for one in left] == [
        SpatialTransform,
        *([RandomTransform] if grey_values else []),
        MirrorTransform,
    ]
    assert left[0].p_rotation == left[0].p_scaling == turned and left[0].p_elastic_deform == bent
    if grey_values:
        assert left[0].elastic_deform_magnitude == (0, 1) and left[0].get_parameters(image=torch.zeros(1, 12, 24, 36))
    assert {*variants.AUGMENTATIONS} == {"spatial-only", "mirror-only", "elastic", "more-spatial"}


def two_objects():
    """A large object of label 1 with a small one, and one of label 2."""
    labels_ZYX = np.zeros((8, 16, 16), dtype=np.int16)
    labels_ZYX[1:7, 1:9, 1:9] = 1
    labels_ZYX[2, 13, 13] = 1
    labels_ZYX[4:6, 4:6, 12:14] = 2
    return labels_ZYX


def test_places_to_crop_at_are_as_many_in_each_object(monkeypatch):
    labels_ZYX = two_objects()
    made = SimpleNamespace(
        load_case=lambda _: (
            "image",
            labels_ZYX[None],
            None,
            {"class_locations": {1: 0, 2: 0, (1, 2): 0, 3: 0}, "a": 5},
        )
    )
    trainer = variants.nnUNetTrainerSAM3D
    monkeypatch.setattr(trainer, "get_tr_and_val_datasets", lambda _: (made, "validation"))
    variants.change("by-object")
    training, validation = trainer.get_tr_and_val_datasets(None)
    image, labels, previous, properties = training.load_case("a")
    places = properties["class_locations"]
    assert (image, previous, properties["a"], validation) == ("image", None, 5, "validation") and labels[0] is not None
    assert {label: len(found) // variants.PLACES_OF_AN_OBJECT for label, found in places.items()} == {
        1: 2,
        2: 1,
        (1, 2): 3,
        3: 0,
    }
    assert not places[1][:, 0].any() and (labels_ZYX[tuple(places[1][:, 1:].T)] == 1).all()
    assert (places[1][:, 1:] == (2, 13, 13)).all(1).sum() == variants.PLACES_OF_AN_OBJECT
    assert training.load_case("a")[3]["class_locations"] is places


def test_each_object_counts_as_much_in_the_loss_of_objects():
    target = torch.from_numpy(two_objects())[None, None]
    sure = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1) * 200.0 - 100
    assert variants.object_loss(sure, target) == pytest.approx(0, abs=1e-6)
    without_small = sure.clone()
    without_small[0, :, 2, 13, 13] = torch.tensor([100.0, -100, -100])
    assert variants.object_loss(without_small, target) == pytest.approx((0.5 + 0) / 2, abs=1e-5)  # of two classes
    nowhere = torch.zeros_like(target)
    without_small.requires_grad_()
    variants.object_loss(without_small, nowhere).backward()
    assert not without_small.grad.any()


def test_the_loss_of_objects_is_added_to_the_finest_logits(monkeypatch):
    trainer = variants.nnUNetTrainerSAM3D
    monkeypatch.setattr(trainer, "_build_loss", lambda _: lambda logits, target: torch.tensor(float(len(logits))))
    variants.change("object-loss")
    target = torch.from_numpy(two_objects())[None, None]
    logits = torch.zeros(1, 3, *target.shape[2:])
    alone = variants.object_loss(logits, target)
    found = trainer._build_loss(None)([logits, logits[..., ::2]], [target, target[..., ::2]])
    assert 0 < alone < 1 and found == pytest.approx(2 + variants.OBJECTS_WEIGHT * float(alone))


@pytest.mark.parametrize(
    ("size", "step", "shape", "expected"),
    [
        ((24, 96, 32), (8, 16, 8), (48, 128, 64), [32, 96, 48]),
        ((16, 64, 64), (4, 16, 16), (20, 128, 128), [16, 96, 96]),
        ((40, 40, 32), (8, 8, 8), (36, 50, 34), [40, 56, 40]),  # no larger than the image needs
    ],
)
def test_crops_grow_to_twice_the_voxels(size, step, shape, expected):
    assert variants.grown(size, step, shape) == expected
