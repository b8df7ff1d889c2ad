"""sam3d_check: whether an installation computes the right thing on its device, and how fast."""
