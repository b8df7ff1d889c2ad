"""Seconds of a training iteration, ours beside nnU-Net's at the same crop and batch; loading is not in it."""

import statistics
from collections.abc import Callable, Iterator

from sam3dnet.check.measuring import free_bytes, time_once
from sam3dnet.check.networks import Shape, own_arguments
from sam3dnet.check.result import CheckResult, told
from sam3dnet.check.setting import Setting
from sam3dnet.check.step import TrainingStep, nnunet_step, own_step

BATCH = 2
REPETITIONS, QUICK_REPETITIONS = 5, 1
# Crop, and (encoder, frozen) of our networks.
Sizes = tuple[Shape, list[tuple[str, bool]]]
QUICK_SIZES: Sizes = ((8, 16, 16), [("tiny", False)])
CPU_SIZES: Sizes = ((32, 48, 32), [("small", False)])
CARD_SIZES: Sizes = ((64, 96, 96), [("small", False), ("vit_b", True)])
LARGE_CARD_SIZES: Sizes = ((96, 128, 128), [("small", False), ("vit_b", True)])
LARGE_CARD_BYTES = 20 << 30  # free; nnU-Net trains a crop of 128 x 128 x 128 in 8 to 9 GB


def check_iteration(setting: Setting) -> Iterator[CheckResult]:
    """Time all steps in turn, after a warm-up; what is told is the median."""
    crop, encoders = choose_sizes(setting)
    runs: dict[str, Callable[[], None]] = {"nnU-Net": _pair(nnunet_step(crop, BATCH, setting.device))}
    for encoder, frozen in encoders:
        arguments = own_arguments(crop, 8, encoder, frozen, prompts=True)
        name = f"sam3dnet, {encoder}, {'frozen' if frozen else 'trained whole'}"
        runs[name] = _pair(own_step(arguments, BATCH, setting.device))
    medians = time_in_turn(runs, setting)
    where = f"{'x'.join(map(str, crop))}, batch {BATCH}, not compiled"
    for name, median in medians.items():
        times = medians["nnU-Net"] / median
        message = where if name == "nnU-Net" else f"{where}; {times:.2f} times as fast as nnU-Net"
        yield told("iteration", name, message, median, "s")


def choose_sizes(setting: Setting) -> Sizes:
    """Choose what fits the device, and the time."""
    if setting.quick:
        return QUICK_SIZES
    if not setting.is_card:
        return CPU_SIZES
    return LARGE_CARD_SIZES if free_bytes(setting.device) >= LARGE_CARD_BYTES else CARD_SIZES


def time_in_turn(runs: dict[str, Callable[[], None]], setting: Setting) -> dict[str, float]:
    """Give the median seconds of one of the two iterations that each run takes."""
    repetitions = QUICK_REPETITIONS if setting.quick else REPETITIONS
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repetitions + 1):
        for name, run in runs.items():
            elapsed = time_once(run, setting.device)
            if round_number:
                seconds[name].append(elapsed / 2)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def _pair(step: TrainingStep) -> Callable[[], None]:
    """Take two iterations, with and without prompts in turn as in training."""

    def run() -> None:
        step.run(asked=True)
        step.run(asked=False)

    return run
