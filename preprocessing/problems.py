"""What is wrong with a dataset: where, by the name of which check, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
DATASET = "dataset"


@dataclass(frozen=True)
class Problem:
    """One finding about a dataset.

    Attributes:
        severity: An error must be corrected before planning; a warning should be looked at.
        case: Name of the case, or "dataset" for what concerns all of it.
        check: Name of the check, such as "spacing mismatch".
        message: What was expected, what came, what to do.
    """

    severity: Severity
    case: str
    check: str
    message: str


def error(case: str, check: str, message: str) -> Problem:
    """Make a problem that must be corrected."""
    return Problem("error", case, check, message)


def warning(case: str, check: str, message: str) -> Problem:
    """Make a problem that should be looked at."""
    return Problem("warning", case, check, message)


def shorten(items: list[str], most: int = 8) -> str:
    """Join names for a message; many are cut short, and the rest counted."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
