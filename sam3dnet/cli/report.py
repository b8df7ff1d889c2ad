"""sam3d_report: plan, training, validation and telling cases of a trained fold in one HTML file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sam3dnet.cli.command import run_command
from sam3dnet.settings.function import function_of
from sam3dnet.settings.report import ReportSettings


def _report(settings: ReportSettings) -> Path:
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(settings.root)

    from sam3dnet.evaluation.report import write_report

    return write_report(settings, folders)


report = function_of(ReportSettings, _report, "report")


def print_file(file: Path) -> int:
    """Print where the report is; give the exit status."""
    print(f"Report: {file}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(report, "sam3d_report", argv, exit_status=print_file)


if __name__ == "__main__":
    sys.exit(main())
