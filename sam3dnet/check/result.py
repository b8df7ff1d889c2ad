"""What a check found: one line of the table each."""

import math
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed", "skipped"]


class Skipped(Exception):
    """What a check raises that cannot run here; its message is the reason."""


@dataclass(frozen=True)
class CheckResult:
    """A line of the table.

    Attributes:
        check: Name of the check, as `--only` takes it.
        name: What of it this line is about.
        status: "ok", "failed", or "skipped" where it cannot run here.
        value: What was measured; None where there is nothing to measure.
        unit: Of the value and the limit.
        limit: What the value may be, as text; empty for what is only told.
        seconds: That it took.
        message: Details, or the reason, on one line.
        traceback: Of the exception that made it fail.
        output: Last lines of what was printed and logged before it failed.
        warnings: Those that Python gave meanwhile.
    """

    check: str
    name: str
    status: Status
    value: float | None = None
    unit: str = ""
    limit: str = ""
    seconds: float = 0.0
    message: str = ""
    traceback: str | None = None
    output: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The check and the line, as they are named where one fails."""
        return f"{self.check}: {self.name}" if self.name else self.check


def told(check: str, name: str, message: str = "", value: float | None = None, unit: str = "") -> CheckResult:
    """Give a line that has no limit."""
    return CheckResult(check, name, "ok", value, unit, message=message)


def judged(check: str, name: str, good: bool, message: str) -> CheckResult:
    """Give a line of which only is known whether it is as it should be."""
    return CheckResult(check, name, "ok" if good else "failed", message=message)


def skipped(check: str, name: str, reason: str) -> CheckResult:
    """Give a line for what cannot run here."""
    return CheckResult(check, name, "skipped", message=reason)


def at_most(check: str, name: str, value: float, highest: float, message: str = "", unit: str = "") -> CheckResult:
    """Give a line that fails where the value is above the limit, or NaN."""
    limit = f"at most {highest:g}"
    return CheckResult(check, name, "ok" if value <= highest else "failed", value, unit, limit, message=message)


def between(
    check: str, name: str, value: float, lowest: float, highest: float, message: str = "", unit: str = ""
) -> CheckResult:
    """Give a line that fails where the value is outside of the limits, or NaN."""
    good = not math.isnan(value) and lowest <= value <= highest
    limit = f"{lowest:g} to {highest:g}"
    return CheckResult(check, name, "ok" if good else "failed", value, unit, limit, message=message)
