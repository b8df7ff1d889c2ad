"""Long work in stages: each runs in a process of its own, whose cost is recorded, and is not repeated when finished."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam3dnet.comparison.process_load import run_measured
from sam3dnet.errors import Sam3dError
from sam3dnet.preprocessing.cores import cores_of_job
from sam3dnet.preprocessing.folders import write_json

PACKAGES = ("torch", "nnunetv2", "sam3dnet", "monai", "segment-anything", "numpy", "SimpleITK", "batchgeneratorsv2")
LOG_LINES_IN_ERRORS = 15

logger = logging.getLogger(__name__)


class StageError(Sam3dError):
    """The process of a stage failed; the message says where its log is."""


@dataclass(frozen=True)
class Stages:
    """Where stages leave their records and logs, and what their processes have in common.

    Attributes:
        folder: For NAME.json and NAME.log of every stage.
        environment: The whole environment of the processes.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(
        self,
        name: str,
        keys: Mapping[str, Any],
        command: Sequence[str],
        mark_file: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run a command unless its stage is finished.

        Args:
            name: Of the stage.
            keys: What its result depends on; a record with other keys does not count.
            command: Program and arguments.
            mark_file: When this file appears, the load so far is kept apart.
            variables: Further environment variables.

        Returns:
            The record: keys, command, load and machine.

        Raises:
            StageError: If the command fails.
        """
        if (record := self.finished(name, keys)) is not None:
            logger.info("%s: finished before, %.0f s", name, record["load"]["wall_seconds"])
            return record
        self.folder.mkdir(parents=True, exist_ok=True)
        logger.info("%s: %s", name, shlex.join(command))
        log = self.folder / f"{name}.log"
        load = run_measured(command, log, {**self.environment, **(variables or {})}, mark_file)
        if load.returncode != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_IN_ERRORS:])
            raise StageError(f"stage {name} ended with status {load.returncode}; see {log}:\n{tail}")
        record = {"keys": _as_stored(keys), "command": list(command), "load": load.as_dict(), "machine": machine()}
        write_json(self.folder / f"{name}.json", record)
        logger.info("%s: %.0f s, %.0f MiB", name, load.wall_seconds, load.peak_mib)
        return record

    def finished(self, name: str, keys: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give the record of a stage that was finished with the same keys, None if there is none."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            return None
        record: dict[str, Any] = json.loads(file.read_text())
        return record if record["keys"] == _as_stored(keys) else None


def _as_stored(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Give keys as they come back from JSON, where a tuple is a list."""
    return dict(json.loads(json.dumps(dict(keys))))


def call(function: str, *arguments: str) -> list[str]:
    """Give the command that calls "module:function" with these arguments as its command line."""
    module, _, name = function.partition(":")
    code = f"import sys; from {module} import {name}; sys.exit({name}())"
    return [sys.executable, "-c", code, *arguments]


def machine() -> dict[str, Any]:
    """Say on what it ran: processor, cores, versions and date, which every figure needs beside it."""
    return {
        "processor": _processor(),
        "cores": cores_of_job(),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
