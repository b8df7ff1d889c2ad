"""Time the patch embedding with a resampled kernel against upsampling and then convolving, as published.

    python benchmarks/patch_embedding.py --sizes 64 128 --strides 2 4 8 --json OUT

Both have the same weights (SAM's size, random values, one image channel) and must give the same tokens. What does not
fit the free memory is traced, not run: it has a peak and no seconds.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from measuring import (
    as_markdown,
    begin,
    compare,
    finish,
    make_parser,
    shown_mib,
    shown_ratio,
    shown_seconds,
    traced_bytes,
)
from torch import nn

from sam3dnet.check.measuring import Variant, free_bytes
from sam3dnet.network.patch_embedding import PatchEmbed3D
from sam3dnet.network.published.patch_embedding import UpsampledPatchEmbed

WIDTH = 768
NAIVE, FAST = "upsample, then convolve", "resampled kernel"
MODES = ("forward", "forward and backward")
USABLE_SHARE = 0.7  # of the free memory, since a library needs some inside its operators


def make_pair(stride: int, channels: int = 1, width: int = WIDTH) -> dict[str, nn.Module]:
    """Make both embeddings with the same weights; SAM's kernel is frozen, the rest is trained."""
    cube = (stride, stride, stride)
    fast, naive = PatchEmbed3D(channels, width, cube), UpsampledPatchEmbed(channels, width, cube)
    depth_OK = torch.randn(fast.depth_kernel_OK.shape).softmax(1)  # sums to 1: the bias comes before the one, behind
    with torch.no_grad():
        fast.depth_kernel_OK.copy_(depth_OK)
        naive.depth_conv.weight.copy_(depth_OK[:, None, :, None, None])
        naive.depth_conv.bias.zero_()
        naive.proj.weight.copy_(fast.proj.weight)
        naive.proj.bias.copy_(fast.proj.bias)
    for module in (fast, naive):
        module.proj.requires_grad_(False)
    return {NAIVE: naive, FAST: fast}


def make_variant(module: nn.Module, size: int, mode: str, device: torch.device) -> Variant:
    """Make a variant that embeds a cubic image, with or without a gradient."""
    image_BCzyx = torch.randn(1, 1, size, size, size, device=device)

    def run() -> None:
        if mode == MODES[0]:
            with torch.no_grad():
                module(image_BCzyx)
            return
        module(image_BCzyx).sum().backward()
        module.zero_grad(set_to_none=True)

    return Variant(run, lambda: [image_BCzyx, *module.parameters(), *module.buffers()])


def largest_difference(pair: dict[str, nn.Module], size: int, device: torch.device) -> float:
    """Give the largest difference between the tokens of both."""
    image_BCzyx = torch.randn(1, 1, size, size, size, device=device)
    with torch.no_grad():
        return float((pair[NAIVE](image_BCzyx) - pair[FAST](image_BCzyx)).abs().max())


def measure(size: int, stride: int, mode: str, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Measure both at one size and stride."""
    needed = traced_bytes(lambda: make_variant(make_pair(stride)[NAIVE], size, mode, torch.device("cpu")))
    fits = needed < USABLE_SHARE * free_bytes(device)
    pair = {name: module.to(device) for name, module in make_pair(stride).items()}
    variants = {name: make_variant(pair[name], size, mode, device) for name in ((NAIVE, FAST) if fits else (FAST,))}
    rows = compare(variants, device, repetitions)
    if fits:
        difference = largest_difference(pair, size, device)
        rows = [row | {"largest_difference": difference} for row in rows]
    else:
        rows.insert(0, {"variant": NAIVE, "median_s": None, "peak_bytes": needed, "traced": True})
    return [{"size": size, "stride": stride, "mode": mode, **row} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each size, stride and mode."""
    header = ["crop", "stride", "", "naive s", "resampled s", "times faster", "naive MiB", "resampled MiB"]
    lines = [[*header, "times less memory", "largest difference"]]
    for naive, fast in pairs(rows):
        difference = naive.get("largest_difference")
        lines.append(
            [
                f"{naive['size']}^3",
                str(naive["stride"]),
                naive["mode"],
                shown_seconds(naive),
                shown_seconds(fast),
                shown_ratio(fast["median_s"], naive["median_s"]),
                shown_mib(naive["peak_bytes"]) + (" (traced)" if naive.get("traced") else ""),
                shown_mib(fast["peak_bytes"]),
                shown_ratio(fast["peak_bytes"], naive["peak_bytes"]),
                "-" if difference is None else f"{difference:.1e}",
            ]
        )
    return as_markdown(lines)


def pairs(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Give each naive row with the fast one that follows it."""
    return zip(rows[::2], rows[1::2], strict=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="voxels a side (default %(default)s)")
    parser.add_argument("--strides", type=int, nargs="+", default=[4, 8], help="voxels a token (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measure all combinations, print the table, write JSON."""
    a = parse()
    device = begin(a)
    rows = []
    for size in a.sizes:
        for stride in a.strides:
            for mode in MODES:
                rows += measure(size, stride, mode, device, a.repetitions)
    finish(a, "patch_embedding", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
