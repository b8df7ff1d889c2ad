"""sam3d_find_best: the best of a dataset's models and ensembles, its post-processing, and how to predict with it."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sam3dnet.cli.command import run_command
from sam3dnet.settings.find_best import FindBestSettings
from sam3dnet.settings.function import function_of

if TYPE_CHECKING:
    from sam3dnet.evaluation.find_best import Found


def _find_best(settings: FindBestSettings) -> "Found":
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(settings.root)

    from sam3dnet.evaluation.find_best import find_best

    return find_best(settings, folders)


find_best = function_of(FindBestSettings, _find_best, "find_best")


def print_found(found: "Found") -> int:
    """Print the scores and how to predict; give the exit status."""
    print(found.text)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(find_best, "sam3d_find_best", argv, exit_status=print_found)


if __name__ == "__main__":
    sys.exit(main())
