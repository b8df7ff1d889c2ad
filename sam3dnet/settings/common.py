"""What several commands can be asked for alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

DatasetName: TypeAlias = str | int  # "Dataset501_Hippocampus", "501" or 501
NumProcesses: TypeAlias = Annotated[int | None, "--workers"]
EncoderChoice: TypeAlias = Literal["auto", "tiny", "small", "vit_b", "vit_l", "vit_h"]


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

    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class OfPlan:
    """For what works with one configuration of a plan.

    Attributes:
        configuration: Configuration of the plan.
        plans: Name of the plan; those of --method have a name of their own.
    """

    configuration: str = "3d_fullres"
    plans: str = "SAM3DPlans"
