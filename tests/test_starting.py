"""A training that starts from a model: what means the same goes on, all else starts anew, and both are said."""

import json

import numpy as np
import pytest
import torch
from commands import train_fold
from phantoms import make_raw_dataset

from sam3dnet.errors import CheckpointError, Sam3dError
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.network.published.adapter3dsam import Adapter3DSAM
from sam3dnet.network.published.medsam3d import MedSAM3D
from sam3dnet.network.published.refsam3d import RefSAM3D
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.transfer import Meaning, find_axes, take_over
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.training.checkpoint import load_safely
from sam3dnet.training.starting import StartingPoint, meaning_of

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
OLD = Meaning(("CT", "PET"), ("background", "liver", "tumour"))


def make(meaning, patch=(8, 12, 16), stride=(4, 4, 4), strides=STRIDES, seed=0, **options):
    torch.manual_seed(seed)
    network = SAM3D(
        *(len(meaning.channels), len(meaning.classes), True),
        **{"encoder": "tiny", "patch_size": patch, "token_stride": stride, "strides": strides, "prompts": True},
        **options,
    )
    with torch.no_grad():
        for parameter in network.parameters():  # tables begin at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def transfer(network, own, source, theirs, **options):
    axes = find_axes(lambda channels, classes: make_like(own, channels, classes, **options), *map(len, _sizes(own)))
    return take_over(network, own, source.state_dict(), theirs, axes)


def _sizes(meaning):
    return meaning.channels, meaning.classes


def make_like(meaning, channels, classes, **options):
    return make(Meaning(tuple(map(str, range(channels))), tuple(map(str, range(classes)))), **options)


def logits(network, image):
    with torch.no_grad():
        return network.eval()(image)[0]


def test_classes_and_channels_go_by_their_names():
    own = Meaning(("PET", "CT"), ("background", "tumour", "spleen", "liver"))
    source, network = make(OLD), make(own, seed=1)
    before = network.state_dict()["decoder.seg_layers.0.bias"].clone()
    taken = transfer(network, own, source, OLD)
    assert taken.classes == ("background", "tumour", "liver") and taken.new_classes == ("spleen",)
    assert taken.channels == ("PET", "CT") and not taken.new and not taken.new_channels
    image = torch.randn(1, 2, 8, 12, 16)
    theirs, ours = logits(source, image), logits(network, image.flip(1))
    torch.testing.assert_close(ours[:, [0, 3, 1]], theirs, rtol=1e-4, atol=1e-4)
    assert network.state_dict()["decoder.seg_layers.0.bias"][2] == before[2]
    tokens = "prompt_decoder.encoder.seg_layers.class_tokens.weight"
    torch.testing.assert_close(network.state_dict()[tokens][[0, 1, 3]], source.state_dict()[tokens][[0, 2, 1]])


def test_the_same_model_goes_on_as_it_was():
    source, network = make(OLD), make(OLD, seed=1)
    taken = transfer(network, OLD, source, OLD)
    assert not taken.fitted and not taken.new
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in source.state_dict().items())


def make_published(network_class, meaning, seed=0):
    torch.manual_seed(seed)
    options = {"encoder": "tiny", "patch_size": (8, 12, 16), "token_stride": (4, 4, 4), "strides": STRIDES}
    network = network_class(len(meaning.channels), len(meaning.classes), True, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def transfer_published(network_class, network, own, source, theirs):
    def build(channels, classes):
        return make_published(network_class, Meaning(tuple(map(str, range(channels))), tuple(map(str, range(classes)))))

    return take_over(network, own, source.state_dict(), theirs, find_axes(build, *map(len, _sizes(own))))


@pytest.mark.parametrize("network_class", [Adapter3DSAM, RefSAM3D, MedSAM3D])
def test_published_networks_go_on_where_an_image_is_joined_to_features(network_class):
    source, network = make_published(network_class, OLD), make_published(network_class, OLD, seed=1)
    taken = transfer_published(network_class, network, OLD, source, OLD)
    assert not taken.fitted and not taken.new
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("network_class", "joined"), [(Adapter3DSAM, "decoder.merge.conv"), (RefSAM3D, "decoder.last")]
)
def test_channels_that_are_joined_to_features_go_by_their_names(network_class, joined):
    own = Meaning(("PET", "T1", "CT"), OLD.classes)
    source, network = make_published(network_class, OLD), make_published(network_class, own, seed=1)
    before, theirs = network.state_dict()[f"{joined}.weight"].clone(), source.state_dict()[f"{joined}.weight"]
    taken = transfer_published(network_class, network, own, source, OLD)
    assert not taken.new and taken.new_channels == ("T1",)
    ours = network.state_dict()[f"{joined}.weight"]
    assert ours.shape[1] == theirs.shape[1] + 1
    torch.testing.assert_close(ours[:, :-3], theirs[:, :-2])
    torch.testing.assert_close(ours[:, [-1, -3]], theirs[:, -2:])
    torch.testing.assert_close(ours[:, -2], before[:, -2])


