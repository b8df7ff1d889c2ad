"""Commands made from functions: names, types, defaults and help come from the signature and the docstring.

A positional parameter is a positional argument, which may be left out where it has a default; a keyword-only one is the
option `--parameter-name`, required where it has none, and strings in its `Annotated` type are further names for it.
Annotations are objects, not strings: `list[T]` takes several values, `Literal[...]` one of its own, `bool` (False by
default) none, `T | None` what T takes.
"""

import argparse
import errno
import inspect
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from sam3dnet import __version__
from sam3dnet.cli.reporting import RESULT, printed_as, reporting
from sam3dnet.errors import Sam3dError, did_you_mean

STATUS_SOME_FAILED = 1
STATUS_USER_ERROR = 2
STATUS_INTERRUPTED = 130

_USER_ERRNOS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "ENOTDIR", "EEXIST")
    if hasattr(errno, name)  # Windows has no EDQUOT
}
_SECONDS_TO_END_IN = 3.0

_log = logging.getLogger("sam3dnet.command")

Result = TypeVar("Result")


def _succeed(_: object) -> int:
    return 0


def run_command(
    function: Callable[..., Result],
    prog: str,
    argv: Sequence[str] | None = None,
    exit_status: Callable[[Result], int] = _succeed,
    *,
    interruptible: bool | None = None,
) -> int:
    """Parse the command line for a function, call it, and turn what the user can cause into a message and a status.

    Args:
        function: Does the work; its signature and docstring are the command line, beside the options that all commands
            have (--quiet, --verbose, --log-file). What it prints is a message, which --quiet leaves out.
        prog: Name of the command, for messages.
        argv: Arguments; the process's own if None.
        exit_status: Gives the exit status for what the function returned, and prints it: the result, which --quiet
            shows too.
        interruptible: Whether Ctrl-C ends the process within seconds; without it, if the arguments are its own.

    Returns:
        The exit status: 2 after a Sam3dError or a place that cannot be written, 130 after Ctrl-C.
    """
    options = vars(make_parser(function, prog).parse_args(argv))
    shown = {name: options.pop(name) for name in SHARED_OPTIONS}
    from sam3dnet.preprocessing.cores import limit_threads

    limit_threads()
    if interruptible if interruptible is not None else argv is None:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        with reporting(prog, **shown):
            return _run(function, options, exit_status)
    except Sam3dError as error:  # the log file cannot be written
        print(f"{prog}: {error}", file=sys.stderr)
        return STATUS_USER_ERROR


@dataclass(frozen=True)
class Subcommand:
    """What the first word of a command line asks for, as of `run_command`."""

    function: Callable[..., Any]
    exit_status: Callable[[Any], int] = _succeed


def run_subcommand(commands: Mapping[str, Subcommand], prog: str, argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; see `run_command`."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in commands:
        chosen = commands[words[0]]
        return run_command(
            chosen.function, f"{prog} {words[0]}", words[1:], chosen.exit_status, interruptible=argv is None
        )
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: {prog} {{{','.join(commands)}}} ...\n")
        for name, one in commands.items():
            print(f"{prog} {name}: {_split_docstring(inspect.getdoc(one.function) or '')[0]}")
        return 0
    came = f"{words[0]!r} is none of them" if words else "none came"
    print(f"{prog}: expected one of {', '.join(commands)}; {came}; {prog} --help tells them apart", file=sys.stderr)
    return STATUS_USER_ERROR


def _run(function: Callable[..., Result], options: dict[str, Any], exit_status: Callable[[Result], int]) -> int:
    try:
        with printed_as(logging.INFO):
            result = function(**options)
        with printed_as(RESULT):
            return exit_status(result)
    except Sam3dError as error:
        return _complain(str(error), error.exit_status)
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            _log.debug("a bug", exc_info=True)
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror}", STATUS_USER_ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted", STATUS_INTERRUPTED)
    except Exception:
        _log.debug("a bug", exc_info=True)
        raise


def _complain(message: str, status: int) -> int:
    _log.debug("details", exc_info=True)
    _log.error("%s", message)
    return status


