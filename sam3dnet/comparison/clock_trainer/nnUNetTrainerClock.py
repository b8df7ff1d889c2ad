"""Stock nnU-Net, trained for a given time on the clock instead of a given number of epochs.

nnU-Net finds the class by its name in the folder that the variable nnUNet_extTrainer holds. Everything is stock (loss,
augmentation, optimiser, the poly rule) but for the schedule: the learning rate follows the elapsed fraction of the
budget, iteration by iteration, and training ends when the budget is spent.
"""

import json
import os
import time
from pathlib import Path

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from sam3dnet.preprocessing.cores import cores_of_job

MINUTES_VARIABLE = "nnUNet_clock_minutes"
EPOCHS_IN_BUDGET = 5


class ClockPolyLR(PolyLRScheduler):
    """nnU-Net's poly rule whose position is the time since `start()`, whatever step is asked for."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, budget_seconds: float) -> None:
        self.budget_seconds = budget_seconds
        self.started_at: float | None = None
        super().__init__(optimizer, initial_lr, budget_seconds)

    def start(self) -> None:
        """Let the budget begin now."""
        self.started_at = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since `start()`, 0 before it."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate that belongs to the elapsed time; `current_step` is not looked at."""
        super().step(min(self.elapsed_seconds, 0.999 * self.budget_seconds))


class nnUNetTrainerClock(nnUNetTrainer):
    """`nnUNetTrainer` with a budget in minutes, read from the variable nnUNet_clock_minutes."""

    lr_scheduler: ClockPolyLR

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.budget_seconds = 60 * float(os.environ.get(MINUTES_VARIABLE, "20"))
        self.num_val_iterations_per_epoch = 1
        self.iterations_done = 0

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ClockPolyLR]:
        """Return nnU-Net's own optimiser, and the poly rule on the clock."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, ClockPolyLR(optimizer, self.initial_lr, self.budget_seconds)

    def train_step(self, batch: dict) -> dict:
        """Run nnU-Net's step at the learning rate of this moment."""
        self.lr_scheduler.step()
        result = super().train_step(batch)
        self.iterations_done += 1
        return result

    def run_training(self) -> None:
        """Train until the budget is spent; the clock starts when the first batch is ready."""
        if self.device.type == "cpu":  # nnU-Net's command has asked for as many threads as the machine has cores
            torch.set_num_threads(cores_of_job())
        self.on_train_start()
        self.lr_scheduler.start()
        while not self._budget_spent():
            self._run_epoch(until_seconds=(self.current_epoch + 1) / EPOCHS_IN_BUDGET * self.budget_seconds)
        self.on_train_end()
        self._write_clock()

    def _budget_spent(self) -> bool:
        """Tell whether less than half an iteration is left, so that on average the budget is met."""
        elapsed = self.lr_scheduler.elapsed_seconds
        half_iteration = 0.5 * elapsed / self.iterations_done if self.iterations_done else 0.0
        return elapsed + half_iteration >= self.budget_seconds

    def _run_epoch(self, until_seconds: float) -> None:
        self.on_epoch_start()
        self.on_train_epoch_start()
        train_outputs = [self.train_step(next(self.dataloader_train))]
        while not self._budget_spent() and self.lr_scheduler.elapsed_seconds < until_seconds:
            train_outputs.append(self.train_step(next(self.dataloader_train)))
        self.seconds_of_last_step = self.lr_scheduler.elapsed_seconds
        self.on_train_epoch_end(train_outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            steps = range(self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in steps])
        self.on_epoch_end()

    def _write_clock(self) -> None:
        record = {
            "iterations": self.iterations_done,
            "epochs": self.current_epoch,
            "budget_seconds": self.budget_seconds,
            "seconds": self.seconds_of_last_step,
            "batch_size": int(self.batch_size),
            "patch_size": [int(n) for n in self.configuration_manager.patch_size],
        }
        (Path(self.output_folder) / "clock.json").write_text(json.dumps(record, indent=1))