def test_another_crop_fits_the_position_tables():
    source, network = make(OLD), make(OLD, patch=(16, 24, 16), seed=1)
    taken = transfer(network, OLD, source, OLD, patch=(16, 24, 16))
    assert not taken.new
    assert {name.rpartition(".")[2] for name in taken.fitted} >= {"pos_embed", "depth_pos_embed", "rel_pos_h"}
    known = source.state_dict()["image_encoder.blocks.1.attn.rel_pos_h"]
    fitted = network.state_dict()["image_encoder.blocks.1.attn.rel_pos_h"]
    assert len(fitted) > len(known)
    torch.testing.assert_close(fitted[len(fitted) // 2], known[len(known) // 2])


def test_kernels_of_flat_levels_become_whole_ones_and_back():
    flat, whole = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[3, 3, 3]] * 3
    options = {"stride": (2, 4, 4), "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    image = torch.randn(1, 2, 1, 12, 16).expand(-1, -1, 8, -1, -1)
    for theirs, ours in ((flat, whole), (whole, flat)):
        source, network = make(OLD, kernels=theirs, **options), make(OLD, seed=1, kernels=ours, **options)
        taken = transfer(network, OLD, source, OLD, kernels=ours, **options)
        assert taken.fitted and not taken.new
        old, new = (one.detail_stem.levels[0][0].conv(image)[:, :, 1:-1] for one in (source, network))
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)  # slices are alike here


def test_what_does_not_fit_starts_anew_and_is_said():
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    source, network = make(OLD), make(OLD, stride=(8, 8, 8), strides=strides, patch=(16, 16, 16), seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    taken = transfer(network, OLD, source, OLD, stride=(8, 8, 8), strides=strides, patch=(16, 16, 16))
    assert taken.new and taken.same
    assert all(torch.equal(before[name], network.state_dict()[name]) for name in taken.new)
    assert any("start anew: " in line and "detail_to_tokens.weight" in line for line in taken.in_words())


def test_nothing_in_common_is_refused(tmp_path):
    point = StartingPoint(tmp_path / "checkpoint_final.pth", {"conv.weight": torch.zeros(2)}, OLD)
    with pytest.raises(CheckpointError, match=r"checkpoint_final.pth: nothing of it fits the network of this plan"):
        point.give_to(make(OLD), OLD, lambda channels, classes: make_like(OLD, channels, classes))


def test_regions_and_first_stages_have_names_too():
    said = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "tumour": 2}}
    assert meaning_of(said, True) == Meaning(
        ("CT", "first stage: organ", "first stage: tumour"), ("background", "organ", "tumour")
    )
    regions = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    assert meaning_of(regions | {"regions_class_order": [1, 2]}, False).classes == ("whole", "core")


@pytest.fixture
def loaders_in_this_process(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.mark.filterwarnings("ignore")
def test_a_training_goes_on_from_another_dataset(loaders_in_this_process, caplog):
    folders = activate_folders(None)
    source = "Dataset976_Source"
    make_raw_dataset(folders.raw / source)
    options = {"cost": training_cost, "seconds": training_seconds, "encoder": "tiny", "device": "cpu"}
    make_raw_dataset(folders.raw / "Dataset977_Other", seed=5)
    for name in (source, "Dataset977_Other"):
        plan_dataset(name, folders, progress=False, **options)
        preprocess_dataset(name, folders, num_processes=0, progress=False)
    short = {"epochs": 1, "iterations_per_epoch": 1, "device": "cpu", "validate": False}
    first = train_fold(source, 0, folders, **short)
    start = load_safely(first / "checkpoint_final.pth")["network_weights"]
    second = train_fold("Dataset977_Other", 1, folders, from_model=str(first.parent), **short)
    log = next(second.glob("training_log_*.txt")).read_text()
    assert f"starting from {first / 'checkpoint_final.pth'}" in log and "0 start anew" in log
    trained = load_safely(second / "checkpoint_final.pth")["network_weights"]
    away = [float((trained[name] - value).abs().max()) for name, value in start.items() if value.is_floating_point()]
    assert np.nanmedian(away) < 0.01  # one step of the same weights
    caplog.clear()
    train_fold(source, 1, folders, from_model=source, **short)
    assert "has seen cases of this dataset in fold 0 that fold 1 validates on" in caplog.text
    with pytest.raises(CheckpointError, match="expected a trained model for dataset 970"):
        train_fold(source, 1, folders, from_model="970", **short)
    with pytest.raises(Sam3dError, match="leave out --from"):
        train_fold(source, 1, folders, from_model=source, continue_training=True, **short)
    assert json.loads((second.parent / "plans.json").read_text())["dataset_name"] == "Dataset977_Other"
