"""sam3dnet.training."""
