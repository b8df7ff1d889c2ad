"""Time a training step as our trainer takes it: in float32, in half precision, and compiled; nnU-Net's beside it.

    python benchmarks/compiled_step.py --device cuda --crop 96 128 128 --json OUT

Two steps at a time are timed, one of them with prompts, on a batch that is on the device already. Float32 is torch's
default on a card: convolutions in TF32, products not. What is compiled is what the trainers compile. The first two
steps hold the compilation; it pays after so many steps as its seconds are saved again.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measuring import as_markdown, begin, compare, finish, make_parser, shown_mib, shown_ratio, shown_seconds
from torch import nn

from sam3dnet.check.measuring import Variant, time_once
from sam3dnet.check.networks import Shape, own_arguments
from sam3dnet.check.step import TrainingStep, nnunet_step, own_step
from sam3dnet.network.compiling import Compiler, compile_network

AT_A_TIME = 2
NNUNET = "nnU-Net"
NETWORKS: dict[str, tuple[str, bool]] = {"sam3d small, trained whole": ("small", False), "sam3d vit_b": ("vit_b", True)}
FLOAT32, EAGER, COMPILED = "float32", "as trained", "compiled"


def compute_in_float32(network: nn.Module, device: torch.device) -> None:
    """Leave half precision out of a network's forward pass."""
    forward = network.forward

    def forward_in_float32(*arguments: Any) -> Any:
        with torch.autocast(device.type, enabled=False):
            return forward(*arguments)

    network.forward = forward_in_float32  # type: ignore[method-assign]


def make_step(name: str, crop: Shape, batch: int, device: torch.device) -> TrainingStep:
    """Make a step of nnU-Net or of one of our networks, with prompts."""
    torch.manual_seed(0)
    if name == NNUNET:
        return nnunet_step(crop, batch, device)
    encoder, pretrained = NETWORKS[name]
    return own_step(own_arguments(crop, 8, encoder, pretrained, prompts=True), batch, device)


def change_step(step: TrainingStep, how: str) -> Callable[[], bool]:
    """Make a step compute in another way; what is returned tells whether the compiler has worked so far."""
    compiler = Compiler()
    if how == FLOAT32:
        compute_in_float32(step.network, step.device)
    elif how == COMPILED and hasattr(step.network, "features"):
        compile_network(step.network, compiler)
    elif how == COMPILED:
        step.network.compile()
    return lambda: compiler.works


def measure(name: str, a: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure a network in all ways."""
    variants, first_seconds, works = {}, {}, {}
    for how in a.ways:
        step = make_step(name, tuple(a.crop), a.batch, device)
        works[how] = change_step(step, how)
        variants[how] = Variant(pair_of(step), step.held)
        first_seconds[how] = time_once(variants[how].run, device)
    rows = compare(variants, device, a.repetitions)
    settings = {"network": name, "crop": list(a.crop), "batch": a.batch}
    return [
        settings | row | {"first_s": first_seconds[row["variant"]], "works": works[row["variant"]]()} for row in rows
    ]


def pair_of(step: TrainingStep) -> Callable[[], None]:
    """Take a step with prompts and one without, as training does in turn."""

    def run() -> None:
        step.run(asked=True)
        step.run(asked=False)

    return run


def pays_after(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> str:
    """Tell after how many steps the compilation of a row is paid for; "-" for other rows."""
    eager = {r["network"]: r for r in rows if r["variant"] == EAGER}.get(row["network"])
    if row["variant"] != COMPILED or eager is None:
        return "-"
    if not row["works"]:
        return "does not compile"
    saved = (eager["median_s"] - row["median_s"]) / AT_A_TIME
    return f"{(row['first_s'] - eager['first_s']) / saved:,.0f} steps" if saved > 0 else "never"


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each network and way, relative to the network as it is trained without compilation."""
    lines = [["training step", "", "two steps s", "times faster", "peak MiB", "first two s", "pays after"]]
    for row in rows:
        eager = next((r for r in rows if r["network"] == row["network"] and r["variant"] == EAGER), row)
        lines.append(
            [
                row["network"],
                row["variant"],
                shown_seconds(row),
                shown_ratio(row["median_s"], eager["median_s"]),
                shown_mib(row["peak_bytes"]),
                f"{row['first_s']:.1f}",
                pays_after(rows, row),
            ]
        )
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=10)
    names, ways = [NNUNET, *NETWORKS], [EAGER, FLOAT32, COMPILED]
    parser.add_argument("--crop", type=int, nargs=3, default=[96, 128, 128], help="z y x (default %(default)s)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, metavar="WAY")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write JSON."""
    a = parse()
    device = begin(a)
    rows = [row for name in a.networks for row in measure(name, a, device)]
    finish(a, "compiled_step", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
