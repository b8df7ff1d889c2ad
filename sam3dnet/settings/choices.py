"""What there is to choose from; the tables behind these names import torch, so they are written out here."""

from typing import Literal

MethodName = Literal["sam3d", "3dsam-adapter", "refsam3d", "3dmedsam"]
PlannedMethodName = Literal[
    "sam3d", "3dsam-adapter", "refsam3d", "3dmedsam", "swin-unetr", "unetr", "segresnet", "primus", "network"
]
OutputFormat = Literal["nifti", "nrrd", "seg.nrrd", "dicom-seg", "rtstruct"]
FidelityName = Literal["corrected", "as-published"]
TuningName = Literal[
    "spatial-adapter", "adapter", "pro-tuning", "st-adapter", "med-tuning", "lora", "layernorm", "full", "frozen"
]
EncoderName = Literal["none", "tiny", "small", "vit_b", "vit_l", "vit_h"]
EncoderChoice = Literal["auto", EncoderName]
CheckName = Literal[
    "installation",
    "device",
    "float32",
    "half-precision",
    "attention",
    "memory",
    "prediction",
    "iteration",
    "commands",
    "compiled",
]
