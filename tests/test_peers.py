"""Networks of other packages: any size in, one output as nnU-Net wants it; and what is refused."""

import pytest
import torch
from torch import nn

from sam3dnet.errors import PlanError
from sam3dnet.network import peers
from sam3dnet.network.peers import Peer, PeerNetwork, find_peer

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


class OneConv(nn.Module):
    """A user's network; refuses sizes that five halvings do not divide, as many do."""

    def __init__(self, input_channels, num_classes):
        super().__init__()
        self.conv = nn.Conv3d(input_channels, num_classes, 1)

    def forward(self, x_BCzyx):
        assert all(size % 32 == 0 for size in x_BCzyx.shape[2:])
        return self.conv(x_BCzyx)


def make(network, deep_supervision=True, patch=(5, 6, 7)):
    return PeerNetwork(
        2, 3, deep_supervision, network=network, patch_size=patch, token_stride=(4, 4, 4), strides=STRIDES
    )


def test_a_network_of_the_user_s_gets_sizes_that_suit_any_and_gives_back_its_own():
    network = make("test_peers:OneConv")
    image = torch.randn(1, 2, 5, 6, 7)
    finest, coarse = network(image)
    assert torch.allclose(finest, network.network.conv(image), atol=1e-6)
    assert coarse.shape == (1, 3, 3, 3, 4)
    network.decoder.deep_supervision = False
    assert torch.equal(network(image), finest)


def test_the_input_holds_as_many_blocks_as_the_network_needs(monkeypatch):
    seen = []
    monkeypatch.setitem(peers.PEERS, "unetr", Peer(lambda *given: seen.append(given) or nn.Identity(), 16, 2))
    make("unetr", patch=(5, 16, 16))
    make("unetr", patch=(5, 6, 17))
    assert seen == [(2, 3, (16, 16, 32)), (2, 3, (16, 16, 32))]


@pytest.mark.filterwarnings("ignore")  # those of the packages' imports
@pytest.mark.parametrize("name", ["segresnet", "primus"])
def test_peers_are_built_from_their_own_packages(name):
    network = make(name, patch=(8, 9, 16))
    assert network(torch.randn(1, 2, 8, 9, 16))[0].shape == (1, 3, 8, 9, 16)


@pytest.mark.parametrize("name", ["test_peers", "test_peers:Missing", "no.such:Module", ":"])
def test_networks_that_are_not_there_are_refused(name):
    with pytest.raises(PlanError, match="cannot be found"):
        find_peer(name)
