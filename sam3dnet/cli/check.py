"""sam3d_check: whether this installation computes the right thing on its device, and how fast."""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.errors import Sam3dError
from sam3dnet.settings.choices import CheckName

if TYPE_CHECKING:
    from sam3dnet.check.result import CheckResult

REPORT = Path("sam3d_check.json")

_log = logging.getLogger("sam3dnet.cli.check")


def check(
    *,
    device: str | None = None,
    quick: bool = False,
    only: list[CheckName] | None = None,
    json: Path = REPORT,
) -> "list[CheckResult]":
    """Check this installation, in about two minutes: what the device computes, how fast, and how much memory it takes.

    Each check runs by itself. One that cannot run here is skipped; one that fails is named last, and the exit status is
    1. The JSON file holds the details; attach it when you report a problem. Everything is made up, nothing is
    downloaded.

    Args:
        device: Device to check: cpu, cuda, cuda:1 (the second card), mps; without it the best there is.
        quick: Take the smallest networks and volumes, which say little about speed.
        only: Run these checks alone.
        json: File for the results.

    Returns:
        The lines of the table.

    Raises:
        Sam3dError: If torch cannot be imported, or sees no such device.
    """
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        raise Sam3dError(
            f"torch cannot be imported ({error}); install it again: pip install --force-reinstall torch"
        ) from error

    from sam3dnet.check.registry import CHECKS
    from sam3dnet.check.report import Report
    from sam3dnet.check.run import run_checks
    from sam3dnet.check.setting import Setting
    from sam3dnet.devices import choose_device

    setting = Setting(choose_device(device), quick)
    report = Report(json, setting)
    run_checks([name for name in CHECKS if only is None or name in only], setting, report)
    return report.results


def print_results(results: "list[CheckResult]") -> int:
    """Print the table, last the lines that failed and why; give the exit status."""
    from sam3dnet.check.report import table

    print("\n".join(table(results)))
    counts = Counter(result.status for result in results)
    print(f"{counts['ok']} ok, {counts['skipped']} skipped, {counts['failed']} failed")
    for result in results:
        if result.status == "failed":
            limit = f" ({result.value:.3g} {result.unit}, expected {result.limit})" if result.value is not None else ""
            _log.error("%s failed%s: %s", result.label, limit, result.message)
    return STATUS_SOME_FAILED if counts["failed"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(check, "sam3d_check", argv, exit_status=print_results)


if __name__ == "__main__":
    sys.exit(main())
