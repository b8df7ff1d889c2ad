"""sam3dnet.conversion."""
