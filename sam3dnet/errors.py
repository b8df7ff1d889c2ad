"""The errors that a user can cause; each message says where, what was expected, what came and what to do."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class Sam3dError(Exception):
    """Base of all errors that a user can cause; the commands print its message alone and exit with its status."""

    exit_status = 2


class DatasetError(Sam3dError):
    """A dataset, image, label or folder is not as nnU-Net's raw format wants it."""


class PlanError(Sam3dError):
    """A plan is missing, unreadable, or cannot be made or followed."""


class CheckpointError(Sam3dError):
    """A checkpoint or a file of pretrained weights is missing, damaged or foreign."""


class PromptError(Sam3dError):
    """A prompt does not fit its image or the model."""


class FailedCasesError(Sam3dError):
    """Some cases failed, each alone; what could be done with the others is done."""

    exit_status = 1


def did_you_mean(word: str, names: Iterable[str] | Mapping[str, str]) -> str:
    """Give " (did you mean NAME?)" for a misspelt name; nothing where none is like it.

    Args:
        word: What was given.
        names: Those that there are, or what may be typed for each of them.
    """
    pairs = names.items() if isinstance(names, Mapping) else ((name, name) for name in names)
    meant = {typed.lower(): name for typed, name in pairs}
    found = get_close_matches(word.lower(), meant, 1)
    return f" (did you mean {meant[found[0]]}?)" if found else ""
