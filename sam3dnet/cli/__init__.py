"""sam3dnet.cli."""
