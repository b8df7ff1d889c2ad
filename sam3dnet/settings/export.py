"""What can be asked of an export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.settings.common import DatasetName, InFolders, OfPlan


@dataclass(frozen=True, kw_only=True)
class ExportSettings(InFolders, OfPlan):
    """Write a trained model into one zip file that predicts anywhere: sam3d_predict -m FILE, or with stock nnU-Net.

    It holds no optimiser state, no names of cases, and a model card with what validation measured.

    Attributes:
        output: File to write, ending in .zip; or hf://OWNER/NAME, to upload to the Hugging Face hub; or ending in
            .onnx, for the network alone, with all that is done before and after it in a .json file beside it.
        dataset: Dataset that the model was trained on, by number or name; without it the only trained model.
        folds: Folds to export, such as 0 1 2 or all; without it every trained one.
        model_folder: Model folder, in place of one below nnUNet_results.
        checkpoint: Checkpoint of each fold: final, best, latest or the name of a file; without it the first of these
            that there is.
        half: Store weights as half-precision numbers: half the size, results that differ in few voxels.
        public: On the hub, let everybody read the model; without it only you and those whom you let.
        licence: Licence of the model, such as CC-BY-4.0, for the model card.
        intended_use: What the model is meant for, for the model card.

    Raises:
        CheckpointError: If there is no such model or fold, or the file is there already.
    """

    output: Annotated[str | Path, "-o"]
    dataset: Annotated[DatasetName | None, "-d"] = None
    folds: Annotated[list[str | int] | None, "-f"] = None
    plans: Annotated[str, "-p"] = "SAM3DPlans"
    model_folder: Annotated[str | Path | None, "-m"] = None
    checkpoint: str | None = None
    half: bool = False
    public: bool = False
    licence: str | None = None
    intended_use: str | None = None
