"""A training that starts from a model: what means the same goes on, all else starts anew, and both are said."""

import json
import re

import numpy as np
import pytest
import torch
from commands import train_fold
from phantoms import make_raw_dataset
from tiny_models import make_checkpoint, make_model, make_weights

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
from sam3dnet.training.starting import PEER, StartingPoint, meaning_of, read_starting_point

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


def test_names_that_differ_in_spelling_alone_are_told():
    own = Meaning(("pet", "CT"), ("background", "tumour", "Liver ", "spleen"))
    taken = transfer(make(own), own, make(OLD), OLD)
    assert taken.alike == {"Liver ": "liver", "pet": "PET"}
    told = "\n".join(taken.in_words())
    assert "Warning: Liver  starts anew, since the model has liver: if they mean the same, write them alike" in told


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
    file = tmp_path / "checkpoint_final.pth"
    point = StartingPoint(file, {"conv.weight": torch.zeros(2)}, OLD, "sam3dnet.network.sam3d.SAM3D")
    with pytest.raises(CheckpointError, match=r"checkpoint_final.pth: nothing of it fits the network of this plan"):
        point.give_to(make(OLD), OLD, lambda channels, classes: make_like(OLD, channels, classes))


@pytest.mark.parametrize(
    ("theirs", "own", "fits"),
    [
        ("sam3dnet.network.sam3d.SAM3D", "sam3dnet.network.published.medsam3d.MedSAM3D", True),
        ("package.UNet", "package.UNet", True),
        ("package.UNet", "sam3dnet.network.sam3d.SAM3D", False),
        ("sam3dnet.network.sam3d.SAM3D", "package.UNet", False),
        (f"{PEER} (package:One)", f"{PEER} (package:One)", True),
        (f"{PEER} (package:One)", f"{PEER} (package:Other)", False),
        (f"{PEER} (swin-unetr)", "sam3dnet.network.sam3d.SAM3D", False),
    ],
)
def test_weights_of_a_network_from_elsewhere_are_for_that_alone(tmp_path, theirs, own, fits):
    point = StartingPoint(tmp_path / "checkpoint_final.pth", {}, OLD, theirs)
    if fits:
        point.require_kin(own)
        return
    with pytest.raises(CheckpointError, match=re.escape(f"weights of {theirs}; expected those of {own} as here")):
        point.require_kin(own)


def test_a_model_with_the_whole_encoder_needs_no_other_weights_for_it(tmp_path):
    network = make(OLD)
    more_channels = Meaning(("CT", "PET", "MR"), OLD.classes)

    def holds(state, own=OLD, part="image_encoder"):
        point = StartingPoint(tmp_path / "checkpoint_final.pth", state, OLD, "sam3dnet.network.sam3d.SAM3D")
        return point.holds(part, network, own)

    state = network.state_dict()
    of_encoder = [name for name in state if name.startswith("image_encoder.")]
    assert of_encoder and holds(state) and not holds(state, more_channels)
    assert not holds({name: value for name, value in state.items() if name != of_encoder[3]})
    assert not holds(state | {of_encoder[3]: torch.zeros(1)})


class LooksAtValues(torch.nn.Module):
    """A network that, like MONAI's SwinUNETR, reads numbers out of tensors when it is made."""

    def __init__(self, channels, classes):
        super().__init__()
        width = int(torch.linspace(0, 8, 2)[1].item())
        self.first, self.last = torch.nn.Conv3d(channels, width, 1), torch.nn.Conv3d(width, classes, 1)


def test_networks_that_look_at_values_when_they_are_made_can_be_started_from_too():
    axes = find_axes(LooksAtValues, 2, 3)
    assert axes == {"first.weight": ("channel", 1), "last.weight": ("class", 0), "last.bias": ("class", 0)}


def test_channels_of_one_name_are_told_apart():
    said = {"channel_names": {"0": "CT", "1": "CT", "2": "MR"}, "labels": {"background": 0, "organ": 1}}
    assert meaning_of(said, False).channels == ("CT", "CT (2)", "MR")


def test_regions_and_first_stages_have_names_too():
    said = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "tumour": 2}}
    assert meaning_of(said, True) == Meaning(
        ("CT", "first stage: organ", "first stage: tumour"), ("background", "organ", "tumour")
    )
    said["labels"] = {"background": 0, "tumour": 2, "organ": 1}  # its channels lie by their values
    assert meaning_of(said, True).channels == ("CT", "first stage: organ", "first stage: tumour")
    regions = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    assert meaning_of(regions | {"regions_class_order": [1, 2]}, False).classes == ("whole", "core")
    assert meaning_of(regions, True).channels == ("CT", "first stage: whole", "first stage: core and whole")


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


@pytest.mark.parametrize(
    ("fold", "validating", "told"),
    [
        (0, {"c"}, ""),
        (
            0,
            {"a", "b", "d"},
            r"in fold 0 that fold 0 validates on \(a, b\): .*; train fold 0 of it again, since the folds",
        ),
        (1, {"c", "d"}, ""),  # the folds that it was trained with are others, of which only names tell
        (1, {"b"}, r"in fold 0 that fold 1 validates on \(b\): .*; train fold 1 of it first, or start from a model"),
        (2, {"b"}, r"in fold 0 that fold 2 validates on: .*; train fold 2 of it first"),  # of an earlier version
        ("all", set(), ""),
    ],
)
def test_a_start_from_weights_that_have_seen_what_validates_is_told(tmp_path, caplog, fold, validating, told):
    folder = make_model(tmp_path)
    said = {} if fold == 2 else {"sam3d": {"training_cases": ["a", "b"]}}
    torch.save(make_checkpoint(make_weights(0), **said), folder / "fold_0" / "checkpoint_final.pth")
    read_starting_point(folder, fold, "Dataset999_Another", {"a", "b"})
    assert not caplog.text
    read_starting_point(folder, fold, "Dataset901_Tiny", validating)
    assert re.search(told, caplog.text) if told else not caplog.text


def test_what_the_models_before_have_seen_counts_too(tmp_path, caplog):
    folder = make_model(tmp_path)
    said = {"sam3d": {"training_cases": ["a"], "started_from": ["b"]}}
    torch.save(make_checkpoint(make_weights(0), **said), folder / "fold_0" / "checkpoint_final.pth")
    point = read_starting_point(folder, 0, "Dataset901_Tiny", {"b", "c"})
    assert point.seen == {"a", "b"} and re.search(r"in fold 0 that fold 0 validates on \(b\)", caplog.text)
    assert not read_starting_point(folder, 0, "Dataset999_Another", {"b"}).seen


def test_a_second_stage_that_inherits_its_network_can_be_started_from(tmp_path):
    folder = make_model(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"] |= {"3d_cascade_fullres": second}
    (folder / "plans.json").write_text(json.dumps(plans))
    said = {"init_args": {"configuration": "3d_cascade_fullres"}}
    torch.save(make_checkpoint(make_weights(0), **said), folder / "fold_0" / "checkpoint_final.pth")
    point = read_starting_point(folder, 0, "Dataset999_Another", set())
    fullres = plans["configurations"]["3d_fullres"]["architecture"]
    assert point.network == fullres["network_class_name"]
    assert any(name.startswith("first stage: ") for name in point.meaning.channels)
