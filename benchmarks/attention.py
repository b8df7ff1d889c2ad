"""Time the augmented dot product against attention with a materialised bias, forward and backward.

    python benchmarks/attention.py --windows 8 --grids 8 12 16 --json OUT

Windows are of 8^3 tokens, a batch of them; a grid is one attention over all of its tokens. Width and heads are ViT-B's.
The kernel is the one that torch takes for the augmented dot product on that device.
"""

import argparse
from typing import Any

import torch
from materialised_attention import MaterialisedAttention
from measuring import as_markdown, begin, compare, finish, make_parser, shown_mib, shown_ratio, shown_seconds
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sam3dnet.check.measuring import Variant
from sam3dnet.devices import autocast_on
from sam3dnet.network.attention import Attention3D

WIDTH, HEADS = 768, 12
WINDOW = 8
NAIVE, FAST = "materialised bias", "augmented dot product"
MODES = ("forward", "forward and backward")


def make_pair(side: int, device: torch.device) -> dict[str, nn.Module]:
    """Make both with the same random weights, tables among them; SAM's are frozen, the depth table is trained."""
    fast = Attention3D(WIDTH, HEADS, (side, side, side))
    for table in (fast.rel_pos_d, fast.rel_pos_h, fast.rel_pos_w):
        nn.init.normal_(table, std=0.1)
    naive = MaterialisedAttention(WIDTH, HEADS, (side, side, side))
    naive.load_state_dict(fast.state_dict())
    for module in (fast, naive):
        module.to(device).requires_grad_(False)
        module.rel_pos_d.requires_grad_(True)
    return {NAIVE: naive, FAST: fast}


def make_variant(module: nn.Module, batch: int, side: int, mode: str, device: torch.device) -> Variant:
    """Make a variant that attends within cubes of tokens."""
    backward = mode == MODES[1]
    tokens = torch.randn(batch, side, side, side, WIDTH, device=device, requires_grad=backward)

    def run() -> None:
        with torch.set_grad_enabled(backward), autocast_on(device):
            out = module(tokens)
        if backward:
            out.sum().backward()
            tokens.grad = None
            module.zero_grad(set_to_none=True)

    return Variant(run, lambda: [tokens, *module.parameters()])


class Kernels(TorchDispatchMode):
    """Notes the kernels that torch takes for scaled dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operator and note it."""
        name = func.overloadpacket.__name__
        if "scaled_dot_product" in name and "backward" not in name:
            self.names.add(name.removeprefix("_scaled_dot_product_"))
        return func(*args, **(kwargs or {}))


def kernel_of(variant: Variant) -> str:
    """Name the kernels of a run; without one of its own, torch spells the product out."""
    with Kernels() as kernels:
        variant.run()
    return ", ".join(sorted(kernels.names)) or "spelled out"


def largest_difference(pair: dict[str, nn.Module], side: int, device: torch.device) -> float:
    """Give the largest difference between the outputs of both, in float32."""
    tokens = torch.randn(1, side, side, side, WIDTH, device=device)
    with torch.no_grad():
        return float((pair[NAIVE](tokens) - pair[FAST](tokens)).abs().max())


def measure(batch: int, side: int, mode: str, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Measure both on a batch of cubes of tokens."""
    pair = make_pair(side, device)
    variants = {name: make_variant(module, batch, side, mode, device) for name, module in pair.items()}
    shape = {"batch": batch, "side": side, "mode": mode, "largest_difference": largest_difference(pair, side, device)}
    shape["kernel"] = kernel_of(variants[FAST])
    return [shape | row for row in compare(variants, device, repetitions)]


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each shape and mode."""
    header = ["tokens", "", "materialised s", "augmented s", "times faster", "materialised MiB", "augmented MiB"]
    lines = [[*header, "times less memory", "largest difference", "kernel"]]
    for naive, fast in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            [
                f"{naive['batch']} x {naive['side']}^3",
                naive["mode"],
                shown_seconds(naive),
                shown_seconds(fast),
                shown_ratio(fast["median_s"], naive["median_s"]),
                shown_mib(naive["working_bytes"]),
                shown_mib(fast["working_bytes"]),
                shown_ratio(fast["working_bytes"], naive["working_bytes"]),
                f"{naive['largest_difference']:.1e}",
                naive.get("kernel", "-"),
            ]
        )
    return as_markdown(lines) + "\n\nMemory without weights and input."


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--windows", type=int, nargs="*", default=[8], help="batches of windows (default %(default)s)")
    parser.add_argument("--grids", type=int, nargs="*", default=[12], help="tokens a side (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measure all shapes, print the table, write JSON."""
    a = parse()
    device = begin(a)
    shapes = [(batch, WINDOW) for batch in a.windows] + [(1, side) for side in a.grids]
    rows = [row for shape in shapes for mode in MODES for row in measure(*shape, mode, device, a.repetitions)]
    finish(a, "attention", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
