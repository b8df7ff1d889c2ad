"""Further loggers beside nnU-Net's own: TensorBoard, and nnU-Net's for Weights & Biases."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from sam3dnet.errors import Sam3dError

TENSORBOARD_FOLDER = "tensorboard"
WANDB_VARIABLE = "nnUNet_wandb_enabled"


class TensorBoardLogger:
    """Writes what nnU-Net's MetaLogger hands to its loggers as scalars for TensorBoard, one step an epoch.

    Args:
        folder: Where the event files go.
        first_epoch: Epoch that comes next; an interrupted training's values from there on are not shown.
    """

    def __init__(self, folder: Path, first_epoch: int = 0):
        _require("tensorboard", "--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def update_config(self, config: dict[str, Any]) -> None:
        """Keep the settings of the training as text."""
        self._writer.add_text("configuration", f"```\n{json.dumps(config, indent=2, default=str)}\n```")

    def log(self, key: str, value: Any, step: int) -> None:
        """Write a value of an epoch and hand it to the disk."""
        self._writer.add_scalar(key, float(value), step)
        self._writer.flush()

    def log_summary(self, key: str, value: Any) -> None:
        """Write a value that there is once."""
        self._writer.add_scalar(f"summary/{key}", float(value), 0)
        self._writer.flush()


def enable_wandb() -> None:
    """Switch nnU-Net's logger for Weights & Biases on, which reads nnUNet_wandb_project and nnUNet_wandb_mode.

    Raises:
        Sam3dError: If the package wandb is not installed.
    """
    _require("wandb", "--wandb")
    os.environ[WANDB_VARIABLE] = "1"


def _require(package: str, option: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Sam3dError(f"{option}: the package {package} is not installed; type: pip install {package}")
