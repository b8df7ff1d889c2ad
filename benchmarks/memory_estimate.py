"""Compare the planner's estimate of a training step's memory with what a real step takes.

    python benchmarks/memory_estimate.py --json OUT

The estimate is a trace without kernels; the measured step is real: nnU-Net's loss, made-up prompts, gradient clipping,
AdamW. On a CPU its peak is that of live tensor bytes, on a CUDA card the allocator's, under bf16 as in training; the
configurations for a card are larger ones.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from measuring import as_markdown, begin, finish, make_parser, shown_mib

from sam3dnet.check.batch import CLASSES
from sam3dnet.check.networks import Shape, own_arguments
from sam3dnet.check.step import own_step
from sam3dnet.network.cost import training_cost
from sam3dnet.planning.methods import DEFAULT_METHOD, DEFAULT_TUNING, METHODS


class Configuration(NamedTuple):
    """What decides on the memory of a step."""

    encoder: str
    pretrained: bool
    crop: Shape
    stride: int
    batch: int
    checkpointing: bool
    prompts: bool
    tuning: str = DEFAULT_TUNING
    method: str = DEFAULT_METHOD


DEFAULTS = (None, DEFAULT_TUNING, DEFAULT_METHOD)  # None: of results that do not say it
CPU_CONFIGURATIONS = (
    Configuration("tiny", False, (16, 24, 32), 4, 2, False, False),
    Configuration("tiny", False, (16, 24, 32), 8, 2, False, False),
    Configuration("tiny", False, (24, 40, 32), 4, 3, False, True),
    Configuration("tiny", True, (24, 40, 32), 4, 2, False, False),
    Configuration("small", False, (32, 48, 32), 8, 2, False, True),
    Configuration("small", False, (32, 48, 32), 8, 2, True, False),
    Configuration("small", False, (32, 48, 32), 4, 2, True, False),
    Configuration("small", True, (32, 48, 32), 4, 2, False, False),
    Configuration("small", True, (32, 48, 32), 4, 2, True, True),
    Configuration("small", False, (48, 48, 40), 8, 4, False, False),
    Configuration("vit_b", True, (32, 32, 32), 8, 2, False, False),
    Configuration("vit_b", True, (32, 48, 32), 8, 1, False, True),
    Configuration("vit_b", True, (32, 32, 32), 4, 2, True, False),
    Configuration("vit_b", False, (32, 32, 32), 8, 1, False, False),
)
CARD_CONFIGURATIONS = (
    Configuration("small", False, (64, 64, 64), 8, 2, False, True),
    Configuration("small", False, (96, 128, 128), 8, 2, False, True),
    Configuration("small", False, (160, 160, 160), 8, 2, False, True),
    Configuration("small", False, (160, 160, 160), 8, 2, True, True),
    Configuration("vit_b", True, (64, 64, 64), 4, 2, False, True),
    Configuration("vit_b", True, (96, 96, 96), 8, 2, False, True),
    Configuration("vit_b", True, (128, 128, 128), 8, 2, False, True),
    Configuration("vit_b", True, (128, 128, 128), 8, 2, True, True),
    Configuration("vit_b", True, (160, 160, 160), 8, 2, True, True),
    Configuration("vit_b", True, (96, 96, 96), 8, 2, False, True, "lora"),
    Configuration("vit_b", False, (96, 96, 96), 8, 2, False, True),
    Configuration("vit_b", True, (64, 64, 64), 4, 2, False, False, DEFAULT_TUNING, "3dsam-adapter"),
    Configuration("vit_b", True, (96, 96, 96), 16, 2, False, False, DEFAULT_TUNING, "refsam3d"),
    Configuration("vit_b", True, (64, 64, 64), 8, 2, False, False, DEFAULT_TUNING, "3dmedsam"),
)


def measure(configuration: Configuration, device: torch.device) -> dict[str, Any]:
    """Estimate and measure one configuration."""
    arch_kwargs = network_arguments(configuration)
    network_class = METHODS[configuration.method].network_class
    start = time.perf_counter()
    estimate = training_cost(
        arch_kwargs, 1, CLASSES, configuration.batch, device=device.type, network_class=network_class
    )
    seconds = time.perf_counter() - start
    torch.manual_seed(0)
    measured = own_step(arch_kwargs, configuration.batch, device, network_class).peak_bytes()
    return configuration._asdict() | {
        "estimate_bytes": estimate,
        "measured_bytes": measured,
        "ratio": estimate / measured,
        "trace_seconds": seconds,
    }


def network_arguments(configuration: Configuration) -> dict[str, Any]:
    """Give the network's arguments, as a plan would hold them."""
    options: dict[str, Any] = {"checkpointing": configuration.checkpointing}
    if configuration.prompts:
        options["prompts"] = True
    if configuration.tuning != DEFAULT_TUNING:
        options["tuning"] = configuration.tuning
    return own_arguments(
        configuration.crop, configuration.stride, configuration.encoder, configuration.pretrained, **options
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each configuration."""
    lines = [["encoder", "crop, stride, batch", "", "estimate MiB", "measured MiB", "estimate / measured", "trace s"]]
    for row in rows:
        options = ["frozen" if row["pretrained"] else "tuned whole"]
        options += [row[name] for name in ("tuning", "method") if row.get(name) not in DEFAULTS]
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
    methods = list(dict.fromkeys(c.method for c in CARD_CONFIGURATIONS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="of these methods alone")
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
    chosen: Sequence[Configuration] = CPU_CONFIGURATIONS if device.type == "cpu" else CARD_CONFIGURATIONS
    chosen = [c for c in chosen if c.encoder in a.encoders and c.method in a.methods]
    rows = [measure(configuration, device) for configuration in chosen]
    finish(a, "memory_estimate", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
