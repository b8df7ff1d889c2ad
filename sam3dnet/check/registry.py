"""All checks by name, in the order in which they run: what others rest on comes first."""

from collections.abc import Callable, Iterator
from importlib import import_module

from sam3dnet.check.result import CheckResult
from sam3dnet.check.setting import Setting

Check = Callable[[Setting], Iterator[CheckResult]]

# Module of this package, and function; imported when it runs, since an import that fails is a finding, too.
CHECKS = {
    "installation": ("installation", "check_installation"),
    "device": ("device", "check_device"),
    "float32": ("precision", "check_float32"),
    "half-precision": ("precision", "check_half_precision"),
    "attention": ("attention", "check_attention"),
    "memory": ("memory", "check_memory"),
    "prediction": ("prediction", "check_prediction"),
    "iteration": ("iteration", "check_iteration"),
    "commands": ("commands", "check_commands"),
    "compiled": ("compiled", "check_compiled"),
}


def find_check(name: str) -> Check:
    """Import a check by its name."""
    module, function = CHECKS[name]
    check: Check = getattr(import_module(f"sam3dnet.check.{module}"), function)
    return check
