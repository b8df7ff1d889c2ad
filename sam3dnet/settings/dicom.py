"""What can be asked of `sam3d_dicom list`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DicomListSettings:
    """List the series of a folder or zip file with DICOM files, and which are volumes.

    Attributes:
        source: Folder of any depth, or a zip file.

    Raises:
        DatasetError: If there is no such folder, or pydicom is not installed.
    """

    source: str | Path
