"""What the benchmarks share: variants of a computation timed in turn, their memory, a table and a JSON file.

Seconds and memory are measured by `sam3dnet.check.measuring`. On Linux the C library is told to keep freed memory, so
that clearing new pages is not timed.
"""

import argparse
import ctypes
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3dnet.check.measuring import MIB, Variant, spread, time_once, working_bytes
from sam3dnet.comparison.stages import machine
from sam3dnet.planning.memory import LiveBytes, storage_bytes
from sam3dnet.preprocessing.folders import write_json

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # names of glibc's malloc.h without M_


def compare(variants: Mapping[str, Variant], device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Warm every variant up, measure its memory, then time all in turn.

    Args:
        variants: By name.
        device: Where they compute.
        repetitions: Rounds; in each, every variant runs once.

    Returns:
        For every variant its name, the median and the quartiles of its seconds, all seconds, the bytes that it works
        with beside what it holds ("working_bytes"), and with it ("peak_bytes").
    """
    memory = {}
    for name, variant in variants.items():
        variant.run()
        working = working_bytes(variant, device)
        memory[name] = (working, working + storage_bytes(list(variant.held())))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, variant in variants.items():
            seconds[name].append(time_once(variant.run, device))
    return [
        {"variant": name, **spread(seconds[name]), "working_bytes": memory[name][0], "peak_bytes": memory[name][1]}
        for name in variants
    ]


def traced_bytes(make: Callable[[], Variant]) -> int:
    """Trace the peak of a variant without running a kernel; it is made and run on tensors without contents."""
    with FakeTensorMode():
        variant = make()
        held = list(variant.held())
        counter = LiveBytes()
        counter.ignore(iter(held))
        with counter:
            variant.run()
        return counter.peak + storage_bytes(held)


def make_parser(description: str | None, repetitions: int | None = 5) -> argparse.ArgumentParser:
    """Make a parser with the options that the benchmarks share.

    Args:
        description: The benchmark's docstring.
        repetitions: Default of --repetitions; None leaves the option out.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    if repetitions is not None:
        parser.add_argument("--repetitions", type=int, default=repetitions, help="timed rounds (default %(default)s)")
    return parser


def begin(arguments: argparse.Namespace) -> torch.device:
    """Fix seed and threads, and give the device; a card's convolutions are chosen by measuring, as in training."""
    torch.manual_seed(0)
    if arguments.device == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return torch.device(arguments.device)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as torch does on a card; elsewhere do nothing.

    Otherwise large tensors go back to the system and come as new pages that it has to clear. How long that takes
    depends on what else the machine does: as-published 3DSAM-adapter took 17 to 31 s a step for it.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (TRIM_THRESHOLD, -1), (TOP_PAD, 1 << 26), (MMAP_MAX, 0):
            mallopt(option, value)


def finish(arguments: argparse.Namespace, benchmark: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the results as JSON, with the command and the machine, if a file was named."""
    if arguments.json is None:
        return
    settings = {
        key: without_folder(value) if isinstance(value, Path) else value
        for key, value in vars(arguments).items()
        if key not in ("json", "root")
    }
    where = machine() | {"threads": torch.get_num_threads(), "commit": commit()}
    if arguments.device == "cuda":
        where["card"] = torch.cuda.get_device_name()
    command = shlex.join(["python", f"benchmarks/{benchmark}.py", *map(without_folder, sys.argv[1:])])
    results = {"benchmark": benchmark, "command": command, "settings": settings, "machine": where, "rows": list(rows)}
    write_json(arguments.json, json.loads(json.dumps(results)))


def commit() -> str | None:
    """Give the commit of this checkout, with "+" where files were changed since; None outside of one."""
    line = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude", "*", "--dirty=+"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def without_folder(text: str | Path) -> str:
    """Give the name alone of a file or folder named from the root on, so that results say nothing about a machine."""
    return Path(text).name if Path(text).is_absolute() else str(text)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, the first of them the header."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *map(list, rows[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown_seconds(row: Mapping[str, Any]) -> str:
    """Format the median and the quartiles of a row; "-" where nothing was timed."""
    if row.get("median_s") is None:
        return "-"
    low, high = row["quartiles_s"]
    return f"{row['median_s']:.3g} ({low:.3g}-{high:.3g})"


def shown_mib(value: float | None) -> str:
    """Format bytes in MiB; "-" for None."""
    return "-" if value is None else f"{value / MIB:,.1f}"


def shown_ratio(value: float | None, reference: float | None) -> str:
    """Format reference / value, how many times the value is smaller; "-" where either is missing."""
    return "-" if not value or not reference else f"{reference / value:.2f}"
