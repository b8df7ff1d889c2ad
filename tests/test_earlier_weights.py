"""What there is one of for each class has names of its own: stock nnU-Net's pretrained weights, and earlier names."""

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from test_published_networks import NETWORKS
from test_published_networks import make as make_published

from sam3dnet.network.earlier_weights import REACH, as_named_today, completed
from sam3dnet.network.sam3d import SAM3D

EARLIER = {
    "decoder.seg_layers.": "decoder.heads.",
    ".seg_layers.class_tokens.": ".class_tokens.",
    REACH: "reach_K",
}


def make(classes, seed=0):
    torch.manual_seed(seed)
    options = {"encoder": "tiny", "patch_size": (8, 12, 16), "token_stride": (4, 4, 4), "prompts": True}
    return SAM3D(1, classes, True, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], **options)


def make_named(name, classes, seed=0):
    return make(classes, seed) if name == "sam3d" else make_published(name, classes=classes)


NAMES = ["sam3d", *(name for name in NETWORKS if not name.startswith("refsam3d"))]  # its text is of the classes


@pytest.mark.parametrize("name", NAMES)
def test_stock_nnunet_starts_from_a_model_of_other_classes(tmp_path, name, capsys):
    source, network = make_named(name, 3), make_named(name, 5, seed=1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.fill_(0.25)
    torch.save({"network_weights": source.state_dict()}, tmp_path / "checkpoint_final.pth")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_pretrained_weights(network, tmp_path / "checkpoint_final.pth")
    capsys.readouterr()
    parameters = dict(network.named_parameters())
    for key, value in network.state_dict().items():
        if ".seg_layers." in key:
            assert torch.equal(value, before[key])
        elif key in parameters:
            assert (value == 0.25).all()


def test_weights_under_earlier_names_are_those_of_today():
    network, other = make(3), make(3, seed=1)
    state = network.state_dict()
    earlier = {}
    for key, value in state.items():
        for today, before in EARLIER.items():
            key = key.replace(today, before)
        earlier[key] = value
    assert not earlier.keys() >= state.keys()
    other.load_state_dict(completed(earlier, other.state_dict()))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())
    assert as_named_today(state, state) == state and completed({}, {}) == {}
