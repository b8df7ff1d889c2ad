"""Compare the planner's estimate of a training step's memory with what a real step takes.

    python benchmarks/memory_estimate.py --json OUT

The estimate is a trace without kernels; the measured step is real: nnU-Net's loss, made-up prompts, gradient clipping,
AdamW. On a CPU its peak is that of live tensor bytes, on a CUDA card the allocator's, under bf16 as in training.
"""

import argparse
import time
from typing import Any

import torch
from measuring import as_markdown, begin, finish, make_parser, shown_mib

from sam3dnet.check.batch import CLASSES
from sam3dnet.check.networks import own_arguments
from sam3dnet.check.step import own_step
from sam3dnet.network.cost import training_cost

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


def measure(configuration: tuple, device: torch.device) -> dict[str, Any]:
    """Estimate and measure one configuration."""
    encoder, pretrained, crop, stride, batch, checkpointing, prompts = configuration
    options = {"checkpointing": checkpointing, "prompts": prompts}
    arch_kwargs = own_arguments(crop, stride, encoder, pretrained, **options)
    start = time.perf_counter()
    estimate = training_cost(arch_kwargs, 1, CLASSES, batch, device=device.type)
    seconds = time.perf_counter() - start
    torch.manual_seed(0)
    measured = own_step(arch_kwargs, batch, device).peak_bytes()
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
