"""sam3dnet.comparison."""
