"""sam3d_dicom: what a folder with DICOM files holds, and a dataset made from it."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.cli.command import STATUS_SOME_FAILED, Subcommand, run_subcommand
from sam3dnet.settings.dicom import DicomImportSettings, DicomListSettings
from sam3dnet.settings.function import function_of

if TYPE_CHECKING:
    from sam3dnet.dicom.importing import Imported

_log = logging.getLogger("sam3dnet.cli.dicom")


def _list(settings: DicomListSettings) -> list[str]:
    from sam3dnet.dicom.listing import list_series

    return list_series(Path(settings.source))


list_series = function_of(DicomListSettings, _list, "list_series")


def _import(settings: DicomImportSettings) -> "Imported":
    from sam3dnet.dicom.importing import import_dataset
    from sam3dnet.preprocessing.folders import activate_folders

    return import_dataset(settings, activate_folders(settings.root))


import_dataset = function_of(DicomImportSettings, _import, "import_dataset")


def print_imported(made: "Imported") -> int:
    """Print what was made, last what became no case; give the exit status."""
    print(f"{made.dataset}: {made.cases} cases, channels {', '.join(made.channels)}, classes {', '.join(made.classes)}")
    print(f"Next: sam3d_plan_and_preprocess -d {made.dataset[7:10]}")
    for name, reason in made.failed.items():
        _log.error("%s: no case: %s", name, reason)
    return STATUS_SOME_FAILED if made.failed else 0


def _print_lines(lines: list[str]) -> int:
    print("\n".join(lines))
    return 0


COMMANDS = {"list": Subcommand(list_series, _print_lines), "import": Subcommand(import_dataset, print_imported)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_subcommand(COMMANDS, "sam3d_dicom", argv)


if __name__ == "__main__":
    sys.exit(main())
