"""Networks of several folds: what all folds have alike is neither loaded again nor held twice."""

import pytest
import torch
from commands import predict_folder
from tiny_models import labels_of, make_checkpoint, make_model, make_weights

from sam3dnet.inference import automatic, predictor
from sam3dnet.inference.models import load_into, load_model, names_that_differ, networks_of_folds

SHARED, OWN = {"first.weight", "first.bias", "last.bias"}, {"last.weight"}  # the last bias is 0 in all


@pytest.fixture
def half_frozen(tmp_path):
    """A model of three folds with the same first layer."""
    model = make_model(tmp_path / "results", folds=(0, 1, 2))
    first = make_weights(0)
    for fold in range(3):
        weights = make_weights(fold) | {name: first[name] for name in SHARED}
        torch.save(make_checkpoint(weights), model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


def versions(network):
    """How often each tensor was written to since it was made."""
    return {name: value._version for name, value in network.state_dict(keep_vars=True).items()}


def test_only_what_differs_among_folds_is_named(half_frozen):
    loaded = load_model(half_frozen)
    assert loaded.names_that_differ == OWN == names_that_differ(loaded.weights)
    assert names_that_differ(loaded.weights[:1]) == frozenset()


def test_a_fold_is_loaded_without_what_all_have_alike(half_frozen):
    loaded = load_model(half_frozen)
    before = versions(loaded.network)
    for fold in (1, 2, 0, 2):
        network = loaded.network_of(fold)
        assert all(torch.equal(value, loaded.weights[fold][name]) for name, value in network.state_dict().items())
    after = versions(loaded.network)
    assert {name for name in after if after[name] != before[name]} == OWN


def test_the_label_maps_are_those_of_separate_networks(half_frozen, images, tmp_path, monkeypatch):
    predict_folder(images, tmp_path / "ours", half_frozen, device="cpu")

    def separate_networks(self, image, on_progress, setting):
        folds = [load_model(half_frozen, [fold]).network for fold in range(3)]
        return automatic.predict_slabs(
            [lambda network=network: network for network in folds],
            image,
            self._model.configuration.patch_size,
            3,
            mirror_axes=self._mirror_axes,
            background_K=automatic.background_logits(self._model.labels),
        )

    monkeypatch.setattr(predictor.AutomaticSegmentation, "_slabs", separate_networks)
    predict_folder(images, tmp_path / "separate", half_frozen, device="cpu")
    for name in "abc":
        ours, separate = (labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in ("ours", "separate"))
        assert len(set(ours.flat)) == 3
        assert (ours == separate).all()


def test_networks_of_folds_share_what_all_have_alike(half_frozen):
    loaded = load_model(half_frozen)
    networks = networks_of_folds(loaded.network, loaded.weights, loaded.names_that_differ)
    for fold, network in enumerate(networks):
        state = network.state_dict()
        assert all(torch.equal(value, loaded.weights[fold][name]) for name, value in state.items())
        assert all(isinstance(value, torch.nn.Parameter) for value in network.parameters())
    places = {name: {network.state_dict()[name].data_ptr() for network in networks} for name in SHARED | OWN}
    assert {name: len(found) for name, found in places.items()} == dict.fromkeys(SHARED, 1) | dict.fromkeys(OWN, 3)
    loaded.network_of(2)  # what the automatic segmentation does meanwhile
    assert torch.equal(networks[0].last.weight, loaded.weights[0]["last.weight"])


def test_buffers_are_shared_and_loaded_too():
    network = torch.nn.BatchNorm1d(2)
    other = {name: value.clone() for name, value in network.state_dict().items()} | {"running_mean": torch.ones(2)}
    weights = [{name: value.clone() for name, value in network.state_dict().items()}, other]
    first, second = networks_of_folds(network, weights, names_that_differ(weights))
    assert first.running_var is second.running_var is network.running_var
    assert first.running_mean.tolist() == [0, 0] and second.running_mean.tolist() == [1, 1]
    load_into(network, weights[1], ["running_mean"])
    assert network.running_mean.tolist() == [1, 1]
