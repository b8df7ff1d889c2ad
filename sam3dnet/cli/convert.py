"""sam3d_convert: from a task of the Medical Segmentation Decathlon or of nnU-Net v1 to a dataset of nnU-Net v2."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sam3dnet.cli.command import run_command
from sam3dnet.settings.conversion import ConversionSettings
from sam3dnet.settings.function import function_of

if TYPE_CHECKING:
    from sam3dnet.conversion.convert import Conversion


def _convert(settings: ConversionSettings) -> "Conversion":
    from sam3dnet.conversion.convert import convert
    from sam3dnet.preprocessing.folders import activate_folders

    return convert(settings, activate_folders(settings.root))


convert = function_of(ConversionSettings, _convert, "convert")


def print_conversion(made: "Conversion") -> int:
    """Print what was made and the command that goes on with it; give the exit status."""
    channels = "1 channel" if made.num_channels == 1 else f"{made.num_channels} channels"
    others = "1 other" if made.num_others == 1 else f"{made.num_others} others"
    counts = f"{made.num_training} training cases and {others}, {channels}"
    root = [] if made.root is None else ["--root", str(made.root)]
    print(f"{made.dataset}: {counts}, from the format of {made.kind}")
    print("Next: " + shlex.join(["sam3d_plan_and_preprocess", "-d", str(made.number), *root]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(convert, "sam3d_convert", argv, exit_status=print_conversion)


if __name__ == "__main__":
    sys.exit(main())
