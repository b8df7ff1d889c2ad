"""Names our trainer for stock nnU-Net, which imports every module of the folders in nnUNet_extTrainer."""

from sam3dnet.training.trainer import nnUNetTrainerSAM3D

__all__ = ["nnUNetTrainerSAM3D"]
