"""Commands made from functions: names, types, defaults and help come from the signature and the docstring.

A positional parameter is a positional argument; a keyword-only one is the option `--parameter-name`, required where it
has no default, and strings in its `Annotated` type are further names for it. Annotations are objects, not strings:
`list[T]` takes several values, `Literal[...]` one of its own, `bool` (False by default) none, `T | None` what T takes.
"""

import argparse
import errno
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from sam3dnet.errors import Sam3dError

DeviceName = Literal["cpu", "cuda", "mps"]
EncoderChoice = Literal["auto", "tiny", "small", "vit_b", "vit_l", "vit_h"]

STATUS_SOME_FAILED = 1
STATUS_USER_ERROR = 2
STATUS_INTERRUPTED = 130

_USER_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST}

Result = TypeVar("Result")


def _succeed(_: object) -> int:
    return 0


def run_command(
    function: Callable[..., Result],
    prog: str,
    argv: Sequence[str] | None = None,
    exit_status: Callable[[Result], int] = _succeed,
) -> int:
    """Parse the command line for a function, call it, and turn what the user can cause into a message and a status.

    Args:
        function: Does the work; its signature and docstring are the command line.
        prog: Name of the command, for messages.
        argv: Arguments; the process's own if None.
        exit_status: Gives the exit status for what the function returned.

    Returns:
        The exit status: 2 after a Sam3dError or a place that cannot be written, 130 after Ctrl-C.
    """
    options = vars(make_parser(function, prog).parse_args(argv))
    try:
        with _log_on_stdout():
            return exit_status(function(**options))
    except Sam3dError as error:
        return _complain(prog, str(error), STATUS_USER_ERROR)
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        return _complain(prog, f"{error.filename}: {error.strerror}", STATUS_USER_ERROR)
    except KeyboardInterrupt:
        return _complain(prog, "interrupted", STATUS_INTERRUPTED)


def parse_fold(text: str | int) -> int | Literal["all"]:
    """Read a fold from "fold0", "fold_0", "0" or "all"."""
    number = re.fullmatch(r"(?:fold_?)?(\d+)", str(text))
    if number:
        return int(number[1])
    if text in ("all", "fold_all"):
        return "all"
    raise Sam3dError(f"fold {text!r} is unknown; expected fold0 to fold4, 0 to 4, or all")


def default_num_processes() -> int:
    """One process a core of this machine, 8 at most."""
    return min(8, os.cpu_count() or 1)


def make_parser(function: Callable[..., Any], prog: str) -> argparse.ArgumentParser:
    """Make the parser whose options are the function's parameters."""
    description, help_texts = _split_docstring(inspect.getdoc(function) or "")
    parser = _OneLineErrorParser(prog=prog, description=description, allow_abbrev=False)
    for name, parameter in inspect.signature(function).parameters.items():
        _add_argument(parser, parameter, help_texts[name])
    return parser


class _OneLineErrorParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(STATUS_USER_ERROR, f"{self.prog}: {message}; {self.prog} --help lists the options\n")


def _add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, help_text: str) -> None:
    further_names = [item for item in getattr(parameter.annotation, "__metadata__", ()) if isinstance(item, str)]
    settings = _value_settings(_plain_type(parameter.annotation))
    if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        settings.pop("metavar", None)
        parser.add_argument(parameter.name, help=help_text, **settings)
        return
    if parameter.default is inspect.Parameter.empty:
        settings["required"] = True
    else:
        settings["default"] = parameter.default
        if parameter.default not in (None, False):
            help_text = f"{help_text} (default: {parameter.default})"
    names = [*further_names, f"--{parameter.name.replace('_', '-')}"]
    parser.add_argument(*names, dest=parameter.name, help=help_text.replace("%", "%%"), **settings)


def _value_settings(value_type: Any) -> dict[str, Any]:
    if value_type is bool:
        return {"action": "store_true"}
    if get_origin(value_type) is Literal:
        return {"choices": get_args(value_type)}
    if get_origin(value_type) is list:
        return {"nargs": "+", **_value_settings(get_args(value_type)[0])}
    return {"type": value_type, "metavar": _METAVARS[value_type]}


_METAVARS = {str: "NAME", int: "N", float: "X", Path: "PATH"}


def _plain_type(annotation: Any) -> Any:
    """Take `Annotated` and `| None` off a type."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (member for member in get_args(annotation) if member is not NoneType)
    return annotation


def _split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text before "Args:" and the help text of each parameter."""
    description, _, rest = text.partition("\nArgs:\n")
    arguments = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    return description.strip(), {name: " ".join(help_text.split()).rstrip(".") for name, help_text in entries}


def _complain(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {message}", file=sys.stderr)
    return status


@contextmanager
def _log_on_stdout() -> Iterator[None]:
    logger, handler = logging.getLogger("sam3dnet"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
