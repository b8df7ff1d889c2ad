"""The trainer: nnU-Net's extension point, calling our network, schedule, checkpoints and progress."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from math import isfinite
from os.path import join
from pathlib import Path
from typing import Any, Literal

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from sam3dnet.devices import autocast_on, half_type
from sam3dnet.errors import PlanError
from sam3dnet.inference.economy import release_cached
from sam3dnet.network.compiling import compile_network
from sam3dnet.network.segmentation import SegmentationNetwork
from sam3dnet.network.transfer import Meaning
from sam3dnet.planning.plan import planned_memory
from sam3dnet.planning.sides import mirrored_sides
from sam3dnet.preprocessing.cases import channel_names, output_names
from sam3dnet.training.augmentation import SHORTEST_BLURRED, with_short_axes, with_sides
from sam3dnet.training.checkpoint import (
    BEST,
    FINAL,
    LATEST,
    content_of,
    load_safely,
    note_new_training,
    plain,
    put_earlier_away,
    remove_earlier,
    restore,
    save_atomically,
)
from sam3dnet.training.distributed import (
    agreed,
    are_joined,
    check_batch_size,
    first_process_first,
    share_of_batch,
    wrapped,
)
from sam3dnet.training.drawing import QuestionDrawer, finest, with_own_target
from sam3dnet.training.epoch_log import LOG_FILE, Epoch, append_epoch, carry_on, in_words, keep_epochs_before
from sam3dnet.training.first_step import fit_first_step, is_measured
from sam3dnet.training.loaders import transforming_loader, without_workers
from sam3dnet.training.optimizer import (
    LEARNING_RATE_NEW,
    WEIGHT_DECAY,
    build_optimizer,
    clip_gradients,
    set_learning_rate,
)
from sam3dnet.training.progress import EpochProgress, format_seconds
from sam3dnet.training.prompt_training import PromptTraining, ValidationPrompter
from sam3dnet.training.pseudo_labels import LabelledAndPseudoLabelled, PseudoLabels
from sam3dnet.training.random_state import restore_random_state
from sam3dnet.training.rare_classes import RareClasses, exponent_at
from sam3dnet.training.schedule import Budget, learning_rate_factor
from sam3dnet.training.starting import StartingPoint, kind_of_network, meaning_of
from sam3dnet.training.target_classes import make_classes
from sam3dnet.training.validation import forget_validation, is_ours_to_validate, require_unseen, validate_trained

SECONDS_BETWEEN_PLOTS = 300.0  # nnU-Net's plot takes seconds to draw
PROMPT_LOSS_WEIGHT = 0.5


class nnUNetTrainerSAM3D(nnUNetTrainer):
    """Train the SAM-3D network of a SAM3DPlans plan inside nnU-Net.

    Loss, data loading and augmentation are nnU-Net's. Length and weights are set through attributes before training:
    `num_epochs`, `minutes`, `num_iterations_per_epoch`, `sam_checkpoint`, `starting_point`.
    """

    current_epoch: int
    device: torch.device
    is_ddp: bool
    network: Any
    optimizer: Any
    loss: Any
    my_init_kwargs: dict[str, Any]
    _best_ema: float | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | Literal["all"],
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the base class's signature, which it inspects)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp or device.index is not None:  # nnU-Net would take the first card
            self.device = device
        self.num_epochs = 300
        self.minutes: float | None = None
        self.sam_checkpoint: str | Path | None = None
        self.starting_point: StartingPoint | None = None
        self.initial_lr = LEARNING_RATE_NEW
        self.weight_decay = WEIGHT_DECAY
        self.num_val_iterations_per_epoch = 25
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=half_type(device) is torch.float16)
        self.budget = Budget(self.num_epochs)
        self._last_plot = time.monotonic()
        self._resume: dict[str, Any] | None = None
        self._seconds_before = 0.0
        self._loading_own_weights = False
        self._has_saved = False  # in this run
        self.prompts: PromptTraining | None = None  # made with the network
        self._rare_classes: RareClasses | None = None  # made with the loss
        self.iterations_done = 0
        self.training_cases: frozenset[str] = frozenset()  # of all runs of this training
        self.started_from: frozenset[str] = frozenset()  # those of the models that it began with
        self.pseudo_labelled: dict[str, str] = {}  # further cases, and by what each is known again

    def initialize(self) -> None:
        """Build the network and load SAM's weights where the plan wants them and no checkpoint will bring them."""
        with self._distributed(False):  # nnU-Net would wrap the network for a card
            super().initialize()
            self._prepare_network()
            self._compile()
        if self.is_ddp:
            self.network = wrapped(self.network, self.device)

    def follow(self, plans: dict[str, Any]) -> None:
        """Start anew, with a network by another plan."""
        self.plans_manager = PlansManager(plans)
        self.configuration_manager = self.plans_manager.get_configuration(self.configuration_name)
        self.my_init_kwargs |= {"plans": plans}
        self.network = self.optimizer = self.loss = None  # their memory is needed
        self.was_initialized = False
        gc.collect()  # a compiled network refers to itself
        release_cached(self.device)
        self.initialize()

    @contextmanager
    def _distributed(self, value: bool) -> Iterator[None]:
        """Let the base class take it that there are several processes, or one."""
        before, self.is_ddp = self.is_ddp, value
        try:
            yield
        finally:
            self.is_ddp = before

    def _set_batch_size_and_oversample(self) -> None:
        """Share the plan's batch among the processes, as nnU-Net does."""
        check_batch_size(self.configuration_manager.batch_size)
        with self._distributed(are_joined()):
            super()._set_batch_size_and_oversample()

    def _build_loss(self) -> nn.Module:
        """Return nnU-Net's loss; Dice over a batch is over that of all processes, rare classes weigh more at first."""
        with self._distributed(are_joined()):
            loss: nn.Module = super()._build_loss()
        cross_entropy = getattr(getattr(loss, "loss", loss), "ce", None)  # within that of deep supervision
        if isinstance(cross_entropy, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss):
            self._rare_classes = RareClasses(cross_entropy, self.label_manager.num_segmentation_heads)
        return loss

    def _prepare_network(self) -> None:
        if self._arch_kwargs().get("prompts"):
            stride = self._arch_kwargs()["token_stride"]
            classes = make_classes(self.label_manager, self.configuration_manager.spacing, stride)
            heads = self.label_manager.num_segmentation_heads
            self.prompts = PromptTraining(classes, heads, self.local_rank, validates_on_seen=self.fold == "all")
        if self.is_cascaded and isinstance(self.network, SegmentationNetwork):
            self.network.start_from_images(len(channel_names(self.dataset_json)))
        point = None if self._loading_own_weights else self.starting_point
        own, network = meaning_of(self.dataset_json, self.is_cascaded), self._bare_network()
        holds_encoder = point is not None and point.holds("image_encoder", network, own)
        if self._arch_kwargs().get("pretrained") and not self._loading_own_weights and not holds_encoder:
            from sam3dnet.network.sam_weights import load_sam_weights
            from sam3dnet.network.weights_file import require_sam_weights

            encoder = self._arch_kwargs()["encoder"]
            planned = self.plans_manager.plans.get("sam3d", {}).get("weights")
            with first_process_first():
                path = require_sam_weights(encoder, self.sam_checkpoint, planned)
            load_sam_weights(network.get_submodule("image_encoder"), path)
            self.print_to_log_file(f"SAM weights for {encoder}: {path}")
        if point is not None:
            self._start_from(point, own)

    def _start_from(self, point: StartingPoint, own: Meaning) -> None:
        """Take over what means the same in a model that was trained before."""
        point.require_kin(kind_of_network(self.configuration_manager))
        self.started_from = point.seen
        phrases = self._arch_kwargs().get("text")

        def build(channels: int, classes: int) -> nn.Module:
            outputs = classes if phrases is None else len(phrases)  # no entry depends on the number of phrases
            return self.build_network_architecture(self.plans_manager, self.configuration_manager, channels, outputs)

        taken = point.give_to(self._bare_network(), own, build)
        for line in (f"starting from {point.file} (--from {point.source})", *taken.in_words()):
            self.print_to_log_file(line)

    def _do_i_compile(self) -> bool:
        """Leave our networks to `_compile`; others are compiled by nnU-Net as a whole."""
        return not isinstance(self.network, SegmentationNetwork) and super()._do_i_compile()

    def _compile(self) -> None:
        """Compile our network where nnU-Net would compile."""
        if isinstance(self.network, SegmentationNetwork) and super()._do_i_compile():
            compile_network(self.network)

    def _arch_kwargs(self) -> dict[str, Any]:
        return self.configuration_manager.network_arch_init_kwargs

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """Return nnU-Net's settings with the plan's mirror axes, in training and at prediction."""
        rotation, dummy_2d, patch_size, stock = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axes = tuple(self.plans_manager.plans.get("sam3d", {}).get("mirror_axes", stock))
        sides = mirrored_sides(self.plans_manager.plans, self.dataset_json)
        for_nnunet = tuple(axis for axis in axes if sides is None or axis != sides.axis)
        self.inference_allowed_mirroring_axes = for_nnunet or None  # an empty tuple ends nnU-Net's predictor
        return rotation, dummy_2d, patch_size, axes

    def get_training_transforms(self, patch_size: Any, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Return nnU-Net's transforms; mirroring swaps the sides, and thin patches are blurred within their planes."""
        composed = super().get_training_transforms(patch_size, *args, **kwargs)
        if min(patch_size) < SHORTEST_BLURRED:
            composed = with_short_axes(composed)
        sides = mirrored_sides(self.plans_manager.plans, self.dataset_json)
        return composed if sides is None else with_sides(composed, sides)

    def get_dataloaders(self) -> tuple:
        """Return nnU-Net's loaders, which draw prompts too where the network answers them."""
        if self.prompts is None:
            return tuple(super().get_dataloaders())
        with without_workers() as workers:
            training, validation = super().get_dataloaders()
        # Half of the images: all of every second batch. Under DDP half of every batch, since it wants every parameter
        # to be used in every step.
        classes = self.prompts.classes
        drawer = QuestionDrawer(classes, share=0.5 if self.is_ddp else 1.0)
        fewer = min(workers, max(1, workers // 2))  # nnU-Net's numbers
        pin_memory = self.device.type == "cuda"
        return (
            transforming_loader(training, drawer, workers, max(6, workers // 2), pin_memory),
            transforming_loader(validation, QuestionDrawer(classes), fewer, max(3, workers // 4), pin_memory),
        )

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return nnU-Net's two parts of the fold, the first with pseudo-labelled cases, and note what is trained on.

        Raises:
            CheckpointError: If a training that is continued has been trained on cases that validate now.
        """
        training, validation = super().get_tr_and_val_datasets()
        new = {*validation.identifiers} - {*training.identifiers}
        require_unseen(new, self.training_cases, Path(self.output_folder))
        self.training_cases |= {*training.identifiers}
        further = {*self.pseudo_labelled} - {*training.identifiers} - {*validation.identifiers}
        if not further:
            return training, validation
        folder = Path(self.preprocessed_dataset_folder_base)
        made = PseudoLabels(self.plans_manager.plans, self.configuration_name, self.dataset_json, folder, self.fold)
        self.print_to_log_file(f"{len(further)} images without labels are trained on, too")
        return LabelledAndPseudoLabelled(training, made.dataset(further)), validation

    @property
    def _epoch_log(self) -> Path:
        return Path(self.output_folder) / LOG_FILE

    def _bare_network(self) -> nn.Module:
        network = self.network.get_submodule("module") if self.is_ddp else self.network
        bare: nn.Module = getattr(network, "_orig_mod", network)
        return bare

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """Return AdamW; the learning rate is set before every step, so there is no scheduler."""
        return build_optimizer(self.network, bool(self._arch_kwargs().get("pretrained"))), None

    def plot_network_architecture(self) -> None:
        """Do nothing: nnU-Net's plot may hang on a network that is not its own."""

    def run_training(self) -> None:
        """Train until the budget is spent; a training that had ended goes on where the budget is a longer one now."""
        if self.had_ended():
            length = (
                f"{self.current_epoch} epochs" if self.minutes is None else f"{self._seconds_before / 60:.1f} minutes"
            )
            self.print_to_log_file(f"the training is done already, after {length}; --epochs or --minutes beyond go on")
            return
        self.on_train_start()
        for _ in count():
            if self._fraction_done(self.current_epoch) >= 1:
                break
            self.on_epoch_start()
            self._train_epoch()
            self._validate_epoch()
            self.on_epoch_end()
        self.on_train_end()

    def had_ended(self) -> bool:
        """Tell whether a training that is continued had come to its end, and had written its final checkpoint."""
        budget = Budget(self.num_epochs, self.minutes, self._seconds_before)
        if self._resume is None or budget.fraction(self.current_epoch) < 1:
            return False
        names = {path.name for path in Path(self.output_folder).glob("checkpoint_*.pth")}
        return FINAL in names and LATEST not in names

    def _fraction_done(self, epochs_done: float) -> float:
        """Return the part of the training that is done; by the clock it is the first process's for all."""
        fraction = self.budget.fraction(epochs_done)
        return agreed(fraction, self.device) if self.is_ddp and self.minutes is not None else fraction

    def on_train_start(self) -> None:
        """Measure the first step on a card, start the clock, and restore the state of a continued training."""
        if not self.was_initialized:
            self.initialize()
        if is_measured(self.device) and self._resume is None:
            planned = planned_memory(self.plans_manager.plans, self.configuration_name)
            peak = fit_first_step(self)
            self._go_on_from({})  # what that step counted does not count
            self.print_to_log_file(f"first step: {peak / 1e9:.2f} GB at its peak on {self.device}, planned {planned}")
        super().on_train_start()
        self.budget = Budget(self.num_epochs, self.minutes, self._seconds_before)
        if self._resume is not None and not self.local_rank:  # other processes must not draw the same as the first
            restore_random_state(self._resume["random_state"])
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.network.parameters())
        self.print_to_log_file(f"parameters: {trained:,} tuned of {total:,}")
        if self._writes_checkpoints and not self._loading_own_weights:
            note_new_training(Path(self.output_folder))
        self.budget.start()

    def _train_epoch(self) -> None:
        self.on_train_epoch_start()
        progress = EpochProgress(self.current_epoch, self.num_iterations_per_epoch, show=not self.local_rank)
        outputs: list[dict] = []
        for iteration in range(self.num_iterations_per_epoch):
            done = self.current_epoch + iteration / self.num_iterations_per_epoch
            fraction = self._fraction_done(done)
            if outputs and fraction >= 1:
                break
            set_learning_rate(self.optimizer, learning_rate_factor(fraction))
            if self._rare_classes is not None:
                self._rare_classes.exponent = exponent_at(fraction)
            outputs.append(self.train_step(next(self.dataloader_train)))
            progress.update(float(outputs[-1]["loss"]), self.budget.seconds_left(done))
        progress.close()
        if self._rare_classes is not None:
            self._rare_classes.weigh_equally()
        self.on_train_epoch_end(outputs)

    def _validate_epoch(self) -> None:
        with torch.no_grad():
            self.on_validation_epoch_start()
            outputs, answers = [], []
            keeps_target = self.prompts is not None and self.label_manager.has_ignore_label
            for iteration in range(self.num_val_iterations_per_epoch):
                batch = next(self.dataloader_val)
                outputs.append(self.validation_step(with_own_target(batch) if keeps_target else batch))
                if self.prompts is not None:
                    answers.append(self._answer_prompts(batch, self.prompts.validating(batch, iteration)))
            self.on_validation_epoch_end(outputs)
            carry_on(self.logger.get_value("ema_fg_dice", step=None), self.logger.get_value("mean_fg_dice", step=-1))
        if self.prompts is not None:
            self.prompts.conclude_epoch(answers, self._bare_network())

    def _answer_prompts(self, batch: dict, prompter: ValidationPrompter) -> Any:
        data = batch["data"].to(self.device, non_blocking=True)
        with autocast_on(self.device):
            return self.network(data, prompter)[1]

    def on_train_epoch_start(self) -> None:
        """Note the learning rate of the epoch; it moves with every iteration."""
        self.network.train()
        factor = learning_rate_factor(self._fraction_done(self.current_epoch))
        set_learning_rate(self.optimizer, factor)
        self.logger.log("lrs", self.optimizer.param_groups[0]["lr"], self.current_epoch)

    def train_step(self, batch: dict) -> dict:
        """Take one optimiser step on a batch of nnU-Net's loader; half precision on a card, float32 elsewhere."""
        loss = self.accumulate_gradients(batch)
        if not torch.isfinite(loss):
            raise PlanError(
                f"the loss became {loss.item()} in epoch {self.current_epoch} on cases {list(batch.get('keys', []))}; "
                "look at these images, or lower the learning rate"
            )
        self.grad_scaler.unscale_(self.optimizer)
        clip_gradients(self.network)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.iterations_done += 1
        return {"loss": loss.cpu().numpy()}

    def accumulate_gradients(self, batch: dict) -> torch.Tensor:
        """Compute the loss of a batch and its gradients, as `train_step` takes them."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = self._to_device(batch["target"])
        if self._rare_classes is not None:
            self._rare_classes.note(finest(target))
        self.optimizer.zero_grad(set_to_none=True)
        with autocast_on(self.device):
            loss = self._loss(batch, data, target)
        share = share_of_batch(self.batch_size, self.configuration_manager.batch_size)
        self.grad_scaler.scale(loss * share).backward()
        return loss.detach()

    def _loss(self, batch: dict, data: torch.Tensor, target: Any) -> torch.Tensor:
        if self.prompts is None or not (self.is_ddp or self.iterations_done % 2 == 0):
            return self.loss(self.network(data), target)
        logits, answer = self.network(data, self.prompts.asking(batch, self.iterations_done))
        return self.loss(logits, target) + PROMPT_LOSS_WEIGHT * answer.loss()

    def _to_device(self, target: Any) -> Any:
        if isinstance(target, list):
            return [entry.to(self.device, non_blocking=True) for entry in target]
        return target.to(self.device, non_blocking=True)

    def on_epoch_end(self) -> None:
        """Write a line of JSON, the checkpoints, and now and then the plot."""
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time.time(), epoch)
        if not self.local_rank:  # first the line: --continue drops it again where no checkpoint was written any more
            self._report_epoch(epoch)
        self._save_epoch()
        self._plot(at_most_every_seconds=SECONDS_BETWEEN_PLOTS)
        self.current_epoch += 1

    @property
    def _writes_checkpoints(self) -> bool:
        return not self.local_rank and not self.disable_checkpointing

    def _save_epoch(self) -> None:
        """Write the best checkpoint, then the latest, which knows how good the best one is.

        With the first ones of a run what was found out about the weights before goes; a training that began anew puts
        away the final checkpoint of the one before, which would be taken for its own.
        """
        is_first, self._has_saved = not self._has_saved, True
        if is_first and self._writes_checkpoints:
            forget_validation(Path(self.output_folder_base), Path(self.output_folder))
        moving_dice = float(self.logger.get_value("ema_fg_dice", step=-1))
        if self._best_ema is None or not isfinite(self._best_ema) or moving_dice > self._best_ema:
            self._best_ema = moving_dice
            self.save_checkpoint(join(self.output_folder, BEST))
        if is_first and self._writes_checkpoints and not self._loading_own_weights:
            told = put_earlier_away(Path(self.output_folder))
            if told is not None:
                self.print_to_log_file(told)
        self.save_checkpoint(join(self.output_folder, LATEST))

    def on_train_end(self) -> None:
        """Write the final checkpoint and plot, and stop the loaders."""
        super().on_train_end()
        if self._writes_checkpoints:
            remove_earlier(Path(self.output_folder))
        self._plot(at_most_every_seconds=0)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the fold's validation cases as `sam3d_predict` does, and score them.

        2D configurations are left to nnU-Net.

        Args:
            save_probabilities: Whether to write probabilities too, for ensembles.

        Raises:
            FailedCasesError: If some could not be predicted; the others are scored.
        """
        if is_ours_to_validate(self.configuration_manager):
            validate_trained(self, self._bare_network(), save_probabilities)
        else:
            super().perform_actual_validation(save_probabilities)

    def _plot(self, at_most_every_seconds: float) -> None:
        if self.local_rank or time.monotonic() - self._last_plot < at_most_every_seconds:
            return
        self.logger.plot_progress_png(self.output_folder)
        self._last_plot = time.monotonic()

    def _report_epoch(self, epoch: int) -> None:
        if not self._has_saved:
            keep_epochs_before(epoch, self._epoch_log)
        value = self.logger.get_value
        values = {
            "epoch": epoch,
            "iterations": self.iterations_done,
            "seconds": round(self.budget.seconds(), 1),
            "learning_rate": value("lrs", step=-1),
            "train_loss": value("train_losses", step=-1),
            "val_loss": value("val_losses", step=-1),
            "pseudo_dice": value("dice_per_class_or_region", step=-1),
            "prompted_dice": self.prompts and self.prompts.dice,
            "reach_tokens": self.prompts and self.prompts.reach_tokens,
        }
        line = Epoch.model_validate(plain(values))
        append_epoch(self._epoch_log, line)
        left = format_seconds(self.budget.seconds_left(epoch + 1))
        classes = [name for name in output_names(self.dataset_json) if name != "background"]
        self.print_to_log_file(f"{in_words(line, classes)}; training ends in {left}")

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint with nnU-Net's keys and ours, whole or not at all, loadable with weights_only=True."""
        if self._writes_checkpoints:
            save_atomically(content_of(self), Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load one of our checkpoints, given as a path or as its content.

        Raises:
            CheckpointError: If the file is damaged or belongs to another network.
        """
        checkpoint: dict[str, Any]
        if isinstance(filename_or_checkpoint, str):
            name, checkpoint = filename_or_checkpoint, load_safely(Path(filename_or_checkpoint), self.device)
        else:
            name, checkpoint = "checkpoint", filename_or_checkpoint
        self._loading_own_weights = True
        if not self.was_initialized:
            self.initialize()
        restore(self, checkpoint, name)

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        for part in (self.prompts, self._rare_classes):
            if part is not None:
                part.restore(state)
