"""Time image encoders and whole training steps of many networks at an equal crop, with their peak memory.

    python benchmarks/encoder_and_step.py --crop 64 64 64 --json OUT

Networks with SAM's encoder are ViT-B with random weights, frozen as SAM's would be; "as published" upsamples the volume
and has its position bias in memory. On a CUDA card the step runs under bf16; --compile compiles the networks. A step is
forward, loss (cross entropy and Dice at all resolutions), backward and AdamW; memory holds parameters and optimiser.
"""

import argparse
from typing import Any

import torch
from measuring import as_markdown, begin, compare, finish, make_parser, shown_mib, shown_ratio, shown_seconds
from networks import MODES, NETWORKS, make_variant
from torch import nn

from sam3dnet.network.segmentation import SegmentationNetwork

WHOLE, ENCODER = "whole network", "image encoder"


def measure(a: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure all networks of the command line."""
    crop = tuple(a.crop)
    networks: dict[str, nn.Module] = {}
    for name in a.networks:
        torch.manual_seed(0)
        network = NETWORKS[name](a.classes, crop).to(device)
        networks[name] = torch.compile(network) if a.compile else network
    image_BCzyx = torch.randn(a.batch, 1, *crop, device=device)
    rows = []
    for part in (WHOLE, ENCODER):
        chosen = {n: net for n, net in networks.items() if part == WHOLE or isinstance(net, SegmentationNetwork)}
        for mode in MODES:
            variants = {
                name: make_variant(network.train(mode == "step"), image_BCzyx, mode, part == ENCODER)
                for name, network in chosen.items()
            }
            for row in compare(variants, device, a.repetitions) if variants else []:
                rows.append({"part": part, "mode": mode, **row, **parameters(chosen[row["variant"]])})
    return rows


def parameters(network: nn.Module) -> dict[str, int]:
    """Count the parameters, and those that are trained."""
    counts = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return {"parameters": sum(n for n, _ in counts), "tuned": sum(n for n, tuned in counts if tuned)}


def table(rows: list[dict[str, Any]]) -> str:
    """Format a table for each part and mode, relative to its first row."""
    texts = []
    for part, mode in dict.fromkeys((row["part"], row["mode"]) for row in rows):
        chosen = [row for row in rows if (row["part"], row["mode"]) == (part, mode)]
        first = chosen[0]
        lines = [[f"{part}, {mode}", "s", "times faster", "peak MiB", "times less memory", "parameters (tuned)"]]
        for row in chosen:
            lines.append(
                [
                    row["variant"],
                    shown_seconds(row),
                    shown_ratio(row["median_s"], first["median_s"]),
                    shown_mib(row["peak_bytes"]),
                    shown_ratio(row["peak_bytes"], first["peak_bytes"]),
                    f"{row['parameters']:,} ({row['tuned']:,})",
                ]
            )
        texts.append(as_markdown(lines))
    return "\n\n".join(texts)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=3)
    parser.add_argument("--crop", type=int, nargs=3, default=[64, 64, 64], help="z y x (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3, help="background among them (default %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write JSON."""
    a = parse()
    rows = measure(a, begin(a))
    finish(a, "encoder_and_step", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
