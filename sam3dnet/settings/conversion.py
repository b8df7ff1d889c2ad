"""What can be asked of a conversion."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.settings.common import InFolders, NumProcesses


@dataclass(frozen=True)
class ConversionSettings(InFolders):
    """Turn a task of the Medical Segmentation Decathlon, or of nnU-Net v1, into a dataset of nnU-Net v2.

    Which of the two it is, is recognised. Images keep their voxels, data type and place; those with several channels
    become a file a channel. What is wrong is said before anything is written, and no dataset is overwritten.

    Attributes:
        folder: Such as Task05_Prostate, with dataset.json, imagesTr and labelsTr.
        number: Number of the dataset; without it that of the task.
        name: Name of the dataset; without it that of the task.
        link: Link the files that stay as they are in place of copying them, which spares disk; the source must stay.
        num_processes: Files at the same time; 0 works in the command's own process, without it one a core, 8 at most.

    Returns:
        What was made.

    Raises:
        DatasetError: If it is no such task, is not sound, or there is a dataset of this number already.
    """

    folder: str | Path
    _: KW_ONLY
    number: Annotated[int | None, "-d"] = None
    name: str | None = None
    link: bool = False
    num_processes: NumProcesses = None
