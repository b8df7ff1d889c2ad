"""sam3d_export: a trained model in one file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sam3dnet.cli.command import run_command
from sam3dnet.settings.export import ExportSettings
from sam3dnet.settings.function import function_of


def _export(settings: ExportSettings) -> str:
    from sam3dnet.portable.export import export_model
    from sam3dnet.portable.sources import model_folder

    source = settings.dataset if settings.model_folder is None else settings.model_folder
    with model_folder(source, settings.root, settings.configuration, settings.plans) as folder:
        return export_model(settings, folder)


export = function_of(ExportSettings, _export, "export")


def print_made(made: str) -> int:
    """Print what was written and how it is used; give the exit status."""
    size = f": {Path(made).stat().st_size / 1e6:.1f} MB" if Path(made).is_file() else ""
    if made.endswith(".onnx"):
        print(f"{made}{size}; {Path(made).with_suffix('.json').name} beside it says what is done before and after")
        return 0
    print(f"{made}{size}; predict with: sam3d_predict -i IMAGES -o OUT -m {made}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(export, "sam3d_export", argv, exit_status=print_made)


if __name__ == "__main__":
    sys.exit(main())
