"""Time what prompts in training cost beside the network, in the process that trains.

    git worktree add BEFORE 966c497
    python benchmarks/prompts_drawn.py --before BEFORE --json OUT

A network that costs next to nothing answers prompts about a few blobs, with errors like those of a real one: many, most
of them at surfaces. The time is the mean over how often an answer is corrected, as often as it is in training. With
--before another checkout's is timed too, each in processes of its own, in turn; those before `draw_questions` draw the
prompts in the same process, which is part of the time then. Seconds are those of the processor, which do not depend on
what else the machine does; with one thread they are how long it takes on a machine that does nothing else.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkouts import run_in_each
from measuring import as_markdown, begin, finish, make_parser, shown_ratio, shown_seconds, spread
from scipy import ndimage
from torch import Tensor

from sam3dnet.network.prompt_decoder import ImageFeatures

CASES = (((128, 128, 128), 2), ((248, 136, 120), 3))  # crop and batch
SPACING_MM, TOKEN_STRIDE = (1.5, 0.8, 0.8), (4, 8, 8)
SHARE_OF_CORRECTIONS = (0.4, 0.3, 0.2, 0.1)  # none, one, two, three
SMOOTH_SHAPE, SMOOTH_ERRORS = 12.0, 2.0  # voxels
ERRORS = 0.35  # of the standard deviation of what a class is a level set of
SHARES = (0.06, 0.015)  # of the voxels that are of the classes


class Answering:
    """Stands for a network; each answer is wrong elsewhere."""

    def __init__(self, corrections: list[Tensor]):
        self._corrections = corrections
        self._asked = 0

    def prompted(self, _features: Any, _batch: Any, _margin_Qzyx: Tensor) -> Tensor:
        """Give a correction of all images that was made before."""
        self._asked += 1
        return self._corrections[self._asked % len(self._corrections)]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Give smooth noise of standard deviation 1."""
    values = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), sigma)
    return np.asarray(values / values.std())


def make_batch(shape: tuple[int, ...], batch: int) -> tuple[Tensor, ImageFeatures, Answering]:
    """Make a target, automatic logits with errors, and a network with others."""
    rng = np.random.default_rng(0)
    targets, logits = [], []
    for _ in range(batch):
        lead = [smooth_noise(rng, shape, SMOOTH_SHAPE) for _ in SHARES]
        lead = [values - np.quantile(values, 1 - share) for values, share in zip(lead, SHARES, strict=True)]
        label = np.where(lead[1] > 0, 2, np.where(lead[0] > 0, 1, 0))
        targets.append(label[None].astype(np.int16))
        wrong = [values + ERRORS * smooth_noise(rng, shape, SMOOTH_ERRORS) for values in lead]
        logits.append(np.stack([np.zeros(shape, np.float32), *(4 * values for values in wrong)]))
    corrections = [
        torch.from_numpy(np.stack([4 * ERRORS * smooth_noise(rng, shape, SMOOTH_ERRORS) for _ in range(batch)]))
        for _ in range(4)
    ]
    features = ImageFeatures(torch.zeros(batch, 1, 1, 1, 1), (), (torch.from_numpy(np.stack(logits)).float(),))
    return torch.from_numpy(np.stack(targets)), features, Answering([values.float() for values in corrections])


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Give the seconds of the processor and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def step(
    seed: int, corrections: int, target: Tensor, features: ImageFeatures, network: Answering
) -> tuple[float, float]:
    """Ask once; give the seconds in a loader, and those in the process that trains."""
    from sam3dnet.training import prompting

    rng = np.random.default_rng(seed)
    if find_spec("sam3dnet.training.drawing") is None:
        classes = prompting.Classes((1, 2), False, None, SPACING_MM, TOKEN_STRIDE)
        prompting.SHARE_OF_CORRECTIONS = tuple(float(number == corrections) for number in range(4))
        return 0.0, timed(lambda: prompting.TrainingPrompter(target, classes, rng)(network, features))[0]
    from sam3dnet.training.drawing import draw_questions
    from sam3dnet.training.target_classes import Classes

    classes = Classes((1, 2), False, None, SPACING_MM, TOKEN_STRIDE)
    drawing, questions = timed(lambda: draw_questions(target, classes, rng))
    prompter = partial(prompting.TrainingPrompter, questions, target, classes, corrections)
    return drawing, timed(lambda: prompter()(network, features))[0]


def time_steps(shape: tuple[int, ...], batch: int, seeds: int) -> list[float]:
    """Give the mean seconds of a step in the loader and in the process that trains."""
    made = make_batch(shape, batch)
    step(0, 1, *made)
    means = np.zeros(2)
    for corrections, share in enumerate(SHARE_OF_CORRECTIONS):
        means += share * np.mean([step(seed, corrections, *made) for seed in range(seeds)], 0)
    return [float(seconds) for seconds in means]


def measure(a: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Time the checkouts in turn; give a row for each case and checkout."""
    line = [__file__, "--child", "--seeds", str(a.seeds), *(["--threads", str(a.threads)] if a.threads else [])]
    rounds = run_in_each(line, a.before, folder, a.repetitions)
    rows = []
    for number, (shape, batch) in enumerate(CASES):
        for name in rounds[0]:
            loader, training = zip(*(means[name][number] for means in rounds), strict=True)
            row = {"crop": "x".join(map(str, shape)), "batch": batch, "version": name, **spread(training)}
            rows.append(row | {"loader_median_s": statistics.median(loader)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line for each case and checkout."""
    lines = [("crop", "batch", "version", "seconds a step, median (quartiles)", "times shorter", "in the loader")]
    for row in rows:
        first = next(other for other in rows if other["crop"] == row["crop"])
        ratio = shown_ratio(row["median_s"], first["median_s"])
        loader = f"{row['loader_median_s']:.3g}"
        lines.append((row["crop"], str(row["batch"]), row["version"], shown_seconds(row), ratio, loader))
    return as_markdown(lines)


def main() -> None:
    """Parse, measure, print, write JSON."""
    parser = make_parser(__doc__, repetitions=3)
    parser.add_argument("--before", type=Path, help="checkout of another commit to be timed too")
    parser.add_argument(
        "--seeds", type=int, default=6, help="steps of each number of corrections (default %(default)s)"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    begin(a)
    if a.child:
        print(json.dumps([time_steps(shape, batch, a.seeds) for shape, batch in CASES]))
        return
    with tempfile.TemporaryDirectory() as name:
        rows = measure(a, Path(name))
    print(table(rows))
    finish(a, "prompts_drawn", rows)


if __name__ == "__main__":
    main()
