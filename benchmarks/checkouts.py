"""Another checkout's package beside this one's: each runs in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def assemble(checkout: Path, folder: Path) -> Path:
    """Lay the folders of a checkout as they are installed; give the folder for PYTHONPATH."""
    shutil.copytree(checkout / "sam3dnet", folder / "sam3dnet")
    for name in ("planning", "preprocessing"):
        shutil.copytree(checkout / name, folder / "sam3dnet" / name)
    return folder


def run_in_each(line: Sequence[str], before: Path | None, folder: Path, repetitions: int) -> list[dict[str, Any]]:
    """Run a script with the package of this checkout, and of another if one is given, in turn.

    Args:
        line: Script and arguments; the last line that it prints is JSON.
        before: The other checkout.
        folder: An empty one.
        repetitions: Rounds.

    Returns:
        For each round what was printed with "now", and with "before".
    """
    checkouts = {"before": before, "now": HERE} if before else {"now": HERE}
    packages = {name: assemble(checkout, folder / name) for name, checkout in checkouts.items()}
    return [{name: _run(line, path) for name, path in packages.items()} for _ in range(repetitions)]


def _run(line: Sequence[str], packages: Path) -> Any:
    environment = os.environ | {"PYTHONPATH": str(packages)}
    result = subprocess.run([sys.executable, *line], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])
