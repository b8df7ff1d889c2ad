"""sam3dnet.network.published."""
