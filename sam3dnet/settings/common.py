"""What several commands can be asked for alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from sam3dnet.settings.choices import EncoderChoice

DatasetName: TypeAlias = str | int  # "Dataset501_Hippocampus", "501" or 501
NumProcesses: TypeAlias = Annotated[int | None, "--workers"]


@dataclass(frozen=True, kw_only=True)
class InFolders:
    """For what works in nnU-Net's folders.

    Attributes:
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
    """

    root: str | Path | None = None


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """For what computes on a device.

    Attributes:
        device: Device to compute on: cpu, cuda, cuda:1 (the second card), mps; without it the best there is.
    """

    device: Annotated[str | None, "-device"] = None


@dataclass(frozen=True, kw_only=True)
class OfPlan:
    """For what works with one configuration of a plan.

    Attributes:
        configuration: Configuration of the plan: 3d_fullres, or of a cascade 3d_lowres, then 3d_cascade_fullres.
        plans: Name of the plan; those of --method have a name of their own.
    """

    configuration: Annotated[str, "-c"] = "3d_fullres"
    plans: str = "SAM3DPlans"


@dataclass(frozen=True, kw_only=True)
class OnSam:
    """For what builds networks on SAM.

    Attributes:
        encoder: Size of the image encoder; vit_b, vit_l and vit_h start from SAM's weights, auto takes vit_b where
            these are to be had and, on a CPU, a step with it costs little more; none leaves the transformer out.
        sam_checkpoint: SAM's weights to plan for, which asks for vit_b where no encoder is named: sam, medsam, or a
            file in SAM's format; without it $SAM3D_WEIGHTS, else sam, from the cache or by a download.
        gpu_memory_target: GB of memory that training may take, for methods that our planner plans; without it, what
            the device has.
        network: package.module:Class of an installed package, planned as the method "network"; it is given
            (input_channels, num_classes).
    """

    encoder: EncoderChoice = "auto"
    sam_checkpoint: str | None = None
    gpu_memory_target: Annotated[float | None, "-gpu_memory_target"] = None
    network: str | None = None
