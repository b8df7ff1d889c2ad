"""What can be asked of a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses, OfPlan


@dataclass(frozen=True, kw_only=True)
class ReportSettings(InFolders, OfPlan):
    """Write one HTML file on a trained fold that opens without a network: the plan's decisions, training curves,
    metrics of the validation, and pictures of the worst, median and best case of each class.

    Attributes:
        dataset: Dataset that the model was trained on, by number or name; without it the only trained model.
        fold: The fold; without it the first trained one.
        output: The file; without it report.html in the folder of the fold.
        tolerance: Tolerance of the NSD in mm; without it the literature's for this task, else 2.
        num_processes: Cases that are scored at the same time; 0 scores in the command's own process, without it one a
            core, 8 at most.
    """

    dataset: Annotated[DatasetName | None, "-d"] = None
    fold: Annotated[str | int | None, "-f"] = None
    output: Annotated[str | Path | None, "-o"] = None
    tolerance: float | None = None
    num_processes: NumProcesses = None
