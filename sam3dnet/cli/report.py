"""sam3d_report: plan, training, validation and telling cases of a trained fold in one HTML file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sam3dnet.cli.command import NumProcesses, parse_fold, run_command


def report(
    *,
    dataset: Annotated[str | None, "-d"] = None,
    fold: Annotated[str | None, "-f"] = None,
    output: Annotated[Path | None, "-o"] = None,
    tolerance: float | None = None,
    configuration: str = "3d_fullres",
    plans: str = "SAM3DPlans",
    root: Path | None = None,
    num_processes: NumProcesses = None,
) -> Path:
    """Write one HTML file on a trained fold that opens without a network: the plan's decisions, training curves,
    metrics of the validation, and pictures of the worst, median and best case of each class.

    Args:
        dataset: Dataset that the model was trained on, by number or name; without it the only trained model.
        fold: The fold; without it the first trained one.
        output: The file; without it report.html in the folder of the fold.
        tolerance: Tolerance of the NSD in mm; without it the literature's for this task, else 2.
        configuration: Configuration of the plan that the model was trained with.
        plans: Name of that plan.
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
        num_processes: Cases that are scored at the same time; 0 scores in the command's own process, without it one a
            core, 8 at most.

    Returns:
        The file.

    Raises:
        Sam3dError: If there is no such model, or its plan, splits or cases are missing.
    """
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(root)
    parsed_fold = None if fold is None else parse_fold(fold)

    from sam3dnet.evaluation.report import write_report

    return write_report(
        folders,
        dataset,
        fold=parsed_fold,
        output=output,
        configuration=configuration,
        plans_name=plans,
        tolerance_mm=tolerance,
        num_processes=num_processes,
    )


def print_file(file: Path) -> int:
    """Print where the report is; give the exit status."""
    print(f"Report: {file}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(report, "sam3d_report", argv, exit_status=print_file)


if __name__ == "__main__":
    sys.exit(main())
