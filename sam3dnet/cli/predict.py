"""sam3d_predict: from a folder of images to a folder of label maps on each image's own grid."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sam3dnet.cli.command import STATUS_SOME_FAILED, DeviceName, NumProcesses, parse_fold, run_command
from sam3dnet.cli.scheduler import cluster_at
from sam3dnet.errors import PromptError

if TYPE_CHECKING:
    from sam3dnet.inference.predictor import PredictionReport
    from sam3dnet.inference.text import TextQuestion

STEP_SIZE, FAST_STEP_SIZE = 0.5, 0.75

_log = logging.getLogger("sam3dnet.cli.predict")


def predict(
    *,
    input_folder: Annotated[Path, "-i"],
    output_folder: Annotated[Path, "-o"],
    dataset: Annotated[str | None, "-d"] = None,
    folds: Annotated[list[str] | None, "-f"] = None,
    configuration: str = "3d_fullres",
    plans: Annotated[str, "-p"] = "SAM3DPlans",
    root: Path | None = None,
    device: DeviceName | None = None,
    step_size: float | None = None,
    no_mirroring: bool = False,
    fast: bool = False,
    checkpoint: str | None = None,
    num_processes: NumProcesses = None,
    prompts: Path | None = None,
    instance: bool = False,
    text: str | None = None,
    clip_weights: str | None = None,
    scheduler: str | None = None,
) -> "PredictionReport":
    """Predict label maps for all images of a folder, on each image's own grid.

    Args:
        input_folder: Folder with images named as in nnU-Net's imagesTs, case_0000.nii.gz.
        output_folder: Folder for the label maps; what is there already is not predicted again.
        dataset: Dataset that the model was trained on, by number or name; without it the only trained model.
        folds: Folds whose predictions are averaged, such as 0 1 2 or all; without it every trained one.
        configuration: Configuration of the plan that the model was trained with.
        plans: Name of the plan; those of --method have a name of their own.
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
        device: Device to predict on: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.
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
        text: What to segment, in words, in place of the model's classes; for a model planned by --method refsam3d with
            CLIP's weights. The label maps hold it as label 1.
        clip_weights: CLIP's weights that the text is read with, as at planning: a file, or a name such as openai.
        scheduler: Address of a Dask scheduler, whose workers then predict; see docs/cluster.md.

    Returns:
        What was written, what was there already, and what failed and why.

    Raises:
        Sam3dError: If there is no model, no image, or no place to write to.
    """
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(root)
    parsed_folds = [parse_fold(fold) for fold in folds] if folds else None

    from sam3dnet.inference.models import find_model
    from sam3dnet.inference.predictor import predict_folder
    from sam3dnet.interactive.run_prompts import prompt_reader

    with cluster_at(scheduler, num_processes) as cluster:
        return predict_folder(
            input_folder,
            output_folder,
            find_model(folders.results, dataset, plans_name=plans, configuration=configuration),
            folds=parsed_folds,
            device=device,
            step_size=_step_size(step_size, fast),
            mirror=not (no_mirroring or fast),
            checkpoint=checkpoint,
            num_processes=num_processes,
            prompts=prompt_reader(prompts, instance),
            question=_question(text, clip_weights),
            cluster=cluster,
        )


def _step_size(asked: float | None, fast: bool) -> float:
    if asked is not None:
        return asked
    return FAST_STEP_SIZE if fast else STEP_SIZE


def _question(text: str | None, clip_weights: str | None) -> "TextQuestion | None":
    if text is None:
        return None
    if clip_weights is None:
        raise PromptError("--text needs the weights that read it: --clip-weights FILE, those of planning")
    from sam3dnet.inference.text import TextQuestion

    return TextQuestion(text, clip_weights)


def print_report(report: "PredictionReport") -> int:
    """Print how many cases were written, last those that failed and why; give the exit status."""
    counts = f"{len(report.written)} written, {len(report.skipped)} there already, {len(report.failed)} failed"
    print(f"Predictions: {counts}")
    for case, reason in report.failed.items():
        _log.error("case %s failed: %s", case, reason)
    return STATUS_SOME_FAILED if report.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(predict, "sam3d_predict", argv, exit_status=print_report)


if __name__ == "__main__":
    sys.exit(main())