def _interrupt(*_: object) -> NoReturn:
    """End by an exception, or within seconds without, if a thread still reads or writes a large image."""

    def end() -> None:
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(STATUS_INTERRUPTED)

    timer = threading.Timer(_SECONDS_TO_END_IN, end)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def make_parser(function: Callable[..., Any], prog: str) -> argparse.ArgumentParser:
    """Make the parser whose options are the function's parameters, and those that all commands have."""
    description, _ = _split_docstring(inspect.getdoc(function) or "")
    return _filled(_OneLineErrorParser(prog=prog, description=description, allow_abbrev=False), function)


def make_parser_of_all(commands: Mapping[str, Subcommand], prog: str) -> argparse.ArgumentParser:
    """Make a parser of all subcommands, each with the options of `make_parser`."""
    parser = _OneLineErrorParser(prog=prog, allow_abbrev=False)
    parts = parser.add_subparsers(required=True)
    for name, one in commands.items():
        description, _ = _split_docstring(inspect.getdoc(one.function) or "")
        _filled(parts.add_parser(name, help=description, description=description, allow_abbrev=False), one.function)
    return parser


def _filled(parser: argparse.ArgumentParser, function: Callable[..., Any]) -> argparse.ArgumentParser:
    _, help_texts = _split_docstring(inspect.getdoc(function) or "")
    parser.add_argument("--version", action="version", version=f"{parser.prog} of sam3dnet {__version__}")
    for name, parameter in inspect.signature(function).parameters.items():
        _add_argument(parser, parameter, help_texts[name])
    _add_shared_options(parser)
    return parser


SHARED_OPTIONS = ("quiet", "verbose", "log_file")


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("messages")
    amount = group.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="Show no progress, only results, warnings and errors")
    amount.add_argument("--verbose", action="store_true", help="Show details too, such as why a case failed")
    group.add_argument(
        "--log-file", type=path_of, metavar="PATH", help="Add all messages, details too, to this file, with the time"
    )


class _OneLineErrorParser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            names = [name for action in self._actions for name in action.option_strings]
            meant = [did_you_mean(word.partition("=")[0], names) for word in rest if word.startswith("-")]
            self.error(f"unrecognized arguments: {' '.join(rest)}{''.join(meant[:1])}")
        return known

    def error(self, message: str) -> NoReturn:
        self.exit(STATUS_USER_ERROR, f"{self.prog}: {message}; {self.prog} --help lists the options\n")


def _add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, help_text: str) -> None:
    further_names = [item for item in getattr(parameter.annotation, "__metadata__", ()) if isinstance(item, str)]
    settings = _value_settings(_plain_type(parameter.annotation))
    if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        settings.pop("metavar", None)
        if parameter.default is not inspect.Parameter.empty:
            settings |= {"nargs": "?", "default": parameter.default}
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
        return {"nargs": "+", **_value_settings(_plain_type(get_args(value_type)[0]))}
    return {"type": {Path: path_of, str: text_of}.get(value_type, value_type), "metavar": _METAVARS[value_type]}


def path_of(text: str) -> Path:
    """Take a path; an empty one would be the current folder."""
    return Path(text_of(text, "a path or a name"))


def text_of(text: str, expected: str = "a text") -> str:
    """Take a text; an empty one, as of a variable that is not set, would be as if the option were not there."""
    if not text:
        raise argparse.ArgumentTypeError(f"expected {expected}, came nothing; is a variable not set?")
    return text


_METAVARS = {str: "NAME", int: "N", float: "X", Path: "PATH"}


def _plain_type(annotation: Any) -> Any:
    """Take `Annotated` and `| None` off a type; of those that are left, a path is typed as one, all else as text."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    members = [member for member in get_args(annotation) if member is not NoneType]
    return members[0] if len(members) == 1 else Path if Path in members else str


def _split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text before "Args:" and the help text of each parameter."""
    description, _, rest = text.partition("\nArgs:\n")
    arguments = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    return description.strip(), {name: " ".join(help_text.split()).rstrip(".") for name, help_text in entries}
