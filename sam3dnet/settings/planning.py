"""What can be asked of a planning."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.errors import PlanError
from sam3dnet.settings.choices import FidelityName, PlannedMethodName, TuningName
from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses, OnDevice, OnSam


@dataclass(frozen=True, kw_only=True)
class PlanningSettings(InFolders, OnDevice, OnSam):
    """Verify datasets, decide how to train on them, and preprocess their cases.

    Attributes:
        datasets: Datasets by number or name, such as 501 or Dataset501_Hippocampus.
        num_processes: Processes to verify and preprocess with; 0 works in the command's own, without it one a core,
            8 at most.
        skip_verification: Leave out the verification of the dataset.
        no_prompts: Plan a network that only segments by itself, and cannot be given clicks, boxes or masks.
        device: Device that training is going to use: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.
        method: Network to plan: ours, a published system built from the same parts (3dmedsam: after the abstract), a
            peer from MONAI or nnU-Net, or with --network any other. Each has a plan of its own name, for --plans of
            the other commands.
        fidelity: For 3dsam-adapter, without the defects of the published code, or with them; without it corrected.
        tuning: How an image encoder with SAM's weights is tuned; one that starts from scratch is trained whole.
        clip_weights: For refsam3d, CLIP's weights that the classes' phrases are embedded with: a file, or a name that
            open_clip knows, such as openai; without it every class has a learned embedding, and no text can be asked.
        clip_model: CLIP model that the weights belong to, by open_clip's name.
        phrases: JSON file with a phrase for each class, in place of "phrases" in dataset.json or "perform liver
            segmentation".
        configurations: Configurations whose cases are preprocessed, such as 3d_lowres 3d_fullres; without it
            3d_fullres, and those that have been preprocessed before, so that none becomes stale. All are planned.
        overwrite_target_spacing: Spacing of 3d_fullres and 3d_cascade_fullres in mm, Z Y X as the reader gives images,
            in place of the planned one, and for this planning alone.
        like: Plan after a model that was trained before, a dataset by number or name, a model folder or a zip file: its
            spacing, crop and network, with its tuning and prompts, and channels of the same name normalised as there,
            so that a training that starts --from it has nothing to fit; for this planning alone. Of a model that reads
            text, its phrases are taken where it has the same classes, else give --clip-weights.
        scheduler: Address of a Dask scheduler, whose workers then verify, measure and preprocess the cases; see
            docs/cluster.md.

    Returns:
        The plan file of each dataset.

    Raises:
        DatasetError: If a dataset is not found or not sound.
        CheckpointError: If the encoder wants SAM's weights and there are none to be had.
        PlanError: If the method does not have the fidelity, or no network fits the memory, or a configuration is not
            planned.
    """

    datasets: Annotated[list[DatasetName], "-d"]
    num_processes: NumProcesses = None
    skip_verification: bool = False
    no_prompts: bool = False
    method: PlannedMethodName = "sam3d"
    fidelity: FidelityName | None = None
    tuning: TuningName = "spatial-adapter"
    clip_weights: str | None = None
    clip_model: str = "ViT-B-16"
    phrases: str | Path | None = None
    configurations: Annotated[list[str] | None, "-c"] = None
    overwrite_target_spacing: Annotated[list[float] | None, "-overwrite_target_spacing"] = None
    like: str | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        given_too = [
            *(["--encoder"] if self.encoder != "auto" else []),
            *(["--sam-checkpoint"] if self.sam_checkpoint is not None else []),
            *(["--network"] if self.network is not None else []),
            *(["--overwrite-target-spacing"] if self.overwrite_target_spacing is not None else []),
            *(["--no-prompts"] if self.no_prompts else []),
            *(["--tuning"] if self.tuning != type(self).tuning else []),
            *(["--fidelity"] if self.fidelity is not None else []),
        ]
        if self.like is not None and given_too:
            raise PlanError(f"--like takes network and spacing from a model; leave out {', '.join(given_too)}")
        of_text = [
            *(["--phrases"] if self.phrases is not None else []),
            *(["--clip-model"] if self.clip_model != type(self).clip_model else []),
        ]
        if of_text and not self.clip_weights:
            raise PlanError(f"{', '.join(of_text)}: phrases are embedded by --clip-weights alone; give these too")
        spacing_mm = self.overwrite_target_spacing
        if spacing_mm is not None and (len(spacing_mm) != 3 or not all(0 < mm < math.inf for mm in spacing_mm)):
            given = " ".join(map(str, spacing_mm))
            raise PlanError(f"--overwrite-target-spacing {given}: expected three millimetres above 0, Z Y X")
