"""Functions made from settings: they take a dataclass's fields as parameters, and do their work with the object."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sam3dnet.errors import Sam3dError

Parameters = ParamSpec("Parameters")
Settings = TypeVar("Settings")
Result = TypeVar("Result")


def function_of(
    settings: Callable[Parameters, Settings], work: Callable[[Settings], Result], name: str
) -> Callable[Parameters, Result]:
    """Make the function of a command.

    Args:
        settings: A dataclass; its fields become the parameters, their descriptions the docstring's.
        work: Does what is asked for.
        name: Of the function.
    """

    def function(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        asked = settings(*args, **kwargs)
        _require_finite(asked)
        return work(asked)

    descriptions = fields_of(settings)
    parameters = inspect.signature(settings).parameters
    ordered = sorted(parameters.values(), key=lambda one: list(descriptions).index(one.name))
    lines = [f"    {field}: {text}" for field, text in descriptions.items()]
    function.__name__ = function.__qualname__ = name
    function.__doc__ = "\n".join([inspect.getdoc(settings).partition("\nAttributes:")[0], "\nArgs:", *lines])  # type: ignore[union-attr]
    function.__module__ = work.__module__
    returned = inspect.signature(work).return_annotation
    function.__signature__ = inspect.Signature(ordered, return_annotation=returned)  # type: ignore[attr-defined]
    return function


def _require_finite(settings: object) -> None:
    """See that no number is infinite or none at all, which a command line and JSON can say and nothing can do.

    Raises:
        Sam3dError: For the first of them.
    """
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise Sam3dError(f"--{field.name.replace('_', '-')} {value}: expected a finite number")


def fields_of(settings: Callable[..., object]) -> dict[str, str]:
    """Give what the docstrings of a dataclass, and of those that it inherits from, say of each field, its own first."""
    found: dict[str, str] = {}
    for one in inspect.getmro(settings):  # type: ignore[arg-type]
        text = inspect.cleandoc(one.__doc__ or "").partition("\nAttributes:\n")[2]
        section = re.split(r"\n(?=\S)", text, maxsplit=1)[0]
        entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
        found = found | {name: " ".join(words.split()) for name, words in entries if name not in found}
    return found
