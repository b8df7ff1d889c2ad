"""Profile a training step to its operators: seconds, how much of them the device computes, and what costs most.

    python benchmarks/step_profile.py --crop 10 96 80 --spacing 10 1.5 1.5 --strides 1 8 8 --threads 1 --json OUT
    python benchmarks/step_profile.py --device cuda --crop 96 128 128 --encoders small vit_b --json OUT

Nothing else should run beside it. A step is that of training, on a batch that is on the device already; networks named
vit_ are frozen as with SAM's weights, here random. On a card "busy" is the sum of all kernels: what is missing to the
seconds of the step is the time that the card waits for the program. Operators are told with the shapes of their
operands.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import as_markdown, begin, finish, make_parser
from torch.profiler import ProfilerActivity, profile

from sam3dnet.check.measuring import spread, synchronize, time_once
from sam3dnet.check.networks import own_arguments
from sam3dnet.check.step import TrainingStep, nnunet_step, own_step

NNUNET = "nnU-Net"
WARM_UP, SHOWN_SHAPES = 3, 110


def make_steps(a: argparse.Namespace, device: torch.device) -> dict[str, tuple[TrainingStep, Callable[[], None]]]:
    """Make the steps of the command line."""
    crop, spacing = tuple(a.crop), tuple(a.spacing)
    steps: dict[str, tuple[TrainingStep, Callable[[], None]]] = {}
    if not a.without_nnunet:
        step = nnunet_step(crop, a.batch, device, spacing)
        steps[NNUNET] = (step, step.run)
    for encoder in a.encoders:
        torch.manual_seed(0)
        options = own_arguments(
            crop, a.strides, encoder, encoder.startswith("vit_"), spacing_mm=spacing, prompts=True, fitted_windows=True
        )
        step = own_step(options, a.batch, device)
        for asked in a.asked:
            steps[f"{encoder}{', asked' if asked else ''}"] = (step, partial(step.run, asked=bool(asked)))
    return steps


def profiled(name: str, run: Callable[[], None], device: torch.device, repetitions: int) -> dict[str, Any]:
    """Time a step, then look into one."""
    for _ in range(WARM_UP):
        run()
    seconds = [time_once(run, device) for _ in range(repetitions)]
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities, record_shapes=True) as looked:
        run()
        synchronize(device)
    time_of = (lambda e: e.self_device_time_total) if on_card else (lambda e: e.self_cpu_time_total)
    events = [e for e in looked.key_averages(group_by_input_shape=True) if time_of(e) > 0]
    kernels = [e for e in looked.events() if e.device_type.name == "CUDA"] if on_card else []
    operators = [e for e in events if e.device_type.name == "CPU"] if on_card else events
    busy = sum(e.self_device_time_total for e in kernels) if on_card else sum(map(time_of, events))
    operators = sorted(operators, key=time_of, reverse=True)
    return {
        "variant": name,
        **spread(seconds),
        "busy_s": busy / 1e6,
        "kernels": len(kernels),
        "operators": [
            {"name": e.key, "shapes": str(e.input_shapes), "calls": e.count, "s": time_of(e) / 1e6} for e in operators
        ],
    }


def table(rows: list[dict[str, Any]], shown: int) -> str:
    """Format a line for each step, then the operators of each that cost most."""
    first = rows[0]["median_s"]
    lines = [["step", "s", "of the first", "busy s", "kernels", "operators"]]
    for row in rows:
        calls = sum(o["calls"] for o in row["operators"])
        ratio = f"{row['median_s'] / first:.2f}"
        lines.append(
            [row["variant"], f"{row['median_s']:.4g}", ratio, f"{row['busy_s']:.4g}", str(row["kernels"]), str(calls)]
        )
    texts = [as_markdown(lines)]
    for row in rows:
        costly = [["operator", "ms", "calls", "shapes"]]
        for o in row["operators"][:shown]:
            costly.append([o["name"], f"{1000 * o['s']:.2f}", str(o["calls"]), o["shapes"][:SHOWN_SHAPES]])
        texts.append(f"{row['variant']}:\n\n{as_markdown(costly)}")
    return "\n\n".join(texts)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=5)
    parser.add_argument("--crop", type=int, nargs=3, default=[64, 64, 64], help="z y x (default %(default)s)")
    parser.add_argument("--spacing", type=float, nargs=3, default=[1.0] * 3, help="mm (default %(default)s)")
    parser.add_argument("--strides", type=int, nargs=3, default=[8] * 3, help="of a token (default %(default)s)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--encoders", nargs="+", default=["small"], metavar="NAME")
    parser.add_argument("--asked", type=int, nargs="+", choices=(0, 1), default=[0, 1], help="with prompts or not")
    parser.add_argument("--without-nnunet", action="store_true")
    parser.add_argument("--shown", type=int, default=12, help="operators shown for each step (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Profile, print the tables, write JSON."""
    a = parse()
    device = begin(a)
    rows = [profiled(name, run, device, a.repetitions) for name, (_, run) in make_steps(a, device).items()]
    finish(a, "step_profile", rows)
    print(table(rows, a.shown))


if __name__ == "__main__":
    main()
