"""sam3dnet.network."""
