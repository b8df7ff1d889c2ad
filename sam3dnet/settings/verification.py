"""What can be asked of a verification."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses


@dataclass(frozen=True, kw_only=True)
class VerificationSettings(InFolders):
    """Verify raw datasets, the images in imagesTs included, and list all problems of all cases.

    Ends with status 1 if there is an error; what is wrong with an image of imagesTs is only a warning.

    Attributes:
        datasets: Datasets by number or name, such as 501 or Dataset501_Hippocampus.
        json: File to write the problems to, as JSON.
        num_processes: Processes to verify with; 0 works in the command's own, without it one a core, 8 at most.

    Returns:
        The problems of each dataset, by its name.

    Raises:
        DatasetError: If a dataset is not found.
    """

    datasets: Annotated[list[DatasetName], "-d"]
    json: str | Path | None = None
    num_processes: NumProcesses = None
