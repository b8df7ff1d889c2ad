"""Where the default network was when older models were trained: their plans name it so."""

from sam3dnet.network.sam3d import SAM3D

__all__ = ["SAM3D"]
