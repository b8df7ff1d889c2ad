"""sam3d_dicom: what a folder with DICOM files holds."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sam3dnet.cli.command import Subcommand, run_subcommand
from sam3dnet.settings.dicom import DicomListSettings
from sam3dnet.settings.function import function_of


def _list(settings: DicomListSettings) -> list[str]:
    from sam3dnet.dicom.listing import list_series

    return list_series(Path(settings.source))


list_series = function_of(DicomListSettings, _list, "list_series")


def _print_lines(lines: list[str]) -> int:
    print("\n".join(lines))
    return 0


COMMANDS = {"list": Subcommand(list_series, _print_lines)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_subcommand(COMMANDS, "sam3d_dicom", argv)


if __name__ == "__main__":
    sys.exit(main())
