"""What can be asked of `sam3d_dicom`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.settings.common import InFolders


@dataclass(frozen=True)
class DicomListSettings:
    """List the series of a folder or zip file with DICOM files, and which are volumes.

    Attributes:
        source: Folder of any depth, or a zip file.

    Raises:
        DatasetError: If there is no such folder, or pydicom is not installed.
    """

    source: str | Path


@dataclass(frozen=True)
class DicomImportSettings(InFolders):
    """Make a dataset of nnU-Net from DICOM images with DICOM SEG or RTSTRUCT, without names and ids of patients.

    Each series that structures were drawn on is a case; with --channels each study, and structures count that were
    drawn on the first channel.

    Attributes:
        source: Folder of any depth, or a zip file, with images and structures.
        number: Number of the dataset.
        name: Name of the dataset.
        names: JSON file that says which structures are which class, {"GTV.*": "tumour", "BODY": null}: regular
            expressions of their whole names; of null and of what fits none nothing is taken. Without it each name is a
            class.
        channels: JSON file with rules, which series is which channel; see docs/dicom.md. Without it there is one.

    Raises:
        DatasetError: If there is no case, or a dataset of this number is there already.
    """

    source: str | Path
    _: KW_ONLY
    number: Annotated[int, "-d"]
    name: str
    names: str | Path | None = None
    channels: str | Path | None = None
