"""Compare two clicks in opposite corners of a large image with two close to each other.

    git worktree add BEFORE 966c497
    python benchmarks/far_clicks.py --before BEFORE --json OUT

A network that costs next to nothing answers them, so that all the rest is seen; what is known of the windows is kept.
Seconds are those of the processor, which do not depend on what else the machine does; the memory is the peak of numpy's
and Python's. With --before another checkout does the same, each in processes of its own, in turn.
"""

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkouts import run_in_each
from measuring import as_markdown, begin, finish, make_parser, shown_mib, shown_seconds, spread
from torch import Tensor

from sam3dnet.interactive.volume import PromptedVolume
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.prompts.types import ClassPrompts, Point

SHAPE, WINDOW = (256, 256, 256), (64, 64, 64)
FROM_CORNER = 24  # voxels
OBJECT_VOXELS = 6  # radius of what is clicked


class Ball:
    """Stands for a network: adds a ball around each click."""

    def features(self, x_BCzyx: Tensor) -> ImageFeatures:
        """Compute nothing."""
        return ImageFeatures(x_BCzyx[:, :, :1, :1, :1], (), ())

    def prompted(self, _features: ImageFeatures, batch: Any, margin_Qzyx: Tensor) -> Tensor:
        """Add balls to the first query."""
        correction = torch.zeros_like(margin_Qzyx)
        for point, polarity in zip(batch.points_QP3[0].tolist(), batch.polarity_QP[0].tolist(), strict=True):
            if polarity >= 0:
                box = tuple(slice(max(0, round(at) - OBJECT_VOXELS), round(at) + OBJECT_VOXELS + 1) for at in point)
                correction[0][box] = 20.0
        return correction


def time_clicks() -> dict[str, dict[str, float]]:
    """Give the seconds and the bytes of two clicks far apart, and of two close to each other."""
    logits = torch.full((2, *SHAPE), -5, dtype=torch.half)
    logits[0] = 5
    volume = PromptedVolume([Ball()], torch.zeros(1, *SHAPE), logits, WINDOW, regions=False)
    near, far = float(FROM_CORNER), float(SHAPE[0] - FROM_CORNER)
    found = {}
    for name, second in (("two near clicks", near + 4), ("two far clicks", far)):
        points = (Point((near, near, near)), Point((second, second, second)))
        ask = partial(volume.correction, 1, ClassPrompts(points))
        ask()
        tracemalloc.start()
        ask()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        start = time.process_time()
        ask()
        found[name] = {"seconds": time.process_time() - start, "bytes": peak}
    return found


def measure(a: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Give a row for each checkout and kind of clicks."""
    line = [__file__, "--child", *(["--threads", str(a.threads)] if a.threads else [])]
    rounds = run_in_each(line, a.before, folder, a.repetitions)
    rows = []
    for version, first in rounds[0].items():
        for clicks, found in first.items():
            seconds = [one[version][clicks]["seconds"] for one in rounds]
            rows.append({"version": version, "clicks": clicks, **spread(seconds), "peak_bytes": found["bytes"]})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a line for each checkout and kind of clicks."""
    lines = [("version", "clicks", "seconds, median (quartiles)", "of two near ones", "peak MiB")]
    for row in rows:
        near = next(other["median_s"] for other in rows if other["version"] == row["version"])
        ratio = f"{row['median_s'] / near:.2f}"
        lines.append((row["version"], row["clicks"], shown_seconds(row), ratio, shown_mib(row["peak_bytes"])))
    return as_markdown(lines)


def main() -> None:
    """Parse, measure, print, write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--before", type=Path, help="checkout of another commit to be timed too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    begin(a)
    if a.child:
        print(json.dumps(time_clicks()))
        return
    with tempfile.TemporaryDirectory() as name:
        rows = measure(a, Path(name))
    print(table(rows))
    finish(a, "far_clicks", rows)


if __name__ == "__main__":
    main()
