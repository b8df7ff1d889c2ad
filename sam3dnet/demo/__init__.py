"""The dataset of sam3d_demo and the picture of its result."""
