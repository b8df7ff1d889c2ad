"""sam3d_train: train one fold of a planned dataset."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sam3dnet.cli.command import run_command
from sam3dnet.settings.function import function_of
from sam3dnet.settings.training import TrainingSettings


def _train(settings: TrainingSettings) -> Path:
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(settings.root)

    from sam3dnet.training.run import train_fold, validate_fold

    return validate_fold(settings, folders) if settings.validate_only else train_fold(settings, folders)


train = function_of(TrainingSettings, _train, "train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(train, "sam3d_train", argv)


if __name__ == "__main__":
    sys.exit(main())
