"""What can be asked of a prediction."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.settings.choices import OutputFormat
from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses, OfPlan, OnDevice

STEP_SIZE, FAST_STEP_SIZE = 0.5, 0.75


@dataclass(frozen=True, kw_only=True)
class PredictionSettings(InFolders, OnDevice, OfPlan):
    """Predict label maps for all images of a folder, on each image's own grid.

    What is there already, whole and made with the same settings, is not predicted again.

    Attributes:
        input_folder: Folder with images named as in nnU-Net's imagesTs, case_0000.nii.gz, a file a channel; or a folder
            of any depth, or a zip file, with DICOM files, of which each study is a case.
        output_folder: Folder for the label maps; made where it is missing.
        dataset: Dataset that the model was trained on, by number or name; without it the only trained model.
        folds: Folds whose predictions are averaged, such as 0 1 2 or all; without it every trained one. Of a cascade's
            first stage the same ones are taken, as far as they are trained.
        model_folder: Model folder, a file from sam3d_export or nnUNetv2_export_model_to_zip, or hf://OWNER/NAME on the
            Hugging Face hub, in place of a model below nnUNet_results.
        step_size: Step between sliding windows, as a share of the window; without it 0.5, with --fast 0.75.
        no_mirroring: Leave out the average over mirrored windows: several times as fast, slightly less accurate.
        fast: No mirroring and a larger step: for a quick look, at some cost in Dice.
        checkpoint: Checkpoint of each fold: final, best, latest or the name of a file; without it the first of these
            that there is.
        num_processes: Images that are read ahead at the same time, as far as memory allows; 0 reads each when its turn
            comes, without it one.
        prompts: Clicks, boxes and previous masks for some of the images: a file, or a folder with some; see
            docs/prompts.md. Classes and images that they do not name are segmented automatically.
        instance: Of images with prompts keep only the objects that these name, and make all else background: for
            measuring one lesion at a time.
        no_postprocessing: Leave out the post-processing that the training's validation or sam3d_find_best chose for
            the model: taking out all but the largest component of a class, or its small objects.
        save_probabilities: Write the probabilities of all classes beside each label map, for nnUNetv2_ensemble, as
            nnU-Net does: CASE.npz and CASE.pkl. Post-processing is left out then: it belongs after the ensemble.
        confidence: Write CASE_confidence.json beside each label map: the Dice that is to be expected of each class, and
            for each object how likely it is one, both as the model's validation has shown; see docs/confidence.md.
        output_format: Formats to write beside the label maps: nifti, nrrd, seg.nrrd with names and colours for 3D
            Slicer, and of DICOM dicom-seg and rtstruct, which refer to the series; see docs/dicom.md.
        preview: Draw CASE.png beside each label map: the three planes through each object, with outlines.
        statistics: Write statistics.csv and statistics.json, a row a class of a case: volume, components, largest
            diameter in space and in an axial plane, mean and deviation of the intensities.
        series: Of DICOM the SeriesInstanceUID to predict, of a model with several channels one for each, in their
            order; without it the largest series that fits. sam3d_dicom list lists them.
        channels: Of DICOM a file with rules, which series is which channel; see docs/dicom.md.
        text: What to segment, in words, in place of the model's classes; for a model planned by --method refsam3d with
            CLIP's weights. The label maps hold it as label 1.
        clip_weights: CLIP's weights that the text is read with, as at planning: a file, or a name such as openai.
        num_parts: How many processes share the images, each started with a --part-id of its own, as with nnU-Net's.
        part_id: Which share of the images to predict, from 0.
        prev_stage_predictions: For a cascade's second stage: folder with the first stage's label maps, named as the
            images are, without the channel; without it the first stage beside the model predicts them on the way.
        scheduler: Address of a Dask scheduler, whose workers then predict; see docs/cluster.md.

    Raises:
        DatasetError: If there is no such part.
        PromptError: If an option is given without the one that it belongs to.
    """

    input_folder: Annotated[str | Path, "-i"]
    output_folder: Annotated[str | Path, "-o"]
    dataset: Annotated[DatasetName | None, "-d"] = None
    folds: Annotated[list[str | int] | None, "-f"] = None
    plans: Annotated[str, "-p"] = "SAM3DPlans"
    model_folder: Annotated[str | Path | None, "-m"] = None
    step_size: Annotated[float | None, "-step_size"] = None
    no_mirroring: Annotated[bool, "--disable_tta"] = False
    fast: bool = False
    checkpoint: Annotated[str | None, "-chk"] = None
    num_processes: NumProcesses = None
    prompts: str | Path | None = None
    instance: bool = False
    no_postprocessing: bool = False
    save_probabilities: Annotated[bool, "--save_probabilities"] = False
    confidence: bool = False
    output_format: list[OutputFormat] | None = None
    preview: bool = False
    statistics: bool = False
    series: list[str] | None = None
    channels: str | Path | None = None
    text: str | None = None
    clip_weights: str | None = None
    num_parts: Annotated[int, "-num_parts"] = 1
    part_id: Annotated[int, "-part_id"] = 0
    prev_stage_predictions: Annotated[str | Path | None, "-prev_stage_predictions"] = None
    scheduler: str | None = None

    @property
    def step(self) -> float:
        """Step between windows as a share of the window."""
        return self.step_size if self.step_size is not None else FAST_STEP_SIZE if self.fast else STEP_SIZE

    @property
    def mirror(self) -> bool:
        """Whether to average over mirrored windows."""
        return not (self.no_mirroring or self.fast)

    @property
    def postprocess(self) -> bool:
        """Whether to do what was chosen for the model; it is of the model's own classes, and not for probabilities."""
        return not self.no_postprocessing and not self.save_probabilities and self.text is None

    def __post_init__(self) -> None:
        if not 0 <= self.part_id < self.num_parts:
            raise DatasetError(f"part {self.part_id} of {self.num_parts}: expected a number from 0 below --num-parts")
        if self.instance and self.prompts is None:
            raise PromptError("--instance keeps only what prompts name, but there are none; add --prompts FILE")
        if self.text is not None and self.clip_weights is None:
            raise PromptError("--text needs the weights that read it: --clip-weights FILE, those of planning")
