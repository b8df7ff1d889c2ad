"""Compare the planner's estimate of a training step's memory with what a real step takes.

    python benchmarks/memory_estimate.py --json OUT

The estimate is a trace without kernels; the measured step is real: nnU-Net's loss, made-up prompts, gradient clipping,
AdamW. On a CPU its peak is that of live tensor bytes, on a CUDA card the allocator's, under bf16 as in training.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from measuring import Variant, as_markdown, begin, finish, make_parser, shown_mib, working_bytes
from networks import own_arguments
from torch import Tensor, nn

from sam3dnet.devices import autocast_on
from sam3dnet.network.build import SAM3D
from sam3dnet.network.cost import training_cost
from sam3dnet.planning.memory import storage_bytes
from sam3dnet.training.drawing import draw_questions
from sam3dnet.training.optimizer import build_optimizer, clip_gradients
from sam3dnet.training.prompting import TrainingPrompter
from sam3dnet.training.target_classes import Classes

CLASSES = 3
CORRECTIONS = 1
# (encoder, pretrained, crop, token stride, batch, checkpointing, prompts)
CONFIGURATIONS = (
    ("tiny", False, (16, 24, 32), 4, 2, False, False),
    ("tiny", False, (16, 24, 32), 8, 2, False, False),
    ("tiny", False, (24, 40, 32), 4, 3, False, True),
    ("tiny", True, (24, 40, 32), 4, 2, False, False),
    ("small", False, (32, 48, 32), 8, 2, False, True),
    ("small", False, (32, 48, 32), 8, 2, True, False),
    ("small", False, (32, 48, 32), 4, 2, True, False),
    ("small", True, (32, 48, 32), 4, 2, False, False),
    ("small", True, (32, 48, 32), 4, 2, True, True),
    ("small", False, (48, 48, 40), 8, 4, False, False),
    ("vit_b", True, (32, 32, 32), 8, 2, False, False),
    ("vit_b", True, (32, 48, 32), 8, 1, False, True),
    ("vit_b", True, (32, 32, 32), 4, 2, True, False),
    ("vit_b", False, (32, 32, 32), 8, 1, False, False),
)


class Step:
    """A training step as the trainer takes it.

    Args:
        arch_kwargs: Arguments of the network, as in a plan.
        batch: Images in it.
        device: Where it runs.
    """

    def __init__(self, arch_kwargs: dict[str, Any], batch: int, device: torch.device):
        self.prompts = arch_kwargs["prompts"]
        self.stride = tuple(arch_kwargs["token_stride"])
        self.network = SAM3D(1, CLASSES, True, **arch_kwargs).to(device).train()
        self.optimizer = build_optimizer(self.network, arch_kwargs["pretrained"])
        self.image_BCzyx = torch.randn(batch, 1, *arch_kwargs["patch_size"], device=device)
        with torch.no_grad():
            shapes = [level.shape[2:] for level in self.network(self.image_BCzyx)]
        self.targets = [torch.randint(CLASSES, (batch, 1, *shape), device=device).float() for shape in shapes]
        self.loss = make_loss(len(shapes))

    def run(self) -> None:
        """Take a step; no gradient is left."""
        with autocast_on(self.image_BCzyx.device):
            loss = self._loss()
        loss.backward()
        clip_gradients(self.network)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self) -> Tensor:
        if not self.prompts:
            return self.loss(self.network(self.image_BCzyx), self.targets)
        classes = Classes((1, 2), False, None, (1.0, 1.0, 1.0), self.stride)
        questions = draw_questions(self.targets[0].cpu(), classes, np.random.default_rng(0))
        prompter = TrainingPrompter(questions, self.targets[0].cpu(), classes, corrections=CORRECTIONS)
        logits, answer = self.network(self.image_BCzyx, prompter)
        return self.loss(logits, self.targets) + 0.5 * answer.loss()

    def held(self) -> list[Tensor]:
        """Return what is there before and after a step, targets left out as the planner leaves them out."""
        states = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return [self.image_BCzyx, *self.network.parameters(), *self.network.buffers(), *states]

    def peak_bytes(self) -> int:
        """Measure a step after the first, when the optimiser has its state."""
        self.run()
        working = working_bytes(Variant(self.run, lambda: [*self.held(), *self.targets]), self.image_BCzyx.device)
        return working + storage_bytes(self.held())


def make_loss(levels: int) -> nn.Module:
    """Make nnU-Net's loss over all resolutions; the coarsest has no weight."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    weights = np.array([0.5**level for level in range(levels)])
    weights[-1] = 0
    return DeepSupervisionWrapper(loss, weights / weights.sum())


def measure(configuration: tuple, device: torch.device) -> dict[str, Any]:
    """Estimate and measure one configuration."""
    encoder, pretrained, crop, stride, batch, checkpointing, prompts = configuration
    arch_kwargs = own_arguments(crop, stride, encoder, pretrained)
    arch_kwargs |= {"checkpointing": checkpointing, "prompts": prompts}
    start = time.perf_counter()
    estimate = training_cost(arch_kwargs, 1, CLASSES, batch, device=device.type)
    seconds = time.perf_counter() - start
    torch.manual_seed(0)
    measured = Step(arch_kwargs, batch, device).peak_bytes()
    return {
        "encoder": encoder,
        "pretrained": pretrained,
        "crop": list(crop),
        "stride": stride,
        "batch": batch,
        "checkpointing": checkpointing,
        "prompts": prompts,
        "estimate_bytes": estimate,
        "measured_bytes": measured,
        "ratio": estimate / measured,
        "trace_seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each configuration."""
    lines = [["encoder", "crop, stride, batch", "", "estimate MiB", "measured MiB", "estimate / measured", "trace s"]]
    for row in rows:
        options = ["frozen" if row["pretrained"] else "tuned whole"]
        options += [name for name in ("checkpointing", "prompts") if row[name]]
        lines.append(
            [
                row["encoder"],
                f"{'x'.join(map(str, row['crop']))}, {row['stride']}, {row['batch']}",
                ", ".join(options),
                shown_mib(row["estimate_bytes"]),
                shown_mib(row["measured_bytes"]),
                f"{row['ratio']:.3f}",
                f"{row['trace_seconds']:.1f}",
            ]
        )
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--encoders", nargs="+", default=["tiny", "small", "vit_b"], help="of these sizes alone")
    parser.add_argument(
        "--trace-only", type=int, nargs=3, metavar=("Z", "Y", "X"), help="trace ViT-B at this crop, as for a card"
    )
    return parser.parse_args()


def main() -> None:
    """Measure all configurations, print the table, write JSON."""
    a = parse()
    device = begin(a)
    if a.trace_only:
        start = time.perf_counter()
        cost = training_cost(own_arguments(a.trace_only, 4), 1, CLASSES, 2, device="cuda")
        print(f"ViT-B, stride 4, batch 2, bf16: {cost / 1e9:.2f} GB, traced in {time.perf_counter() - start:.1f} s")
        return
    rows = [measure(configuration, device) for configuration in CONFIGURATIONS if configuration[0] in a.encoders]
    finish(a, "memory_estimate", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
