"""TensorBoard and Weights & Biases beside nnU-Net's own logger."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from sam3dnet.errors import Sam3dError
from sam3dnet.training.loggers import WANDB_VARIABLE, TensorBoardLogger, enable_wandb


class Writer:
    """Stands for TensorBoard's, which is an optional package."""

    made: "Writer"

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[str] = []
        self.flushed = 0
        Writer.made = self

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.scalars.append((key, value, step))

    def add_text(self, _key: str, text: str) -> None:
        self.texts.append(text)

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("tensorboard")
def test_what_nnunet_logs_becomes_scalars_by_epoch(tmp_path: Any) -> None:
    import numpy as np
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    nnunet = MetaLogger(str(tmp_path), resume=False)
    nnunet.loggers.append(TensorBoardLogger(tmp_path / "tensorboard", 4))
    nnunet.update_config({"fold": 0, "configuration": "3d_fullres"})
    nnunet.log("train_losses", np.float32(0.5), 0)
    nnunet.log("dice_per_class_or_region", [0.25, np.float64(0.75)], 0)
    nnunet.log("mean_fg_dice", 0.5, 0)
    nnunet.log_summary("final_val/foreground_dice", 0.5)
    assert (Writer.made.folder, Writer.made.purge_step) == (str(tmp_path / "tensorboard"), 4)
    assert Writer.made.scalars == [
        ("train_losses", 0.5, 0),
        ("dice_per_class_or_region/class_1", 0.25, 0),
        ("dice_per_class_or_region/class_2", 0.75, 0),
        ("mean_fg_dice", 0.5, 0),
        ("ema_fg_dice", 0.5, 0),
        ("summary/final_val/foreground_dice", 0.5, 0),
    ]
    assert '"configuration": "3d_fullres"' in Writer.made.texts[0]
    assert Writer.made.flushed == len(Writer.made.scalars)


def test_missing_packages_are_told_with_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(WANDB_VARIABLE, raising=False)
    with pytest.raises(Sam3dError, match=r"--tensorboard: .* not installed; type: pip install tensorboard"):
        TensorBoardLogger(tmp_path)
    with pytest.raises(Sam3dError, match=r"--wandb: .* not installed; type: pip install wandb"):
        enable_wandb()


def test_wandb_is_nnunets_own_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    monkeypatch.setenv(WANDB_VARIABLE, "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    logger = MetaLogger(str(tmp_path), resume=False)
    assert not logger._is_logger_enabled(WANDB_VARIABLE)
    enable_wandb()
    assert logger._is_logger_enabled(WANDB_VARIABLE)
