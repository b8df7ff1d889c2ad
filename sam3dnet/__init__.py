"""Segment Anything in 3D for medical images, configured by nnU-Net's rules."""

__version__ = "0.1.0"
