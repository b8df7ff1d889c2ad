"""The report of all checks: a table for the terminal, and a JSON file that can be attached to an issue.

The file is written before and after every line, so that it names the check that ended the whole process, if one did.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sam3dnet import __version__
from sam3dnet.check.result import CheckResult
from sam3dnet.check.setting import Setting
from sam3dnet.comparison.stages import machine
from sam3dnet.devices import available_devices
from sam3dnet.preprocessing.folders import write_json

FORMAT = "sam3dnet-check/1"
SHORTEST_FOLDER = 3  # of a path that is replaced; the superuser's home may be "/"


class Report:
    """The lines so far, in memory and in a file.

    Args:
        path: Of the JSON file.
        setting: Where the checks run.

    Attributes:
        results: The lines.
    """

    def __init__(self, path: Path, setting: Setting):
        self.path = path
        self.results: list[CheckResult] = []
        self._running: str | None = None
        self._about = about(setting)
        self._write()

    def start(self, check: str) -> None:
        """Note that a check begins."""
        self._running = check
        self._write()

    def add(self, result: CheckResult) -> None:
        """Add a line."""
        self.results.append(result)
        self._write()

    def finish(self) -> None:
        """Note that all checks have run."""
        self._running = None
        self._write()

    def _write(self) -> None:
        lines = [as_stored(result) for result in self.results]
        write_json(self.path, {"format": FORMAT, **self._about, "running": self._running, "results": lines})


def about(setting: Setting) -> dict[str, Any]:
    """Say where the checks ran."""
    return {
        "sam3dnet": __version__,
        "machine": machine(),
        "device": str(setting.device),
        "devices": available_devices(),
        "quick": setting.quick,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def as_stored(result: CheckResult) -> dict[str, Any]:
    """Give a line as JSON can hold it: no infinite number, and no folder of the user's."""
    stored = {
        key: _without_folders(value) if isinstance(value, str) else value for key, value in asdict(result).items()
    }
    if result.value is not None and not math.isfinite(result.value):
        stored["value"] = str(result.value)
    stored["warnings"] = [_without_folders(text) for text in result.warnings]
    return stored


def _without_folders(text: str) -> str:
    for folder, name in ((sys.prefix, "ENVIRONMENT"), (str(Path.home()), "~")):
        if len(folder) > SHORTEST_FOLDER:
            text = text.replace(folder, name)
    return text


def table(results: Sequence[CheckResult]) -> list[str]:
    """Format the lines of the table: status, what, value, limit, seconds, message."""
    header = ("", "check", "value", "limit", "s", "")
    rows = [header, *map(_cells, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    return ["  ".join((*map(str.ljust, row, widths), row[-1])).rstrip() for row in rows]


def _cells(result: CheckResult) -> tuple[str, ...]:
    value = "" if result.value is None else f"{result.value:.3g} {result.unit}".strip()
    return (result.status, result.label, value, result.limit, f"{result.seconds:.1f}", result.message)
