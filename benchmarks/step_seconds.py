"""Compare the seconds of a training step that planning estimates with measured ones; find the rates it estimates by.

    python benchmarks/step_seconds.py --threads 1 --json OUT
    python benchmarks/step_seconds.py --threads 1 --fit

Nothing else should run beside it, nor on the other cores. A step is that of training, on a batch that is at hand:
forward, losses, backward, clipping and optimiser, with prompts every second time where a network answers them. Cores
differ as a whole, so ratios are told relative to their median, too. --fit profiles the steps and prints rates for
`planning/step_time.py`: those that make the seconds of each kind of operator come out best.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import as_markdown, begin, finish, make_parser, shown_seconds
from scipy.optimize import nnls
from torch.profiler import ProfilerActivity, profile

from sam3dnet.check.batch import CLASSES
from sam3dnet.check.measuring import spread, time_once
from sam3dnet.check.networks import own_arguments
from sam3dnet.check.step import own_step
from sam3dnet.network.cost import training_seconds, training_work
from sam3dnet.planning.step_time import Work, kind_of

WARM_UP = 2


@dataclass(frozen=True)
class Setting:
    """A step to measure."""

    encoder: str
    crop: tuple[int, int, int]
    token: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    prompts: bool = True
    batch: int = 2

    def arguments(self) -> dict[str, Any]:
        """Give the network's arguments."""
        pretrained = self.encoder.startswith("vit_")
        return own_arguments(
            self.crop, self.token, self.encoder, pretrained, self.spacing_mm, prompts=self.prompts, fitted_windows=True
        )

    def __str__(self) -> str:
        crop, token = ("x".join(map(str, sizes)) for sizes in (self.crop, self.token))
        return f"{self.encoder}, {crop}, tokens {token}, batch {self.batch}, {'' if self.prompts else 'no '}prompts"


THICK = (10.0, 1.5, 1.5)
CUBE = (8, 8, 8)
SETTINGS = (
    Setting("tiny", (40, 40, 40), CUBE, prompts=False),
    Setting("tiny", (20, 48, 48), (4, 8, 8), (2.0, 1.0, 1.0)),
    Setting("tiny", (10, 96, 80), (1, 8, 8), THICK),
    Setting("small", (32, 48, 32), CUBE),
    Setting("small", (40, 40, 40), CUBE, prompts=False),
    Setting("small", (40, 40, 40), CUBE, batch=4),
    Setting("small", (56, 56, 56), CUBE),
    Setting("small", (10, 96, 80), (1, 8, 8), THICK),
    Setting("small", (10, 96, 80), (1, 8, 8), THICK, prompts=False),
    Setting("small", (10, 96, 80), (2, 8, 8), THICK),
    Setting("small", (10, 96, 80), (1, 16, 16), THICK),
    Setting("small", (20, 72, 72), (2, 8, 8), (5.0, 1.5, 1.5), prompts=False),
    Setting("small", (24, 32, 32), (4, 4, 4)),
    Setting("vit_b", (32, 48, 32), CUBE),
    Setting("vit_b", (10, 64, 64), (1, 8, 8), THICK, prompts=False),
    Setting("vit_l", (32, 32, 32), CUBE, prompts=False),
)

OTHERS = (  # which the rates were not found from
    Setting("tiny", (48, 48, 48), CUBE),
    Setting("small", (24, 72, 56), (2, 8, 8), (3.0, 0.9, 0.9)),
    Setting("small", (24, 96, 32), (8, 16, 8), (2.5, 2.0, 2.5)),
    Setting("small", (16, 64, 64), (2, 16, 16), (8.0, 1.5, 1.5), batch=3),
    Setting("vit_b", (40, 40, 40), CUBE, prompts=False),
)


def measured(setting: Setting, device: torch.device, repetitions: int, fit: bool) -> dict[str, Any]:
    """Measure steps with prompts and without, and look into one of each where rates are wanted."""
    torch.manual_seed(0)
    step = own_step(setting.arguments(), setting.batch, device)
    ways = (False, True) if setting.prompts else (False,)
    for _ in range(WARM_UP):
        for asked in ways:
            step.run(asked)
    seconds = [np.mean([time_once(partial(step.run, asked), device) for asked in ways]) for _ in range(repetitions)]
    by_kind: dict[str, float] = defaultdict(float)
    for asked in ways if fit else ():
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as looked:
            step.run(asked)
        for kind, value in seconds_by_kind(looked):
            by_kind[kind] += value / len(ways)
    return {**spread([float(value) for value in seconds]), "kinds": dict(by_kind)}


def seconds_by_kind(looked: profile) -> Iterator[tuple[str, float]]:
    """Tell the kind and the seconds of everything that a profile holds."""
    for event in looked.key_averages(group_by_input_shape=True):
        shapes = [shape for shape in event.input_shapes if shape]
        name = event.key.removeprefix("aten::")
        known = not name.startswith("mkldnn_convolution") or len(shapes) > 1
        yield kind_of(name.replace("mkldnn_", ""), shapes if known else [(), ()]), event.self_cpu_time_total / 1e6


def find_rates(rows: list[dict[str, Any]]) -> str:
    """Find the rates of each kind that explain the profiled seconds best, each step counting alike."""
    lines = []
    for kind in sorted({kind for row in rows for kind in row["kinds"]}):
        seconds = np.array([row["kinds"].get(kind, 0) for row in rows])
        total = np.array([[w.operations, w.bytes, w.calls] for w in (row["work"].get(kind, Work()) for row in rows)])
        used = seconds > 0
        scale = seconds[used][:, None]
        coefficients, _ = nnls(total[used] / scale, np.ones(used.sum()))
        explained = total[used] @ coefficients / seconds[used]
        shown = [f"{1 / c:.3g}" if c else "inf" for c in coefficients[:2]]
        spread_ = f"{explained.min():.2f} to {explained.max():.2f}"
        lines.append(f"{kind}: operations/s {shown[0]}, bytes/s {shown[1]}, a call {coefficients[2]:.3g} s; {spread_}")
    return "\n".join(lines)


def measure(a: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Estimate and measure all steps."""
    rows = []
    for setting in SETTINGS if a.fit else (*SETTINGS, *OTHERS):
        call = (setting.arguments(), 1, CLASSES, setting.batch)
        row = {"variant": str(setting), "estimated_s": training_seconds(*call)}
        row |= measured(setting, device, a.repetitions, a.fit)
        if a.fit:
            row["work"] = training_work(*call)
        rows.append(row)
        print(row["variant"], f"{row['estimated_s']:.3f} {row['median_s']:.3f}", row["kinds"], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each step."""
    ratios = [row["estimated_s"] / row["median_s"] for row in rows]
    middle = math.exp(np.median(np.log(ratios)))
    lines = [["training step", "measured s", "estimated s", "estimated / measured", "relative to the median"]]
    for row, ratio in zip(rows, ratios, strict=True):
        shown = (f"{row['estimated_s']:.3g}", f"{ratio:.2f}", f"{ratio / middle:.2f}")
        lines.append([row["variant"], shown_seconds(row), *shown])
    return as_markdown(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=5)
    parser.add_argument("--fit", action="store_true", help="profile, and print rates")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write JSON."""
    a = parse()
    rows = measure(a, begin(a))
    print(table(rows))
    if a.fit:
        print(find_rates(rows))
    for row in rows:
        row["work"] = {kind: vars(work) for kind, work in row.get("work", {}).items()}
    finish(a, "step_seconds", rows)


if __name__ == "__main__":
    main()
