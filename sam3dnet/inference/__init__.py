"""sam3dnet.inference."""
